//! Which pods belong to the mesh, as Istio decides it: the pod's label before its namespace's.
//!
//! | | |
//! |---|---|
//! | on the node's network, finished | never |
//! | pod says `none` | no |
//! | pod says `ambient` | yes |
//! | pod says nothing, or a value that nobody knows | what the namespace says |
//! | namespace says `ambient` | yes |
//! | namespace says anything else | no |
//! | yes, and another mesh's proxy is in the pod | refused: two proxies would take each other's connections |
//! | yes, and the pod has a kernel of its own (KubeVirt, Kata, gVisor) | refused: what it says passes no socket of its namespace |

use super::object::{CAPTURE, MODE, Mode, Obstacle, Seen};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Meshed,
    Outside,
    /// It asks for what it cannot have.
    Refused(String),
}

pub(super) fn verdict(pod: &Seen, namespace: Option<&Mode>) -> Verdict {
    let wanted = match &pod.mode {
        Some(Mode::Ambient) => true,
        Some(Mode::None) => false,
        Some(Mode::Other(_)) | None => namespace == Some(&Mode::Ambient),
    };
    if !wanted || pod.host_network || pod.finished {
        return Verdict::Outside;
    }
    match &pod.obstacle {
        Some(Obstacle::Sidecar(whose)) => Verdict::Refused(format!(
            "{whose} proxy is in the pod; it stays as it is until it is created anew without that, or has the label {MODE}=none"
        )),
        Some(Obstacle::OwnKernel(what)) => Verdict::Refused(format!(
            "{what} has a kernel of its own, past which nothing is captured: it stays outside, in plaintext; \
             the label {MODE}=none says that it is meant"
        )),
        None => Verdict::Meshed,
    }
}

/// A value of the annotation that means nothing, and what is done about it.
pub(super) fn unknown_capture(pod: &Seen) -> Option<String> {
    let value = pod.unknown_capture.as_deref()?;
    Some(format!("the annotation {CAPTURE}={value} counts as strict; known are permissive and strict"))
}

/// A label that means nothing, and what is done about it.
pub(super) fn mistake(pod: &Seen, namespace: Option<&Mode>) -> Option<String> {
    let known = "known are ambient and none";
    if let Some(Mode::Other(value)) = &pod.mode {
        return Some(format!("the pod's label {MODE}={value} is ignored, its namespace decides; {known}"));
    }
    match namespace {
        Some(Mode::Other(value)) if pod.mode.is_none() && !pod.host_network => {
            Some(format!("the namespace's label {MODE}={value} does not enrol its pods; {known}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Seen {
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {}, "annotations": {}},
            "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"},
        });
        change(&mut object);
        Seen::read(&object).expect("it is a pod")
    }

    #[test]
    fn the_pod_decides_before_its_namespace() {
        let labelled = |value: &str| pod(|pod| pod["metadata"]["labels"][MODE] = json!(value));
        let other = Mode::Other("sidecar".to_owned());
        for (pod, namespace, expected) in [
            (pod(|_| {}), None, Verdict::Outside),
            (pod(|_| {}), Some(&Mode::None), Verdict::Outside),
            (pod(|_| {}), Some(&other), Verdict::Outside),
            (pod(|_| {}), Some(&Mode::Ambient), Verdict::Meshed),
            (labelled("none"), Some(&Mode::Ambient), Verdict::Outside),
            (labelled("ambient"), None, Verdict::Meshed),
            (labelled("ambient"), Some(&Mode::None), Verdict::Meshed),
            (labelled("Ambient"), None, Verdict::Outside),
            (labelled("Ambient"), Some(&Mode::Ambient), Verdict::Meshed),
        ] {
            assert_eq!(verdict(&pod, namespace), expected, "{pod:?} in {namespace:?}");
        }
        assert!(mistake(&labelled("Ambient"), None).is_some_and(|text| text.contains("Ambient")));
        let annotated = |value: &str| pod(|pod| pod["metadata"]["annotations"][CAPTURE] = json!(value));
        for (value, strict, known) in
            [("permissive", false, true), ("strict", true, true), ("Permisive", true, false)]
        {
            let pod = annotated(value);
            assert_eq!((pod.strict, unknown_capture(&pod).is_none()), (strict, known), "{value}");
        }
        assert!(mistake(&pod(|_| {}), Some(&other)).is_some_and(|text| text.contains("sidecar")));
        assert_eq!(mistake(&labelled("none"), Some(&other)), None);
    }

    #[test]
    fn pods_that_cannot_be_captured_are_left_alone() {
        let ambient = Some(&Mode::Ambient);
        for outside in [
            pod(|pod| pod["spec"]["hostNetwork"] = json!(true)),
            pod(|pod| pod["status"]["phase"] = json!("Succeeded")),
            pod(|pod| pod["status"]["phase"] = json!("Failed")),
        ] {
            assert_eq!(verdict(&outside, ambient), Verdict::Outside, "{outside:?}");
        }
        for (refused, whose) in [
            (pod(|pod| pod["metadata"]["annotations"]["sidecar.istio.io/status"] = json!("{}")), "Istio's"),
            (pod(|pod| pod["metadata"]["annotations"]["linkerd.io/proxy-version"] = json!("2")), "Linkerd's"),
            (pod(|pod| pod["spec"]["initContainers"] = json!([{"name": "linkerd-proxy"}])), "Linkerd's"),
            (
                pod(|pod| pod["spec"]["runtimeClassName"] = json!("kata-qemu")),
                "a pod of the runtime class kata-qemu",
            ),
            (
                pod(|pod| pod["metadata"]["annotations"]["kubevirt.io/domain"] = json!("vm")),
                "a virtual machine",
            ),
        ] {
            let Verdict::Refused(why) = verdict(&refused, ambient) else { panic!("{refused:?}") };
            assert!(why.starts_with(whose), "{why}");
            assert_eq!(verdict(&refused, None), Verdict::Outside);
        }
        let native = pod(|pod| pod["spec"]["runtimeClassName"] = json!("nvidia"));
        assert_eq!(verdict(&native, ambient), Verdict::Meshed);
    }
}
