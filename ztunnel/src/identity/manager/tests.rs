use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::held::MOST_PREFETCHED;
use super::*;
use crate::tls::test_ca::{Leaf, TestCa, identity};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const DEADLINE: Duration = Duration::from_secs(20);

/// A CA in memory whose mood the test sets.
struct FakeCa {
    ca: TestCa,
    lifetime: Duration,
    broken: AtomicBool,
    /// Answers as an unreachable CA does.
    away: AtomicBool,
    /// While closed, requests hang.
    open: tokio::sync::watch::Sender<bool>,
    running: AtomicUsize,
    most_running: AtomicUsize,
    asked: Mutex<Vec<Identity>>,
}

impl FakeCa {
    fn new(lifetime: Duration) -> Arc<Self> {
        Arc::new(Self {
            ca: TestCa::new("root"),
            lifetime,
            broken: AtomicBool::new(false),
            away: AtomicBool::new(false),
            open: tokio::sync::watch::Sender::new(true),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            asked: Mutex::default(),
        })
    }

    fn requests(&self) -> usize {
        self.asked.lock().expect("no test panics with the lock").len()
    }
}

impl Issuer for Arc<FakeCa> {
    async fn fetch(&self, identity: &Identity) -> Result<Svid, ca_client::Error> {
        self.asked.lock().expect("no test panics with the lock").push(identity.clone());
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        self.open.subscribe().wait_for(|open| *open).await.expect("the sender lives in self");
        self.running.fetch_sub(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            let path = "(broken on purpose)".to_owned();
            return Err(ca_client::Error::Token { path, reason: "the test says so".to_owned() });
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(ca_client::Error::Refused {
                address: "(away)".to_owned(),
                identity: identity.clone(),
                status: Box::new(tonic::Status::unavailable("away")),
            });
        }
        let not_before = SystemTime::now();
        let leaf = Leaf { not_before, not_after: not_before + self.lifetime, ..Leaf::of(identity) };
        Ok(self.ca.svid_trusting(&leaf, &[]))
    }
}

struct Running {
    handle: Handle,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

fn run(ca: &Arc<FakeCa>, grace: Duration) -> Running {
    let (mut manager, handle) = Manager::with_issuer(Arc::clone(ca), ca.ca.1.clone());
    manager.grace = grace;
    let stop = CancellationToken::new();
    Running { handle, stop: stop.clone(), worker: tokio::spawn(manager.run(stop)) }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_first_holder_starts_the_request_and_all_share_the_answer() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    let running = run(&ca, GRACE);
    let first = running.handle.pod_svid(identity(CART));
    let second = running.handle.pod_svid(identity(CART));
    let (a, b) = tokio::join!(first.wait(DEADLINE), second.wait(DEADLINE));
    let (a, b) = (a.expect("a certificate"), b.expect("a certificate"));
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!(a.identity(), &identity(CART));
    assert_eq!(ca.requests(), 1);
    assert_eq!(running.handle.counters(), Counters { fetched: 1, held: 1, ..Counters::default() });
    let dump = serde_json::to_value(running.handle.certificates()).expect("it serializes");
    assert_eq!((&dump[0]["identity"], &dump[0]["state"]), (&CART.into(), &"Available".into()));
    assert!(dump[0]["certChain"][0]["serialNumber"].is_string());
}

#[tokio::test]
async fn a_waiter_gives_up_at_its_deadline() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    ca.open.send_replace(false);
    let running = run(&ca, GRACE);
    let pod = running.handle.pod_svid(identity(CART));
    let error = pod.wait(Duration::from_millis(20)).await.expect_err("the CA hangs");
    assert!(matches!(error, Unavailable::Pending { .. }), "{error}");
    assert_eq!(running.handle.certificates()[0].state, "Initializing");
    ca.open.send_replace(true);
    pod.wait(DEADLINE).await.expect("the CA answers now");
}

