//! Scripted peers in virtual time: the clock jumps to the next deadline whenever everybody waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use prost_types::Any;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;
use crate::delta::Mode;
use crate::proto;
use crate::resource::{Rejection, TypeUrl};
use crate::subscription::Outcome;
use crate::transport::Error;

mod demands;

const ADDRESS: &str = "type/address";
const POLICY: &str = "type/policy";

/// What the next try to open a stream meets. An open stream when the script is over.
enum Opening {
    Refused,
    Hangs,
}

struct Scripted {
    script: VecDeque<Opening>,
    peers: mpsc::UnboundedSender<Peer>,
}

/// The server's end of one stream.
struct Peer {
    opened: Instant,
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, tonic::Status>>,
}

impl Transport for Scripted {
    async fn open(&mut self) -> Result<Stream, Error> {
        match self.script.pop_front() {
            Some(Opening::Hangs) => std::future::pending().await,
            Some(Opening::Refused) => {
                Err(Error::Connect { address: "peer".to_owned(), reason: "refused".to_owned() })
            }
            None => {
                let (requests, taken) = mpsc::channel(4);
                let (responses, mut sent) = mpsc::channel(4);
                let peer = Peer { opened: Instant::now(), requests: taken, responses };
                self.peers.send(peer).map_err(drop).expect("the test listens");
                let responses = futures::stream::poll_fn(move |context| sent.poll_recv(context));
                Ok(Stream { requests, responses: Box::pin(responses) })
            }
        }
    }
}

impl Peer {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        self.requests.recv().await.expect("the client still asks")
    }

    async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.expect("the client still listens");
    }

    /// Sends and takes the answer, which is checked to be one.
    async fn exchange(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let nonce = response.nonce.clone();
        self.send(response).await;
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }

    /// The first requests, answered with nothing.
    async fn greet(&mut self) {
        for nonce in ["g1", "g2"] {
            let type_url = self.request().await.type_url;
            self.send(response(&type_url, nonce, &[])).await;
        }
        for _ in 0..2 {
            assert!(self.request().await.response_nonce.starts_with('g'));
        }
    }
}

fn response(type_url: &str, nonce: &str, names: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |name: &&str| proto::Resource {
        name: name.to_string(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: name.as_bytes().to_vec() }),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(resource).collect(),
        ..Default::default()
    }
}

/// A running client, what its sink applied, and the peers that it opens streams to.
struct Bench {
    handle: Handle,
    applied: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    peers: mpsc::UnboundedReceiver<Peer>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

fn start(address: Mode, script: Vec<Opening>) -> Bench {
    let (peers, incoming) = mpsc::unbounded_channel();
    let applied = Arc::new(Mutex::new(BTreeMap::new()));
    let kept = applied.clone();
    let sink = move |update: &mut Update| {
        let mut kept = kept.lock().expect("no panic while it is held");
        let verdict = |_: &crate::ResourceName, body: &[u8]| {
            if body.starts_with(b"bad") { Err("it is bad") } else { Ok(body.to_vec()) }
        };
        let (good, rejected) = update.decode(verdict);
        kept.extend(good.into_iter().map(|decoded| (decoded.name.to_string(), decoded.value)));
        update.removed().iter().for_each(|name| drop(kept.remove(name.as_str())));
        rejected
    };
    let types = vec![(ADDRESS.into(), address), (POLICY.into(), Mode::Wildcard)];
    let settings = Settings::new(proto::Node::default(), types);
    let (client, handle) = Client::new(settings, Scripted { script: script.into(), peers }, sink);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(client.run(async { drop(stopped.await) }));
    Bench { handle, applied, peers: incoming, stop, task }
}

impl Bench {
    async fn peer(&mut self) -> Peer {
        self.peers.recv().await.expect("the client runs")
    }

    async fn greeted(&mut self) -> Peer {
        let mut peer = self.peer().await;
        peer.greet().await;
        peer
    }

    fn names(&self) -> Vec<String> {
        self.applied.lock().expect("no panic while it is held").keys().cloned().collect()
    }

