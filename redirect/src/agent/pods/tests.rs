use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::audit::Wake;
use crate::broker::wire::proto::to_proxy;
use crate::rules::fixture::Named;
use crate::source::Unlocated;
use crate::status::State;

pub(super) struct Bed {
    pub(super) namespace: Named,
    pub(super) folder: PathBuf,
}

impl Bed {
    pub(super) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pods-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self { namespace: Named::make(folder.join("netns")), folder }
    }

    pub(super) fn pods(&self) -> Pods {
        self.pods_of(Part::Both)
    }

    pub(super) fn pods_of(&self, part: Part) -> Pods {
        self.pods_guarded(part, Duration::from_secs(5))
    }

    pub(super) fn pods_every(&self, period: Duration) -> Pods {
        self.pods_guarded(Part::Both, period)
    }

    fn pods_guarded(&self, part: Part, period: Duration) -> Pods {
        let wake = Arc::new(Wake::new().expect("an epoll"));
        Pods::new(self.record(), part, Guarding::new(wake, period))
    }

    fn record(&self) -> Record {
        Record::beside(&self.folder.join("redirect.sock"))
    }

    pub(super) fn pod(&self) -> Pod {
        Pod {
            uid: "u".into(),
            name: "p".into(),
            namespace: "n".into(),
            service_account: "a".into(),
            netns: self.namespace.path.clone().into(),
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            strict: true,
        }
    }

    pub(super) async fn dump(&self) -> Vec<Vec<u8>> {
        let dump = || rules::dump().expect("a dump");
        self.namespace.open().run(dump).await.expect("work in the namespace")
    }
}

/// The listeners of the pod, as a proxy holds them.
fn held_by_a_proxy(pods: &Pods) -> Listeners {
    pods.captured["u"].hold.listeners().expect("opened by the agent").try_clone().expect("descriptors")
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.namespace.remove();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn entry(pods: &Pods, held: &Captured) -> Entry {
    pods.entry(&held.pod, held.ident).expect("its rules are the agent's")
}

fn kinds(changes: &[Change]) -> Vec<&'static str> {
    let kind = |change: &Change| match (change.message)().expect("descriptors can be duplicated").message {
        to_proxy::Message::PodAdded(_) => "added",
        to_proxy::Message::PodRemoved(_) => "removed",
        to_proxy::Message::PodLeaving(_) => "leaving",
        _ => "other",
    };
    changes.iter().map(kind).collect()
}

#[tokio::test]
async fn a_withdrawn_pod_is_as_it_was_before() {
    let bed = Bed::new("withdrawn");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    assert_eq!(kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await), ["added"]);
    assert_ne!(bed.dump().await, before, "rules are there");
    assert_eq!(kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await), [""; 0], "nothing changed");
    assert_eq!(pods.snapshot().len(), 1);
    assert_eq!(kinds(&pods.listed(Vec::new(), &HashSet::new(), true).await), ["removed"]);
    assert_eq!(bed.dump().await, before, "every byte is as before");
}

#[tokio::test]
async fn rules_outlive_the_agent_and_its_successor_withdraws_what_left_the_source() {
    let bed = Bed::new("successor");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    drop(pods);
    assert_ne!(bed.dump().await, before, "rules stay when the agent dies");
    bed.pods().listed(Vec::new(), &HashSet::new(), true).await;
    assert_eq!(bed.dump().await, before);
}

#[tokio::test]
async fn a_successor_adopts_the_listeners_that_a_proxy_kept() {
    let bed = Bed::new("adopts");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let kept = held_by_a_proxy(&pods);
    drop(pods);
    let mut successor = bed.pods();
    assert!(
        successor.listed(vec![bed.pod()], &HashSet::new(), true).await.is_empty(),
        "the ports are in use by the proxy"
    );
    assert_eq!(kinds(&successor.adopt(vec![("u".into(), kept)], true).await), ["added"]);
}

#[tokio::test]
async fn foreign_sockets_are_not_adopted() {
    let bed = Bed::new("foreign");
    let mut pods = bed.pods();
    let listed = bed.pod();
    // A port that is taken keeps the pod waiting, so that what is handed back is looked at.
    let take = || std::net::TcpListener::bind("[::]:15001").expect("a free port");
    let taken = bed.namespace.open().run(take).await.expect("work in the namespace");
    assert!(pods.listed(vec![listed], &HashSet::new(), true).await.is_empty());
    let own = || std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let forged = Listeners { outbound: own(), plaintext: own(), hbone: own() };
    assert!(pods.adopt(vec![("u".into(), forged)], true).await.is_empty());
    assert!(pods.captured.is_empty());
    drop(taken);
}

