//! The client against a scripted server, over real TLS on a loopback port.

mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost_types::Any;
use server::{Peer, Root, SOON, Session, dying_relay};
use tokio::sync::oneshot;
use xds_client::client::{Client, Handle, Status};
use xds_client::delta::Settings;
use xds_client::proto::{self, DeltaDiscoveryResponse};
use xds_client::transport::{Config, Grpc, RootSource, Secret, TokenSource};
use xds_client::{Mode, Node, Outcome, ResourceName, Update};

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";

type Applied = Arc<Mutex<BTreeMap<String, usize>>>;

struct Running {
    handle: Handle,
    /// Names, and the sizes of the bodies.
    applied: Applied,
    _stop: oneshot::Sender<()>,
}

fn settings(mode: Mode) -> Settings {
    let node = Node { pod_name: "ztunnel-x".to_owned(), ..Default::default() };
    Settings::new(node.to_proto().expect("no JSON in it"), vec![(ADDRESS.into(), mode)])
}

fn start(settings: Settings, config: Config) -> Running {
    let applied = Applied::default();
    let kept = applied.clone();
    let sink = move |update: &mut Update| {
        let (good, rejected) =
            update.decode(
                |_: &ResourceName, body| {
                    if body.starts_with(b"bad") { Err("it is bad") } else { Ok(body.len()) }
                },
            );
        let mut kept = kept.lock().expect("no panic while it is held");
        kept.extend(good.into_iter().map(|decoded| (decoded.name.to_string(), decoded.value)));
        rejected
    };
    let transport = Grpc::new(config).expect("the configuration is good");
    let (client, handle) = Client::new(settings, transport, sink);
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(client.run(async { drop(stopped.await) }));
    Running { handle, applied, _stop: stop }
}

impl Running {
    async fn status(&mut self, condition: impl FnMut(&Status) -> bool) -> Status {
        let seen = tokio::time::timeout(SOON, self.handle.status.wait_for(condition)).await;
        seen.expect("in time").expect("the client runs").clone()
    }

    async fn error(&mut self, part: &str) -> String {
        let matching = |status: &Status| status.last_error.as_ref().is_some_and(|it| it.contains(part));
        self.status(matching).await.last_error.expect("it was looked for")
    }

    fn applied(&self) -> BTreeMap<String, usize> {
        self.applied.lock().expect("no panic while it is held").clone()
    }
}

fn config(peer: &Peer, host: &str, root: &Root) -> Config {
    Config::new(format!("https://{host}:{}", peer.address.port()), RootSource::Inline(root.pem()))
}

fn response(nonce: &str, resources: &[(&str, usize)]) -> DeltaDiscoveryResponse {
    let resource = |(name, size): &(&str, usize)| proto::Resource {
        name: name.to_string(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: ADDRESS.to_owned(), value: vec![b'x'; *size] }),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        type_url: ADDRESS.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources.iter().map(resource).collect(),
        ..Default::default()
    }
}

/// Sends, and takes the answer.
async fn exchange(session: &mut Session, response: DeltaDiscoveryResponse) -> proto::DeltaDiscoveryRequest {
    let nonce = response.nonce.clone();
    session.send(response).await;
    let answer = session.request().await;
    assert_eq!(answer.response_nonce, nonce);
    answer
}

