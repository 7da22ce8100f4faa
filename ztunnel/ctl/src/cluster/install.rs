//! Everything is applied on the server's side, so that a second installation is an upgrade.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use reflector::{Client, Keep};
use serde_json::Value;

use super::manifests::{self, Object, PART_OF, SYSTEM};
use super::{ANSWER, Error, InstallArguments, LOOK, of, preflight};

const MANAGER: &str = "ztunnelctl";

pub(super) async fn run(client: &Client, arguments: InstallArguments) -> Result<ExitCode, Error> {
    let findings = preflight::look(client).await?;
    if !preflight::tell(&findings) && !arguments.force {
        return Err(Error::Unfit);
    }
    if findings.iter().any(|finding| matches!(finding, preflight::Finding::Overlay(_))) && !arguments.force {
        return Err(Error::Overlay);
    }
    let parts = manifests::parts(&arguments.image);
    // Whatever would be refused is refused before anything is changed.
    all(client, &parts, true, arguments.dry_run).await?;
    if !arguments.dry_run {
        all(client, &parts, false, true).await?;
    }
    if arguments.wait && !arguments.dry_run {
        wait(client, &parts, Duration::from_secs(arguments.timeout)).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn all(client: &Client, parts: &[Object], dry_run: bool, tell: bool) -> Result<(), Error> {
    let say = |object: &Object, what: &str| {
        if tell {
            println!("{:<60} {what}", object.title());
        }
    };
    let done = if dry_run { "would be applied" } else { "applied" };
    for definition in manifests::definitions() {
        if is_anothers(client, &definition).await? {
            say(&definition, "left alone: it is not ours");
        } else {
            apply(client, &definition, dry_run).await?;
            say(&definition, done);
        }
    }
    let namespace = format!("/api/v1/namespaces/{SYSTEM}");
    let there =
        of("the namespace", reflector::get(client, &namespace, Keep::Nothing, ANSWER).await)?.is_some();
    for part in parts {
        // What lies in a namespace cannot be tried before there is one.
        if dry_run && !there && part.path().contains("/namespaces/ztunnel-system/") {
            say(part, "would be made in the new namespace");
        } else {
            apply(client, part, dry_run).await?;
            say(part, done);
        }
    }
    Ok(())
}

/// What another one made; Istio's marks stay also where somebody applied our file over it.
pub(super) async fn is_anothers(client: &Client, object: &Object) -> Result<bool, Error> {
    const MARKS: Keep =
        Keep::Only(&[("metadata", Keep::Only(&[("labels", Keep::All), ("annotations", Keep::All)]))]);
    let found = of(object.title(), reflector::get(client, &object.path(), MARKS, ANSWER).await)?;
    Ok(found.is_some_and(|found| is_marked_by_another(&found["metadata"])))
}

fn is_marked_by_another(metadata: &Value) -> bool {
    let istios = ["chart", "release", "heritage", "helm.sh/chart"];
    metadata["labels"][PART_OF.0] != PART_OF.1
        || istios.iter().any(|label| metadata["labels"][label].is_string())
        || metadata["annotations"]["meta.helm.sh/release-name"].is_string()
}

pub(super) async fn apply(client: &Client, object: &Object, dry_run: bool) -> Result<(), Error> {
    of(
        object.title(),
        reflector::apply(client, &object.path(), &object.value, MANAGER, dry_run, ANSWER).await,
    )
}

/// Until everything that runs is as new as what was applied, and ready.
pub(super) async fn wait(client: &Client, objects: &[Object], longest: Duration) -> Result<(), Error> {
    let started = Instant::now();
    for object in objects.iter().filter(|object| matches!(object.kind.name, "Deployment" | "DaemonSet")) {
        loop {
            let found = of(object.title(), reflector::get(client, &object.path(), STATUS, ANSWER).await)?;
            let waits = found.as_ref().map_or_else(|| "is not there".to_owned(), state);
            if waits.is_empty() {
                println!("{:<60} ready", object.title());
                break;
            }
            if started.elapsed() >= longest {
                let mut why = vec![format!("{}: {waits}", object.title())];
                why.extend(hindered(client, object).await);
                return Err(Error::Late(longest, why.join("; ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

const STATUS: Keep = Keep::Only(&[
    ("metadata", Keep::Only(&[("generation", Keep::All)])),
    ("spec", Keep::Only(&[("replicas", Keep::All)])),
    ("status", Keep::All),
]);

/// Which pods it waits for, and why, as far as the kubelets say.
async fn hindered(client: &Client, object: &Object) -> Vec<String> {
    const PODS: Keep = Keep::Only(&[(
        "items",
        Keep::Only(&[
            ("metadata", Keep::Only(&[("name", Keep::All)])),
            ("spec", Keep::Only(&[("nodeName", Keep::All)])),
            ("status", Keep::All),
        ]),
    )]);
    let pods = reflector::get(client, &pods_of(object.name()), PODS, ANSWER).await.ok().flatten();
    let pods = pods.unwrap_or_default();
    pods["items"].as_array().into_iter().flatten().filter_map(hindrance).collect()
}

pub(super) fn pods_of(name: &str) -> String {
    format!("/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io%2Fname%3D{name}")
}

/// None where the pod is ready.
fn hindrance(pod: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = |key: &'static str| pod["status"][key].as_array().into_iter().flatten();
    if each("conditions").any(|one| one["type"] == "Ready" && one["status"] == "True") {
        return None;
    }
    let containers = each("initContainerStatuses").chain(each("containerStatuses"));
    let mut why: Vec<String> = containers
        .filter(|one| one["ready"] != true)
        .map(|one| {
            let ended = [&one["state"]["terminated"], &one["lastState"]["terminated"]];
            let ended =
                ended.into_iter().find(|ended| ended.is_object()).map(|ended| text(&ended["message"]));
            let state = ["waiting", "terminated"].map(|key| text(&one["state"][key]["reason"])).concat();
            let said = ended
                .filter(|message| !message.is_empty())
                .unwrap_or_else(|| text(&one["state"]["waiting"]["message"]));
            [text(&one["name"]), state, said]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(": ")
        })
        .collect();
    // Before there are containers: it is not placed, or its image or network is not there.
    why.extend(
        each("conditions")
            .filter(|one| one["type"] == "PodScheduled" && one["status"] == "False")
            .map(|one| text(&one["message"])),
    );
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("no node");
    Some(format!("pod {} on {node} is not ready: {}", text(&pod["metadata"]["name"]), why.join(", ")))
}

/// What it waits for; empty when it waits for nothing.
fn state(found: &Value) -> String {
    let status = |key: &str| found["status"][key].as_u64().unwrap_or(0);
    if status("observedGeneration") < found["metadata"]["generation"].as_u64().unwrap_or(0) {
        return "not taken up yet".to_owned();
    }
    let (wanted, fresh, ready) = match found["spec"]["replicas"].as_u64() {
        Some(replicas) => (replicas, status("updatedReplicas"), status("availableReplicas")),
        None => {
            (status("desiredNumberScheduled"), status("updatedNumberScheduled"), status("numberAvailable"))
        }
    };
    // Those that are replaced are counted until they are gone.
    let all = if found["spec"]["replicas"].is_u64() { status("replicas") } else { wanted };
    if fresh >= wanted && ready >= wanted && all <= wanted && wanted > 0 {
        return String::new();
    }
    format!("{ready} of {wanted} ready, {fresh} up to date")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_istio_installed_stays_istios() {
        let ours = json!({ "labels": { PART_OF.0: PART_OF.1 }, "annotations": {} });
        assert!(!is_marked_by_another(&ours));
        assert!(is_marked_by_another(&json!({})));
        for (kind, key) in
            [("labels", "chart"), ("labels", "release"), ("annotations", "meta.helm.sh/release-name")]
        {
            let mut theirs = ours.clone();
            theirs[kind][key] = "istio".into();
            assert!(is_marked_by_another(&theirs), "{key}");
        }
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let pod = |condition: &str, status: Value| {
            json!({ "metadata": { "name": "one" }, "spec": { "nodeName": "node2" }, "status": {
            "conditions": [{ "type": "Ready", "status": condition }], "initContainerStatuses": [status] } })
        };
        let failed = json!({ "name": "agent", "ready": false, "state": { "waiting": { "reason": "CrashLoopBackOff",
            "message": "back-off 40s" } }, "lastState": { "terminated": { "reason": "Error", "message": "no such folder" } } });
        assert_eq!(hindrance(&pod("True", json!({ "name": "agent", "ready": true }))), None);
        assert_eq!(
            hindrance(&pod("False", failed)).expect("a reason"),
            "pod one on node2 is not ready: agent: CrashLoopBackOff: no such folder"
        );
        let pulled = json!({ "name": "agent", "ready": false, "state": { "waiting": { "reason": "ImagePullBackOff",
            "message": "no such image" } } });
        assert!(
            hindrance(&pod("False", pulled)).expect("a reason").ends_with("ImagePullBackOff: no such image")
        );
    }

    #[test]
    fn it_is_ready_when_all_that_is_wanted_is_new_and_available() {
        let set = |ready: u64| {
            json!({ "metadata": { "generation": 2 }, "spec": {}, "status": { "observedGeneration": 2,
            "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": ready } })
        };
        assert_eq!(state(&set(2)), "");
        assert_eq!(state(&set(1)), "1 of 2 ready, 2 up to date");
        let mut old = set(2);
        old["metadata"]["generation"] = 3.into();
        assert_eq!(state(&old), "not taken up yet");
        let deployment = |replicas: u64| {
            json!({ "metadata": { "generation": 1 }, "spec": { "replicas": 2 }, "status": {
            "observedGeneration": 1, "replicas": replicas, "updatedReplicas": 2, "availableReplicas": 2 } })
        };
        assert_eq!(state(&deployment(2)), "");
        assert_ne!(state(&deployment(3)), "", "an old replica is still there");
        assert_ne!(state(&json!({ "spec": {}, "status": {} })), "", "no node was looked at yet");
    }
}