#[tokio::test]
async fn a_namespace_that_is_gone_lets_go_of_everything() {
    let bed = Bed::new("gone");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    bed.namespace.remove().expect("it was there");
    assert_eq!(kinds(&pods.look().await), ["removed"]);
    assert!(pods.captured.is_empty());
}

#[tokio::test]
async fn a_pod_that_changes_is_never_open() {
    let bed = Bed::new("changes");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let captured = bed.dump().await;
    // As a proxy does: it still holds the listeners while it hears of the change.
    let _kept = held_by_a_proxy(&pods);
    let changed = Pod { service_account: "b".into(), ..bed.pod() };
    assert_eq!(kinds(&pods.listed(vec![changed], &HashSet::new(), true).await), ["removed", "added"]);
    assert_eq!(bed.dump().await, captured, "the rules were not touched");
}

#[tokio::test]
async fn a_pod_that_is_found_by_another_path_is_never_open() {
    let bed = Bed::new("path");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let captured = bed.dump().await;
    let link = bed.folder.join("link");
    std::os::unix::fs::symlink(&bed.namespace.path, &link).expect("a link");
    let moved = Pod { netns: link.clone().into(), ..bed.pod() };
    assert_eq!(kinds(&pods.listed(vec![moved], &HashSet::new(), true).await), ["removed", "added"]);
    assert_eq!(bed.dump().await, captured, "the rules were not touched");
    drop(pods);
    let mut successor = bed.pods();
    successor.listed(vec![bed.pod()], &HashSet::new(), true).await;
    assert!(
        successor.record.entries().iter().any(|entry| entry.netns == link),
        "nothing was withdrawn there"
    );
    successor.listed(Vec::new(), &HashSet::new(), true).await;
    assert_eq!(bed.dump().await, before);
    assert!(successor.record.entries().is_empty());
}

#[tokio::test]
async fn only_what_is_known_to_be_unwanted_is_withdrawn() {
    let bed = Bed::new("unwanted");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let captured = bed.dump().await;
    let lost: HashSet<String> = ["u".to_owned()].into();
    assert_eq!(kinds(&pods.listed(Vec::new(), &lost, true).await), ["removed"]);
    assert_eq!(bed.dump().await, captured, "it is wanted, wherever it is");
    assert!(!port_in_use(&bed).await, "nothing keeps its namespace");
    drop(pods);
    let mut successor = bed.pods();
    successor.listed(Vec::new(), &HashSet::new(), false).await;
    assert_eq!(bed.dump().await, captured, "it may be wanted");
    successor.listed(Vec::new(), &lost, true).await;
    assert_eq!(bed.dump().await, captured, "it is wanted");
    successor.listed(Vec::new(), &HashSet::new(), true).await;
    assert_eq!(bed.dump().await, before);
}

#[tokio::test]
async fn a_pod_that_is_not_found_is_told_and_quarantined_unless_rules_hold_it() {
    let bed = Bed::new("lost");
    let mut pods = bed.pods();
    let address = bed.pod().addresses[0];
    let lost = |uid: &str, strict, reason: Option<&str>| Unlocated {
        uid: uid.to_owned(),
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        addresses: vec![address],
        strict,
        reason: reason.map(str::to_owned),
    };
    let states =
        |pods: &Pods| pods.statuses(None, |_| Vec::new()).iter().map(|one| one.state).collect::<Vec<_>>();
    pods.unlocated(vec![lost("u", true, None)]).await;
    assert!(pods.members().pods.is_empty() && states(&pods).is_empty(), "it starts, or ends");
    for (strict, shut) in [(false, false), (true, true)] {
        pods.unlocated(Vec::new()).await;
        pods.unlocated(vec![lost("u", strict, Some("no process"))]).await;
        assert_eq!(states(&pods), [State::Pending]);
        assert!(pods.members().pods.contains(&address), "it is probed");
        assert!(pods.members().quarantined.is_empty(), "it may still be found");
        tokio::time::pause();
        tokio::time::advance(guard::BOUND).await;
        tokio::time::resume();
        pods.unlocated(vec![lost("u", strict, Some("still no process"))]).await;
        assert_eq!(pods.members().quarantined.contains(&address), shut, "strict: {strict}");
    }
    // Of one that was captured before, the rules are there.
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    pods.listed(Vec::new(), &["u".to_owned()].into(), true).await;
    pods.unlocated(Vec::new()).await;
    pods.unlocated(vec![lost("u", true, Some("no process"))]).await;
    tokio::time::pause();
    tokio::time::advance(guard::BOUND).await;
    assert!(pods.members().quarantined.is_empty() && states(&pods) == [State::Pending]);
}