#[tokio::test]
async fn after_a_failure_callers_are_told_at_once_until_a_retry_succeeds() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    ca.broken.store(true, Ordering::SeqCst);
    let running = run(&ca, GRACE);
    let pod = running.handle.pod_svid(identity(CART));
    let error = pod.wait(DEADLINE).await.expect_err("the first request fails");
    assert!(error.to_string().contains("the test says so"), "{error}");
    assert!(matches!(pod.wait(DEADLINE).await, Err(Unavailable::Failed { .. })), "told at once");
    assert!(running.handle.certificates()[0].state.starts_with("Unavailable: "));
    ca.broken.store(false, Ordering::SeqCst);
    until("the retry succeeds", || pod.current(SystemTime::now()).is_ok()).await;
    assert!(running.handle.counters().failed >= 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_and_the_old_one_served_until_its_end() {
    let ca = FakeCa::new(Duration::from_secs(6));
    let running = run(&ca, GRACE);
    let pod = running.handle.pod_svid(identity(CART));
    let first = pod.wait(DEADLINE).await.expect("a certificate");
    until("renewed", || pod.current(SystemTime::now()).is_ok_and(|svid| !Arc::ptr_eq(&svid, &first))).await;
    assert!(SystemTime::now() < first.not_after(), "renewed before its end");

    ca.broken.store(true, Ordering::SeqCst);
    let last = pod.current(SystemTime::now()).expect("a certificate");
    until("a renewal fails", || running.handle.counters().failed > 0).await;
    assert!(pod.current(last.not_after()).is_ok(), "served until its end");
    let after = last.not_after() + Duration::from_millis(1);
    assert!(matches!(pod.current(after), Err(Unavailable::Expired { .. })), "never after it");
    until("the end is noted", || running.handle.counters().expired == 1).await;
    assert!(matches!(pod.wait(DEADLINE).await, Err(Unavailable::Expired { .. })), "told at once");

    ca.broken.store(false, Ordering::SeqCst);
    until("recovered", || pod.current(SystemTime::now()).is_ok()).await;
}

#[tokio::test]
async fn the_last_holder_gone_an_identity_is_forgotten_after_the_grace() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    let running = run(&ca, Duration::from_millis(50));
    let pod = running.handle.pod_svid(identity(CART));
    let copy = pod.clone();
    pod.wait(DEADLINE).await.expect("a certificate");
    drop(pod);
    assert!(copy.current(SystemTime::now()).is_ok());
    drop(copy);
    until("forgotten", || running.handle.counters().held == 0).await;
    running.handle.pod_svid(identity(CART)).wait(DEADLINE).await.expect("asked for again");
    assert_eq!(ca.requests(), 2);
}

#[tokio::test]
async fn a_pod_that_comes_back_within_the_grace_costs_no_request() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    let running = run(&ca, GRACE);
    for _ in 0..3 {
        let pod = running.handle.pod_svid(identity(CART));
        pod.wait(DEADLINE).await.expect("a certificate");
    }
    assert_eq!(ca.requests(), 1);
}

#[tokio::test]
async fn eight_requests_at_most_run_and_those_waited_for_go_first() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    ca.open.send_replace(false);
    let running = run(&ca, GRACE);
    let name = |n: usize| identity(&format!("spiffe://cluster.local/ns/shop/sa/app-{n}"));
    let pods: Vec<_> = (0..40).map(|n| running.handle.pod_svid(name(n))).collect();
    until("the first eight run", || ca.requests() == IN_FLIGHT).await;
    let asked = ca.asked.lock().expect("no test panics with the lock").clone();
    let urgent = pods.iter().find(|pod| !asked.contains(pod.identity())).expect("32 are queued").clone();
    let waiter = tokio::spawn({
        let urgent = urgent.clone();
        async move { urgent.wait(DEADLINE).await }
    });
    let entry = Arc::clone(&urgent.0.entry);
    until("it is waited for", || entry.waiters.load(Ordering::Relaxed) == 1).await;
    ca.open.send_replace(true);
    waiter.await.expect("no panic").expect("a certificate");
    assert_eq!(&ca.asked.lock().expect("no test panics with the lock")[IN_FLIGHT], urgent.identity());
    for pod in &pods {
        pod.wait(DEADLINE).await.expect("a certificate");
    }
    assert!(ca.most_running.load(Ordering::SeqCst) <= IN_FLIGHT);
}

