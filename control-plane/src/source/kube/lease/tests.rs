use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::tests::store::{DEADLINE, Fault, Store};
use super::*;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ztunnel-system/leases/ztunnel-controller";
const COLLECTION: &str = "/namespaces/ztunnel-system/leases";

/// As in production, and a tenth as long; a lease says whole seconds.
const HASTY: Terms = Terms {
    lease: Duration::from_millis(1500),
    acting: Duration::from_millis(1000),
    retry: Duration::from_millis(200),
    release: Duration::from_millis(1000),
};

/// A controller.
struct Running {
    stop: CancellationToken,
    leads: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// Counts who acts, and never more than one.
#[derive(Clone, Default)]
struct Acting(Arc<AtomicUsize>);

struct Act(Acting, watch::Sender<bool>);

impl Drop for Act {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
        self.1.send_replace(false);
    }
}

fn start(store: &Store, me: &str, acting: &Acting) -> Running {
    let at = Name::new("ztunnel-system", "ztunnel-controller");
    let candidate = Candidate::new(store.api_within(Duration::from_millis(400)), at, me.to_owned(), HASTY);
    let stop = CancellationToken::new();
    let (told, leads) = watch::channel(false);
    let acting = acting.clone();
    let acts = move || {
        let (acting, told) = (acting.clone(), told.clone());
        async move {
            let before = acting.0.fetch_add(1, Ordering::SeqCst);
            assert_eq!(before, 0, "two act at once");
            told.send_replace(true);
            let _act = Act(acting, told);
            std::future::pending::<()>().await;
        }
    };
    Running { task: tokio::spawn(candidate.run(stop.clone(), acts)), stop, leads }
}

async fn until(running: &mut Running, leads: bool) {
    let so = timeout(DEADLINE, running.leads.wait_for(|now| *now == leads)).await;
    so.expect("it comes to lead, or to lead no more").expect("it runs");
}

fn held_by(store: &Store) -> String {
    store.get(PATH).map(|lease| holder(&lease).to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn of_two_one_leads_and_the_other_takes_over_at_once_when_told_that_it_may() {
    let store = Store::start().await;
    let acting = Acting::default();
    let mut all = [start(&store, "a", &acting), start(&store, "b", &acting)];
    store.until("one holds it", |store| !held_by(store).is_empty()).await;
    let first = usize::from(held_by(&store) == "b");
    until(&mut all[first], true).await;
    let renewed = store.asked("PUT", COLLECTION).len();
    store.until("it is renewed", |store| store.asked("PUT", COLLECTION).len() > renewed + 5).await;
    assert!(!*all[1 - first].leads.borrow(), "the other one stands by");
    let lease = store.get(PATH).expect("it is there");
    assert_eq!(lease["spec"]["leaseTransitions"], 0);
    let (time, acquired) = (lease["spec"]["renewTime"].as_str(), lease["spec"]["acquireTime"].as_str());
    assert!(time.is_some_and(|time| time.len() == 27 && time.ends_with('Z')) && time > acquired, "{lease}");

    let begun = Instant::now();
    // While a renewal is under way, too.
    store.fail("PUT", COLLECTION, Fault::Lost);
    all[first].stop.cancel();
    timeout(DEADLINE, &mut all[first].task).await.expect("it ends").expect("no panic");
    until(&mut all[1 - first], true).await;
    assert!(begun.elapsed() < HASTY.lease, "{:?}: it waited for the lease to run out", begun.elapsed());
    assert_eq!(store.get(PATH).expect("it is there")["spec"]["leaseTransitions"], 1);
}

#[tokio::test]
async fn whoever_dies_is_followed_when_its_lease_has_run_out_and_not_before() {
    let store = Store::start().await;
    let acting = Acting::default();
    let mut first = start(&store, "a", &acting);
    until(&mut first, true).await;
    let mut second = start(&store, "b", &acting);
    let gets = store.asked("GET", COLLECTION).len();
    store.until("the second has seen it", |store| store.asked("GET", COLLECTION).len() > gets + 1).await;
    first.task.abort();
    let begun = Instant::now();
    until(&mut second, true).await;
    let waited = begun.elapsed();
    assert!(waited > HASTY.lease - HASTY.retry * 2 && waited < HASTY.lease * 3, "{waited:?}");
    assert_eq!(held_by(&store), "b");
}

#[tokio::test]
async fn who_cannot_renew_acts_no_more_before_another_may() {
    for fault in [
        Fault::Stall,
        Fault::Refuse(500, "etcd"),
        Fault::Refuse(403, "no"),
        Fault::Hang,
        Fault::Say("x".into()),
    ] {
        let store = Store::start().await;
        let acting = Acting::default();
        let mut first = start(&store, "a", &acting);
        until(&mut first, true).await;
        let puts = store.asked("PUT", COLLECTION).len();
        store.until("it is renewed", |store| store.asked("PUT", COLLECTION).len() > puts).await;
        for _ in 0..20 {
            store.fail("PUT", COLLECTION, fault.clone());
        }
        let begun = Instant::now();
        until(&mut first, false).await;
        let waited = begun.elapsed();
        assert!(waited < HASTY.acting + HASTY.retry, "{fault:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_renewal_that_was_done_and_not_said_takes_nothing_away() {
    let store = Store::start().await;
    let acting = Acting::default();
    let mut only = start(&store, "a", &acting);
    until(&mut only, true).await;
    store.fail("PUT", COLLECTION, Fault::Lost);
    let puts = store.asked("PUT", COLLECTION).len();
    store.until("it goes on", |store| store.asked("PUT", COLLECTION).len() > puts + 8).await;
    assert!(*only.leads.borrow_and_update() && !only.leads.has_changed().expect("it runs"));
    assert_eq!(store.get(PATH).expect("it is there")["spec"]["leaseTransitions"], 0);
    // Taken away by someone with the right to.
    let mut lease = store.get(PATH).expect("it is there");
    lease["spec"]["holderIdentity"] = "someone".into();
    store.put(PATH, lease);
    until(&mut only, false).await;
    // Deleted: whoever comes first makes it again.
    store.delete(PATH);
    until(&mut only, true).await;
    assert_eq!(held_by(&store), "a");
}

#[tokio::test]
async fn a_missing_rule_is_named() {
    let store = Store::start().await;
    let at = Name::new("ztunnel-system", "ztunnel-controller");
    let mut candidate = Candidate::new(store.api(), at, "a".to_owned(), HASTY);
    store.fail("POST", COLLECTION, Fault::Refuse(403, "leases is forbidden"));
    let error = candidate.try_to_acquire().await.expect_err("it may not").to_string();
    assert_eq!(
        error,
        "cannot create leases in ztunnel-system: 403; the Role or ClusterRole of the controller's service account needs the \
         verb create on leases of the API group \"coordination.k8s.io\" (leases is forbidden)"
    );
    store.fail("POST", COLLECTION, Fault::Refuse(409, "exists"));
    assert!(matches!(candidate.try_to_acquire().await, Err(Trouble::Conflict(_))));
    candidate.try_to_acquire().await.expect("it is asked for again").expect("it is free");
}