#[tokio::test]
async fn a_pod_that_is_not_captured_and_then_is_is_told_of() {
    let bed = Bed::new("told");
    let mut pods = bed.pods();
    let take = || std::net::TcpListener::bind("[::]:15008").expect("a free port");
    let taken = bed.namespace.open().run(take).await.expect("work in the namespace");
    assert!(pods.listed(vec![bed.pod()], &HashSet::new(), true).await.is_empty());
    let reports = pods.reports();
    let [report] = reports.as_slice() else { panic!("one report: {reports:?}") };
    assert!(report.warning && report.uid == "u" && report.message.contains("15008"), "{report:?}");
    drop(taken);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while kinds(&pods.look().await) != ["added"] {
        assert!(tokio::time::Instant::now() < deadline, "tried again");
        tokio::task::yield_now().await;
    }
    let reasons: Vec<_> = pods.reports().into_iter().map(|report| report.reason).collect();
    assert_eq!(reasons.last(), Some(&"Captured"));
}

#[tokio::test]
async fn who_holds_the_ports_of_a_captured_pod_has_a_moment_to_hand_them_over() {
    let bed = Bed::new("moment");
    let mut first = bed.pods();
    first.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let _kept = held_by_a_proxy(&first);
    drop(first);
    let mut second = bed.pods();
    second.listed(vec![bed.pod()], &HashSet::new(), true).await;
    assert!(second.reports().is_empty() && second.pending.contains_key("u"));
    let start = tokio::time::Instant::now();
    let reports = loop {
        assert!(start.elapsed() < 10 * guard::BOUND, "nobody is told");
        second.look().await;
        match second.reports() {
            none if none.is_empty() => tokio::task::yield_now().await,
            reports => break reports,
        }
    };
    assert!(start.elapsed() >= guard::BOUND);
    assert!(matches!(&reports[..], [one] if one.reason == "CaptureFailed"), "{reports:?}");
}

#[tokio::test]
async fn a_pod_that_leaves_while_its_ports_are_held_is_withdrawn() {
    let bed = Bed::new("leaves");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    // A proxy that outlives two agents keeps the ports, so that neither captures the pod anew.
    let _kept = held_by_a_proxy(&pods);
    drop(pods);
    let mut second = bed.pods();
    assert!(second.listed(vec![bed.pod()], &HashSet::new(), true).await.is_empty(), "the ports are in use");
    drop(second);
    let mut third = bed.pods();
    assert!(third.listed(vec![bed.pod()], &HashSet::new(), true).await.is_empty(), "the ports are in use");
    assert_ne!(bed.dump().await, before, "the rules are still there");
    third.listed(Vec::new(), &HashSet::new(), true).await;
    assert_eq!(bed.dump().await, before, "every byte is as before");
    assert!(third.record.entries().is_empty());
}

#[tokio::test]
async fn a_withdrawal_that_failed_is_tried_again_unless_the_pod_is_wanted_again() {
    let bed = Bed::new("retried");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let captured = bed.dump().await;
    let held = pods.captured.remove("u").expect("it was captured");
    pods.leaving.push(Leaving { entry: entry(&pods, &held), retry: Retry::now() });
    pods.captured.insert("u".into(), held);
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    pods.look().await;
    assert_eq!(bed.dump().await, captured, "wanted again, so nothing is removed");
    let held = pods.captured.remove("u").expect("it is captured");
    let entry = entry(&pods, &held);
    pods.leaving.push(Leaving { entry, retry: Retry::now() });
    pods.look().await;
    assert_eq!(bed.dump().await, before);
}

#[tokio::test]
async fn two_pods_never_share_a_namespace() {
    let bed = Bed::new("shared");
    let mut pods = bed.pods();
    let link = bed.folder.join("link");
    std::os::unix::fs::symlink(&bed.namespace.path, &link).expect("a link");
    let twin = Pod { uid: "twin".into(), netns: link.into(), ..bed.pod() };
    assert_eq!(kinds(&pods.listed(vec![bed.pod(), twin.clone()], &HashSet::new(), true).await), ["added"]);
    let captured = bed.dump().await;
    assert_eq!(kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await), [""; 0]);
    assert_eq!(bed.dump().await, captured, "the twin that leaves takes nothing with it");
    assert_eq!(kinds(&pods.listed(vec![twin], &HashSet::new(), true).await), ["removed", "added"]);
}

/// Whether somebody listens for the bed's pod, and nobody else could.
async fn port_in_use(bed: &Bed) -> bool {
    let bind = || std::net::TcpListener::bind("[::]:15008").is_err();
    bed.namespace.open().run(bind).await.expect("work in the namespace")
}