/// A file of this test run.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("xds-loopback-{}-{name}", std::process::id())));
        file.write(text);
        file
    }

    /// As a kubelet does: whoever reads meanwhile sees the old or the new text.
    fn write(&self, text: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, text).expect("the file can be written");
        std::fs::rename(&new, &self.0).expect("the file can be replaced");
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn every_stream_says_who_asks_and_resumes() {
    let root = Root::new("root");
    let mut peer = Peer::start(0, Some(root.certify(&["127.0.0.1"]))).await;
    let token = File::new("token", "first\n");
    let mut running = start(
        settings(Mode::Wildcard),
        Config {
            token: Some(TokenSource::File(token.0.clone())),
            cluster_id: "east".to_owned(),
            headers: vec![("X-Tenant".to_owned(), Secret("blue".to_owned()))],
            ..config(&peer, "127.0.0.1", &root)
        },
    );
    let mut session = peer.session().await;
    let said = ["authorization", "clusterid", "x-tenant"].map(|name| session.header(name));
    assert_eq!(said, [Some("Bearer first"), Some("east"), Some("blue")]);
    let first = session.request().await;
    assert!(first.node.expect("the node").id.contains("ztunnel-x"));
    assert!(exchange(&mut session, response("n1", &[("a", 1), ("b", 2)])).await.error_detail.is_none());
    let mut mixed = response("n2", &[("c", 3), ("d", 4)]);
    mixed.resources[1].resource.as_mut().expect("a body").value = b"bad".to_vec();
    let refusal = exchange(&mut session, mixed).await.error_detail.expect("a refusal");
    assert_eq!(refusal.message, "d: it is bad");
    assert!(*running.handle.synced.borrow());

    token.write("");
    session.fail(tonic::Status::unauthenticated("the token has expired")).await;
    let error = running.error("the token has expired").await;
    assert!(error.contains("Unauthenticated"), "{error}");
    let error = running.error("AUTH_TOKEN").await;
    assert!(error.contains("it is empty") && error.contains("xds-loopback"), "{error}");
    token.write("second");
    let mut session = peer.session().await;
    assert_eq!(session.header("authorization"), Some("Bearer second"));
    let resumed: BTreeMap<_, _> = session.request().await.initial_resource_versions.into_iter().collect();
    assert_eq!(resumed, ["a", "b", "c"].map(|name| (name.to_owned(), "1".to_owned())).into());
}

#[tokio::test]
async fn rotated_roots_are_followed() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let mut peer = Peer::start(0, Some(old.certify(&["localhost"]))).await;
    let roots = File::new("roots", &old.pem());
    let mut running = start(
        settings(Mode::Wildcard),
        Config { roots: RootSource::File(roots.0.clone()), ..config(&peer, "localhost", &old) },
    );
    let mut session = peer.session().await;
    session.request().await;
    exchange(&mut session, response("n1", &[("a", 1)])).await;
    let port = peer.address.port();
    peer.stop().await;
    let mut peer = Peer::start(port, Some(new.certify(&["localhost"]))).await;
    drop(session);
    let error = running.error("invalid peer certificate").await;
    assert!(error.contains("cannot be reached") && error.contains("UnknownIssuer"), "{error}");
    roots.write("-----BEGIN NONSENSE-----");
    let error = running.error("XDS_ROOT_CA").await;
    assert!(error.contains("no usable certificate") && error.contains("xds-loopback"), "{error}");
    roots.write(&new.pem());
    let mut session = peer.session().await;
    assert_eq!(session.request().await.initial_resource_versions.len(), 1);
    assert!(running.status(Status::is_connected).await.counters.disconnects >= 2);
}

#[tokio::test]
async fn the_certificate_must_carry_the_host_or_the_alternative_name() {
    let root = Root::new("root");
    let mut peer = Peer::start(0, Some(root.certify(&["istiod.istio-system.svc"]))).await;
    let mut running = start(settings(Mode::Wildcard), config(&peer, "127.0.0.1", &root));
    let error = running.error("certificate").await;
    assert!(error.contains("not valid for name"), "{error}");
    drop(running);
    let alternative =
        |name: &str| Config { alt_hostname: Some(name.to_owned()), ..config(&peer, "127.0.0.1", &root) };
    let mut wrong = start(settings(Mode::Wildcard), alternative("istiod.elsewhere.svc"));
    wrong.error("not valid for name").await;
    let mut stranger = start(
        settings(Mode::Wildcard),
        Config {
            roots: RootSource::Inline(Root::new("another").pem()),
            ..alternative("istiod.istio-system.svc")
        },
    );
    stranger.error("UnknownIssuer").await;
    let _right = start(settings(Mode::Wildcard), alternative("istiod.istio-system.svc"));
    peer.session().await.request().await;
}