#[tokio::test]
async fn holders_are_told_when_the_manager_stops() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    ca.open.send_replace(false);
    let running = run(&ca, GRACE);
    let pod = running.handle.pod_svid(identity(CART));
    let waiter = tokio::spawn({
        let pod = pod.clone();
        async move { pod.wait(DEADLINE).await }
    });
    running.stop.cancel();
    running.worker.await.expect("the worker ends");
    assert!(matches!(waiter.await.expect("no panic"), Err(Unavailable::Stopped { .. })));
    let late = running.handle.pod_svid(identity("spiffe://cluster.local/ns/shop/sa/late"));
    assert!(matches!(late.wait(DEADLINE).await, Err(Unavailable::Stopped { .. })));
}

#[tokio::test]
async fn wanted_identities_are_fetched_ahead_and_forgotten_when_no_longer_wanted() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    let running = run(&ca, Duration::from_millis(20));
    let bank = identity("spiffe://cluster.local/ns/shop/sa/bank");
    running.handle.prefetch(&HashSet::from([identity(CART), bank.clone()]));
    until("both are there", || running.handle.ends().len() == 2).await;
    let pod = running.handle.pod_svid(identity(CART));
    pod.current(SystemTime::now()).expect("there before the pod");
    assert_eq!(ca.requests(), 2);
    running.handle.prefetch(&HashSet::new());
    until("the one without a pod is forgotten", || running.handle.counters().held == 1).await;
    assert!(running.handle.ends().iter().all(|(name, _)| name == CART));
    running.handle.prefetch(&HashSet::from([identity(CART)]));
    drop(pod);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(running.handle.counters().held, 1, "kept while it is wanted");
    assert_eq!(ca.requests(), 2);
    let many = (0..2 * MOST_PREFETCHED).map(|n| identity(&format!("spiffe://cluster.local/ns/x/sa/a{n}")));
    running.handle.prefetch(&many.collect());
    assert!(running.handle.counters().held <= MOST_PREFETCHED as u64 + 1);
}

#[tokio::test]
async fn a_revoked_certificate_of_our_own_is_replaced() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    let running = run(&ca, GRACE);
    let pod = running.handle.pod_svid(identity(CART));
    let first = pod.wait(DEADLINE).await.expect("a certificate");
    ca.ca.1.deliver(&ca.ca.crl(&[&first.serial()])).expect("a CRL");
    until("replaced", || pod.current(SystemTime::now()).is_ok_and(|svid| !Arc::ptr_eq(&svid, &first))).await;
    assert_eq!(running.handle.counters().revoked, 1);
    assert!(pod.current(SystemTime::now()).expect("a certificate").revoked().is_ok());
    assert_eq!(ca.requests(), 2);
}

#[tokio::test]
async fn when_the_ca_answers_one_all_that_were_put_off_try_again_soon() {
    let ca = FakeCa::new(Duration::from_secs(3600));
    ca.away.store(true, Ordering::SeqCst);
    let (mut manager, handle) = Manager::with_issuer(Arc::clone(&ca), ca.ca.1.clone());
    manager.grace = GRACE;
    let name = |n: usize| identity(&format!("spiffe://cluster.local/ns/shop/sa/app-{n}"));
    let pods: Vec<_> = (0..5).map(|n| handle.pod_svid(name(n))).collect();
    let now = SystemTime::now();
    manager.follow_table(now);
    for pod in &pods {
        for _ in 0..9 {
            let task = manager.tasks.get_mut(pod.identity()).expect("it is in the table");
            (task.in_flight, task.outage) = (false, true);
            task.schedule.failed(now, 0.5);
        }
    }
    assert!(manager.tasks.values().all(|task| task.schedule.wait(now) > Duration::from_secs(100)));
    ca.away.store(false, Ordering::SeqCst);
    let svid = ca.fetch(pods[0].identity()).await;
    manager.settle(pods[0].identity(), svid);
    let late = manager.tasks.values().filter(|task| task.validity.is_none());
    let waits: Vec<_> = late.map(|task| task.schedule.wait(SystemTime::now())).collect();
    assert!(waits.len() == 4 && waits.iter().all(|wait| *wait <= Duration::from_secs(1)), "{waits:?}");
}
