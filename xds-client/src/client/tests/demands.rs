//! Demands from other threads, in virtual time.

use super::*;

/// A bench whose peer has been greeted.
async fn on_demand() -> (Bench, Peer) {
    let mut bench = start(Mode::OnDemand, vec![]);
    let peer = bench.greeted().await;
    (bench, peer)
}

fn fetch(bench: &Bench, key: &str) -> tokio::task::JoinHandle<(Outcome, Instant)> {
    let (demand, key) = (bench.handle.demand.clone(), key.to_owned());
    tokio::spawn(async move { (demand.fetch(&TypeUrl::from(ADDRESS), &key).await, Instant::now()) })
}

async fn outcome(fetched: tokio::task::JoinHandle<(Outcome, Instant)>) -> Outcome {
    fetched.await.expect("no panic").0
}

#[tokio::test(start_paused = true)]
async fn what_was_found_has_been_applied() {
    let (bench, mut peer) = on_demand().await;
    let waiting: Vec<_> = (0..10).map(|_| fetch(&bench, "net/10.0.0.1")).collect();
    assert_eq!(peer.request().await.resource_names_subscribe, ["net/10.0.0.1"]);
    let mut found = response(ADDRESS, "n1", &["uid"]);
    found.resources[0].aliases = vec!["net/10.0.0.1".to_owned()];
    peer.exchange(found).await;
    for fetched in waiting {
        assert_eq!(outcome(fetched).await, Outcome::Found);
    }
    assert_eq!(bench.names(), ["uid"]);
    assert_eq!(outcome(fetch(&bench, "uid")).await, Outcome::Found, "the server is not asked again");
    assert!(peer.requests.is_empty());
}

#[tokio::test(start_paused = true)]
async fn absent_and_rejected_are_told_apart() {
    let (bench, mut peer) = on_demand().await;
    let (stranger, bad) = (fetch(&bench, "stranger"), fetch(&bench, "bad"));
    peer.request().await;
    let mut told = response(ADDRESS, "n1", &["bad"]);
    told.removed_resources = vec!["stranger".to_owned()];
    peer.send(told).await;
    assert_eq!(outcome(stranger).await, Outcome::Absent);
    assert_eq!(outcome(bad).await, Outcome::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_nobody_answers_ends_in_time() {
    let (bench, mut peer) = on_demand().await;
    let began = Instant::now();
    let (outcome, ended) = fetch(&bench, "k").await.expect("no panic");
    assert_eq!((outcome, (ended - began).as_secs()), (Outcome::TimedOut, 5));
    assert_eq!(peer.request().await.resource_names_subscribe, ["k"]);
    assert_eq!(peer.request().await.resource_names_unsubscribe, ["k"]);
}

#[tokio::test(start_paused = true)]
async fn a_demand_outlives_its_stream() {
    let (mut bench, mut peer) = on_demand().await;
    let waiting = fetch(&bench, "k");
    peer.request().await;
    drop(peer);
    let mut peer = bench.peer().await;
    assert_eq!(peer.request().await.resource_names_subscribe, ["*", "k"]);
    peer.send(response(ADDRESS, "m1", &["k"])).await;
    assert_eq!(outcome(waiting).await, Outcome::Found);
}

#[tokio::test(start_paused = true)]
async fn without_a_server_a_demand_is_unavailable() {
    let bench = start(Mode::OnDemand, vec![Opening::Hangs]);
    let began = Instant::now();
    let (outcome, ended) = fetch(&bench, "k").await.expect("no panic");
    assert_eq!((outcome, (ended - began).as_secs()), (Outcome::Unavailable, 5));
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_names_nothing_is_unavailable_at_once() {
    let (bench, _peer) = on_demand().await;
    let began = Instant::now();
    for (type_url, key) in [(ADDRESS, "*"), (ADDRESS, ""), (POLICY, "k"), ("type/unknown", "k")] {
        let outcome = bench.handle.demand.fetch(&type_url.into(), key).await;
        assert_eq!(outcome, Outcome::Unavailable, "{type_url} {key}");
    }
    assert_eq!(Instant::now(), began);
}

#[tokio::test(start_paused = true)]
async fn more_demands_than_fit_are_unavailable_and_the_others_are_served() {
    let (bench, mut peer) = on_demand().await;
    let waiting: Vec<_> = (0..5000).map(|index| fetch(&bench, &format!("k{index}"))).collect();
    let mut asked = 0;
    while asked < 4096 {
        let keys = peer.request().await.resource_names_subscribe;
        asked += keys.len();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        if !keys.is_empty() {
            peer.send(response(ADDRESS, "n", &keys)).await;
        }
    }
    let mut outcomes = BTreeMap::new();
    for fetched in waiting {
        *outcomes.entry(format!("{:?}", outcome(fetched).await)).or_insert(0) += 1;
    }
    assert_eq!(outcomes, BTreeMap::from([("Found".to_owned(), 4096), ("Unavailable".to_owned(), 904)]));
}