#[tokio::test]
async fn a_giant_response_is_taken_up_to_the_limit() {
    let root = Root::new("root");
    let mut peer = Peer::start(0, Some(root.certify(&["127.0.0.1"]))).await;
    let mut running = start(settings(Mode::Wildcard), config(&peer, "127.0.0.1", &root));
    let mut session = peer.session().await;
    session.request().await;
    let giant = [("a", 30 << 20), ("b", 30 << 20)];
    exchange(&mut session, response("n1", &giant)).await;
    assert_eq!(running.applied().values().sum::<usize>(), 60 << 20);
    assert!(running.status(|status| status.types[0].held == 2).await.bytes_received > 60 << 20);

    let small = Config { message_limit: 1 << 20, ..config(&peer, "127.0.0.1", &root) };
    let mut running = start(settings(Mode::Wildcard), small);
    let mut session = peer.session().await;
    session.request().await;
    exchange(&mut session, response("n1", &[("a", 1 << 19)])).await;
    session.send(response("n2", &[("b", 1 << 20)])).await;
    let error = running.error("too large").await;
    assert!(error.contains("1048576"), "the limit is named: {error}");
    let mut again = peer.session().await;
    assert_eq!(again.request().await.initial_resource_versions.len(), 1, "nothing of it was applied");
    session.ended().await;
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_response_changes_nothing() {
    let root = Root::new("root");
    let mut peer = Peer::start(0, Some(root.certify(&["127.0.0.1"]))).await;
    let relay = dying_relay(peer.address, 2 << 20).await;
    let address = format!("https://127.0.0.1:{}", relay.port());
    let running = start(settings(Mode::Wildcard), Config { address, ..config(&peer, "127.0.0.1", &root) });
    let mut session = peer.session().await;
    session.request().await;
    exchange(&mut session, response("n1", &[("a", 1 << 20)])).await;
    session.send(response("n2", &[("a", 7), ("b", 4 << 20)])).await;
    let mut session = peer.session().await;
    assert_eq!(running.applied(), [("a".to_owned(), 1 << 20)].into(), "not even the first half");
    assert_eq!(session.request().await.initial_resource_versions.len(), 1);
    exchange(&mut session, response("m1", &[("b", 9)])).await;
    assert_eq!(running.applied().len(), 2);
}

#[tokio::test]
async fn a_server_that_never_answers_is_left() {
    let root = Root::new("root");
    let mut peer = Peer::start(0, Some(root.certify(&["127.0.0.1"]))).await;
    let first_answer = Duration::from_millis(200);
    let impatient = Settings { first_answer, ..settings(Mode::Wildcard) };
    let mut running = start(impatient, config(&peer, "127.0.0.1", &root));
    for _ in 0..3 {
        peer.session().await.ended().await;
    }
    running.error("answered nothing for type.googleapis.com/istio.workload.Address").await;
    let mut session = peer.session().await;
    session.request().await;
    exchange(&mut session, response("n1", &[])).await;
    assert!(*running.handle.synced.borrow(), "late is not never");
}

#[tokio::test]
async fn demands_from_another_thread_over_plaintext() {
    let mut peer = Peer::start(0, None).await;
    let address = format!("http://{}", peer.address);
    let running = start(settings(Mode::OnDemand), Config::new(address, RootSource::System));
    let demand = running.handle.demand.clone();
    let worker = std::thread::spawn(move || {
        let type_url = ADDRESS.into();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let fetch = |key: &str| runtime.block_on(demand.fetch(&type_url, key));
        (fetch("net/10.0.0.1"), fetch("net/10.0.0.2"))
    });
    let mut session = peer.session().await;
    let mut asked = session.request().await.resource_names_subscribe;
    while !asked.contains(&"net/10.0.0.1".to_owned()) {
        asked = session.request().await.resource_names_subscribe;
    }
    let mut found = response("n1", &[("uid", 1)]);
    found.resources[0].aliases = vec!["net/10.0.0.1".to_owned()];
    session.send(found).await;
    while asked != ["net/10.0.0.2"] {
        asked = session.request().await.resource_names_subscribe;
    }
    let removed_resources = asked;
    session.send(DeltaDiscoveryResponse { removed_resources, ..response("n2", &[]) }).await;
    let outcomes = tokio::task::spawn_blocking(|| worker.join()).await.expect("no panic");
    assert_eq!(outcomes.expect("no panic"), (Outcome::Found, Outcome::Absent));
}
