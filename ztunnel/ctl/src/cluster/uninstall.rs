//! Nothing is left behind: no rule, file or CNI entry on a node, no object in the cluster.
//!
//! The node pods go first, which opens nothing; then the agent of the image cleans every node up and says so by being ready;
//! then the objects go.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use reflector::{Client, Keep, Trouble};
use serde_json::json;

use super::install::{apply, is_anothers, pods_of, wait};
use super::manifests::{self, Object, SYSTEM};
use super::{ANSWER, Error, LOOK, UninstallArguments, of};

pub(super) async fn run(client: &Client, arguments: UninstallArguments) -> Result<ExitCode, Error> {
    let longest = Duration::from_secs(arguments.timeout);
    let namespace = format!("/api/v1/namespaces/{SYSTEM}");
    let parts = manifests::parts(manifests::IMAGE);
    let node = parts.iter().find(|object| object.kind.name == "DaemonSet");
    let node = node.expect("invariant: a test reads every file of deploy/");
    if of("the namespace", reflector::get(client, &namespace, Keep::Nothing, ANSWER).await)?.is_some() {
        let cleaner = cleaner(client, node, arguments.image.as_deref()).await?;
        delete(client, node).await?;
        gone(client, &pods_of("ztunnel"), longest).await?;
        apply(client, &cleaner, false).await?;
        println!("{:<60} applied", cleaner.title());
        wait(client, std::slice::from_ref(&cleaner), longest).await?;
        delete(client, &cleaner).await?;
        gone(client, &pods_of(cleaner.name()), longest).await?;
    }
    unmark(client).await?;
    for part in parts.iter().rev() {
        delete(client, part).await?;
    }
    roots(client).await?;
    for definition in manifests::definitions() {
        match (arguments.delete_policies, is_anothers(client, &definition).await?) {
            (_, true) => {}
            (true, false) => delete(client, &definition).await?,
            (false, false) => {
                println!(
                    "{:<60} stays, with its policies; --delete-policies removes both",
                    definition.title()
                );
            }
        }
    }
    let started = Instant::now();
    while of("the namespace", reflector::get(client, &namespace, Keep::Nothing, ANSWER).await)?.is_some() {
        if started.elapsed() >= longest {
            return Err(Error::Late(longest, format!("namespace {SYSTEM} is still terminating")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// As it is installed, because an overlay may have other folders. Where an earlier attempt took the node pods away and was
/// not done, what it left there to clean up knows them.
async fn cleaner(client: &Client, node: &Object, image: Option<&str>) -> Result<Object, Error> {
    let there = async |object: &Object| -> Result<Option<Object>, Error> {
        let found = of(object.title(), reflector::get(client, &object.path(), Keep::All, ANSWER).await)?;
        Ok(found.map(|value| Object { kind: object.kind, value }))
    };
    let fresh = |mut node: Object| {
        if let Some(image) = image {
            node.value["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        }
        manifests::cleaner(&node)
    };
    if let Some(installed) = there(node).await? {
        return Ok(fresh(installed));
    }
    let fallback = fresh(node.clone());
    match there(&fallback).await? {
        Some(earlier) => Ok(manifests::again(&earlier, image)),
        None => Ok(fallback),
    }
}

async fn gone(client: &Client, pods: &str, longest: Duration) -> Result<(), Error> {
    const NAMES: Keep =
        Keep::Only(&[("items", Keep::Only(&[("metadata", Keep::Only(&[("name", Keep::All)]))]))]);
    let started = Instant::now();
    loop {
        let list =
            of("the node pods", reflector::get(client, pods, NAMES, ANSWER).await)?.unwrap_or_default();
        match list["items"].as_array().map_or(0, Vec::len) {
            0 => return Ok(()),
            left if started.elapsed() >= longest => {
                return Err(Error::Late(longest, format!("{left} node pods have not ended")));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// What the agents said on pods: that they are captured.
async fn unmark(client: &Client) -> Result<(), Error> {
    const REDIRECTION: &str = "ambient.istio.io/redirection";
    const MARKS: Keep = Keep::Only(&[(
        "items",
        Keep::Only(&[(
            "metadata",
            Keep::Only(&[
                ("name", Keep::All),
                ("namespace", Keep::All),
                ("uid", Keep::All),
                ("annotations", Keep::Only(&[(REDIRECTION, Keep::All)])),
                ("managedFields", Keep::Only(&[("manager", Keep::All)])),
            ]),
        )]),
    )]);
    let pods =
        of("the pods", reflector::get(client, "/api/v1/pods", MARKS, ANSWER).await)?.unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let metadata = &pod["metadata"];
        let managers = metadata["managedFields"].as_array().into_iter().flatten();
        // istio-cni says the same of its own.
        let ours = managers.into_iter().any(|one| one["manager"] == "ztunnel-redirect");
        if !ours || metadata["annotations"][REDIRECTION].is_null() {
            continue;
        }
        let text = |key: &str| metadata[key].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{}/pods/{}", text("namespace"), text("name"));
        let patch = json!({"metadata": {"uid": metadata["uid"], "annotations": {REDIRECTION: null}}});
        match reflector::merge(client, &path, &patch, "ztunnelctl", ANSWER).await {
            Ok(()) => {
                println!("{:<60} annotation removed", format!("Pod {}/{}", text("namespace"), text("name")))
            }
            // It is gone, or another one has its name.
            Err(Trouble::Refused { code: 404 | 409 | 422, .. }) => {}
            failed => of(&path, failed)?,
        }
    }
    Ok(())
}

/// The root certificates that the controller published.
async fn roots(client: &Client) -> Result<(), Error> {
    const NAMES: Keep = Keep::Only(&[(
        "items",
        Keep::Only(&[("metadata", Keep::Only(&[("name", Keep::All), ("namespace", Keep::All)]))]),
    )]);
    let ours = "/api/v1/configmaps?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dztunnel-controller";
    let list =
        of("the root certificates", reflector::get(client, ours, NAMES, ANSWER).await)?.unwrap_or_default();
    for one in list["items"].as_array().into_iter().flatten() {
        let text = |key: &str| one["metadata"][key].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{}/configmaps/{}", text("namespace"), text("name"));
        of(&path, reflector::delete(client, &path, ANSWER).await)?;
        println!("{:<60} removed", format!("ConfigMap {}/{}", text("namespace"), text("name")));
    }
    Ok(())
}

async fn delete(client: &Client, object: &Object) -> Result<(), Error> {
    let found = of(object.title(), reflector::delete(client, &object.path(), ANSWER).await)?;
    if found {
        println!("{:<60} removed", object.title());
    }
    Ok(())
}