    fn status(&self) -> Status {
        self.handle.status.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn updates_are_applied_before_they_are_acknowledged() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.peer().await;
    let (first, second) = (peer.request().await, peer.request().await);
    assert_eq!((first.type_url.as_str(), second.type_url.as_str()), (ADDRESS, POLICY));
    assert!(peer.exchange(response(ADDRESS, "n1", &["a", "b"])).await.error_detail.is_none());
    assert_eq!(bench.names(), ["a", "b"]);
    assert!(!*bench.handle.synced.borrow(), "one type is missing");
    peer.exchange(response(POLICY, "n2", &[])).await;
    bench.handle.synced.wait_for(|synced| *synced).await.expect("the client runs");
    let status = bench.status();
    assert!(status.is_connected() && status.bytes_received > 0 && status.bytes_sent > 0);
    assert_eq!((status.types[0].held, status.types[0].synced, status.counters.acks), (2, true, 2));
}

#[tokio::test(start_paused = true)]
async fn the_good_ones_of_a_refused_response_are_applied() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.greeted().await;
    let answer = peer.exchange(response(ADDRESS, "n1", &["a", "bad-1", "b", "bad-2"])).await;
    let message = answer.error_detail.expect("a refusal").message;
    assert_eq!(message, "bad-1: it is bad; bad-2: it is bad");
    assert_eq!(bench.names(), ["a", "b"]);
    let address = &bench.status().types[0];
    assert_eq!((address.nacks, address.rejected, address.held), (1, 2, 2));
    assert_eq!(address.last_rejection, Some(Rejection::new("bad-1", "it is bad")));
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_is_resumed_and_nothing_comes_again() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.greeted().await;
    let names: Vec<_> = (0..1000).map(|index| format!("w{index}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    peer.exchange(response(ADDRESS, "n1", &names)).await;
    drop(peer);
    let mut peer = bench.peer().await;
    let held = peer.request().await.initial_resource_versions;
    let changed: Vec<_> = names.iter().filter(|name| held.get(**name).is_none_or(|it| it != "1")).collect();
    assert!(changed.is_empty(), "{} resources would be sent again", changed.len());
    assert!(peer.request().await.initial_resource_versions.is_empty());
    let mut gone = response(ADDRESS, "m1", &[]);
    gone.removed_resources = vec!["w7".to_owned()];
    peer.exchange(gone).await;
    assert_eq!(bench.names().len(), 999);
    assert_eq!(bench.status().last_error.as_deref(), Some("the server closed the stream"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_in_the_middle_of_a_response_changes_nothing() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.greeted().await;
    peer.exchange(response(ADDRESS, "n1", &["a"])).await;
    let broken = tonic::Status::unknown("h2 protocol error: error reading a body from connection");
    peer.responses.send(Err(broken)).await.expect("the client listens");
    let mut peer = bench.greeted().await;
    assert_eq!(bench.names(), ["a"]);
    assert!(bench.status().last_error.expect("an error").contains("error reading a body"));
    peer.exchange(response(ADDRESS, "n2", &["b"])).await;
    assert_eq!(bench.names(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_left_at_growing_intervals() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut before = bench.peer().await;
    let mut waits = Vec::new();
    for _ in 0..13 {
        let peer = bench.peer().await;
        waits.push((peer.opened - before.opened).saturating_sub(Duration::from_secs(60)));
        before = peer;
    }
    let error = bench.status().last_error.expect("an error");
    assert_eq!(error, "the server answered nothing for type/address, type/policy in 60 s");
    let longest = Duration::from_secs(15) + Duration::from_millis(2);
    assert!(waits.windows(3).all(|three| three[0] < three[2] || three[2] > longest / 2), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= longest), "{waits:?}");
    assert!(!*bench.handle.synced.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_tried_again() {
    let began = Instant::now();
    let mut script: Vec<_> = (0..20).map(|_| Opening::Refused).collect();
    script.push(Opening::Hangs);
    let mut bench = start(Mode::Wildcard, script);
    bench.handle.status.wait_for(|status| status.counters.disconnects == 20).await.expect("the client runs");
    let error = bench.status().last_error.expect("an error");
    assert_eq!(error, "the xDS server peer cannot be reached: refused");
    assert!(matches!(bench.status().connection, Connection::Waiting { .. }));
    let peer = bench.peer().await;
    let error = bench.status().last_error.expect("an error");
    assert_eq!(error, "the xDS server did not take a connection in 15 s");
    // 20 s of doubling and 10 times 15 s, of which jitter takes up to a half; and 15 s for the one that hung.
    let took = (peer.opened - began).as_secs();
    assert!((90..200).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_is_left() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let peer = bench.peer().await;
    for index in 0..100 {
        let unread = response(ADDRESS, &index.to_string(), &["a"]);
        if peer.responses.try_send(Ok(unread)).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let next = bench.peer().await;
    assert_eq!((next.opened - peer.opened).as_secs(), 30);
    assert_eq!(bench.status().last_error.as_deref(), Some("the server did not read its requests for 30 s"));
    let answered = bench.status().types[0].responses;
    assert!(
        answered <= (UNSENT_ANSWERS + 4) as u64,
        "{answered} responses were read although nobody read ours"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_which_only_one_half_is_left_is_left() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.greeted().await;
    peer.requests.close();
    peer.send(response(ADDRESS, "n1", &["a"])).await;
    let next = bench.peer().await;
    assert_eq!((next.opened - peer.opened).as_secs(), 30);
    assert_eq!(bench.names(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_of_an_unknown_type_disturbs_nothing() {
    let mut bench = start(Mode::Wildcard, vec![]);
    let mut peer = bench.greeted().await;
    let answer = peer.exchange(response("type/unknown", "u1", &["x"])).await;
    assert!(answer.error_detail.is_none());
    peer.exchange(response(ADDRESS, "n1", &["a"])).await;
    assert_eq!(bench.names(), ["a"]);
    assert_eq!(bench.status().counters.unknown_type, 1);
}

#[tokio::test(start_paused = true)]
async fn it_runs_until_it_is_told_to_stop() {
    let mut bench = start(Mode::OnDemand, vec![]);
    let mut peer = bench.greeted().await;
    let demand = bench.handle.demand.clone();
    let waiting = tokio::spawn(async move { demand.fetch(&ADDRESS.into(), "k").await });
    peer.request().await;
    bench.stop.send(()).expect("the client runs");
    bench.task.await.expect("no panic");
    assert!(peer.requests.recv().await.is_none(), "the stream is closed");
    assert_eq!(waiting.await.expect("no panic"), Outcome::Unavailable);
    assert_eq!(bench.handle.demand.fetch(&ADDRESS.into(), "k").await, Outcome::Unavailable);
}