#[tokio::test]
async fn listeners_of_ones_own_exist_only_while_a_proxy_of_ones_own_does() {
    let bed = Bed::new("demand");
    let mut pods = bed.pods_of(Part::Rules { proxied: false });
    let before = bed.dump().await;
    assert_eq!(
        kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await),
        [""; 0],
        "no listeners, nothing to tell"
    );
    let captured = bed.dump().await;
    assert_ne!(captured, before, "rules are there");
    assert!(!port_in_use(&bed).await, "the port is the ztunnel's");
    assert_eq!(kinds(&pods.proxied(true).await), ["added"]);
    assert!(port_in_use(&bed).await);
    assert_eq!(pods.snapshot().len(), 1);
    assert!(pods.proxied(false).await.is_empty());
    assert!(!port_in_use(&bed).await);
    assert_eq!(bed.dump().await, captured, "the rules were not touched");
    pods.listed(Vec::new(), &HashSet::new(), true).await;
    assert_eq!(bed.dump().await, before);
}

#[tokio::test]
async fn a_ztunnel_that_holds_the_ports_costs_no_pod_its_rules() {
    let bed = Bed::new("held");
    let mut pods = bed.pods_of(Part::Rules { proxied: true });
    let take = || std::net::TcpListener::bind("[::]:15008").expect("a free port");
    let ztunnel = bed.namespace.open().run(take).await.expect("work in the namespace");
    let before = bed.dump().await;
    assert_eq!(kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await), [""; 0]);
    assert_ne!(bed.dump().await, before, "rules are there");
    assert!(matches!(pods.roster().get("u"), Some(Known::Captured(_))), "ztunnels are offered it");
    drop(ztunnel);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while kinds(&pods.look().await) != ["added"] {
        assert!(tokio::time::Instant::now() < deadline, "tried again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn beneath_istio_cni_no_rule_is_touched() {
    let bed = Bed::new("beneath");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    drop(pods);
    let foreign = bed.dump().await;
    let mut pods = bed.pods_of(Part::Sockets);
    let descriptor = std::fs::File::open(&bed.namespace.path).expect("it is there");
    let netns = Place::of_descriptor(descriptor.into()).expect("a namespace");
    assert_eq!(kinds(&pods.listed(vec![Pod { netns, ..bed.pod() }], &HashSet::new(), true).await), ["added"]);
    assert!(port_in_use(&bed).await);
    assert_eq!(kinds(&pods.listed(Vec::new(), &HashSet::new(), true).await), ["removed"]);
    assert!(!port_in_use(&bed).await);
    assert_eq!(bed.dump().await, foreign);
}

#[tokio::test]
async fn listeners_handed_back_before_the_first_list_are_kept_for_it() {
    let bed = Bed::new("early");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let kept = || held_by_a_proxy(&pods);
    let held = vec![("u".to_owned(), kept()), ("stranger".to_owned(), kept())];
    drop(pods);
    let mut successor = bed.pods();
    assert!(successor.adopt(held, false).await.is_empty());
    assert_eq!(
        kinds(&successor.listed(vec![bed.pod()], &HashSet::new(), true).await),
        ["added"],
        "although the ports are in use"
    );
    assert_eq!(successor.handed_back.len(), 1);
    successor.forget_handed_back();
    successor.listed(Vec::new(), &HashSet::new(), true).await;
    assert!(!port_in_use(&bed).await, "nothing is held back");
}

#[tokio::test]
async fn a_pod_that_leaves_is_withdrawn_once_its_connections_have_ended() {
    let bed = Bed::new("departs");
    let before = bed.dump().await;
    let mut pods = bed.pods();
    pods.joined(1);
    pods.joined(2);
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let captured = bed.dump().await.len();
    assert_eq!(kinds(&pods.listed(Vec::new(), &HashSet::new(), true).await), ["leaving"]);
    let released = bed.dump().await.len();
    assert!(released < captured && released > before.len(), "the capture is gone, the chains are there");
    assert_eq!(kinds(&pods.listed(Vec::new(), &HashSet::new(), true).await), [""; 0], "told once");
    assert_eq!(pods.snapshot().len(), 2, "a new proxy serves it, and hears that it leaves");

    assert_eq!(kinds(&pods.listed(vec![bed.pod()], &HashSet::new(), true).await), ["added"], "it comes back");
    assert_eq!(bed.dump().await.len(), captured);

    pods.listed(Vec::new(), &HashSet::new(), true).await;
    pods.drained(1, "u");
    assert_eq!(kinds(&pods.look().await), [""; 0], "the other proxy has connections");
    pods.left(2);
    assert_eq!(kinds(&pods.look().await), ["removed"]);
    assert_eq!(bed.dump().await, before, "every byte is as before");
}
