//! Delta xDS on loopback, as proxies speak it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use control_plane::ca::Authority;
use control_plane::ca::authenticate::{Authenticate, Nodes, Proven, Refused};
use control_plane::resource::Kind;
use control_plane::xds::session::Settings;
use control_plane::xds::{Ended, Everything, Limits, service, store};
use futures::future::join_all;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request};
use xds_client::proto::{self, DeltaDiscoveryRequest};

use crate::xds_support::{Client, Controller, DEADLINE, answer, raise_descriptor_limit, resource};

mod xds_support;

#[tokio::test]
async fn a_client_gets_everything_then_changes_then_after_a_reconnect_what_differs() {
    let mut controller = Controller::start(Limits::default()).await;
    controller.set([resource("a", "1"), resource("b", "1"), resource("c", "1")]);
    let mut client = controller.client("n1").await;
    client.begin().await;
    assert_eq!(client.told().await, "a b c");
    controller.set([resource("a", "2")]);
    assert_eq!(client.told().await, "a");
    controller.remove("b");
    assert_eq!(client.told().await, "-b");
    let held = std::mem::take(&mut client.held);
    drop(client);
    controller.remove("c");
    controller.set([resource("d", "1")]);
    let mut client = controller.client("n1").await;
    client.held = held;
    client.begin().await;
    assert_eq!(client.told().await, "-c d");
}

#[tokio::test]
async fn single_resources_come_by_name_and_alias() {
    let mut controller = Controller::start(Limits::default()).await;
    controller.set([resource("a", "1"), resource("b", "1")]);
    let mut client = controller.client("n1").await;
    client.begin_with(vec!["*".to_owned()], vec!["*".to_owned()]).await;
    assert_eq!(client.told().await, "");
    let ask = |keys: &[&str]| DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().to_owned(),
        resource_names_subscribe: keys.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    client.say(ask(&["net/b", "c"])).await;
    assert_eq!(client.told().await, "-c b");
    controller.set([resource("c", "1"), resource("a", "2")]);
    assert_eq!(client.told().await, "c");
}

#[tokio::test]
async fn a_refusal_is_seen_by_who_looks() {
    let mut controller = Controller::start(Limits::default()).await;
    controller.set([resource("a", "bad")]);
    let mut client = controller.client("n1").await;
    client.begin().await;
    let response = client.hear().await.unwrap();
    let error_detail = Some(proto::Status { message: "a: no such port".to_owned(), ..Default::default() });
    client.say(DeltaDiscoveryRequest { error_detail, ..answer(&response) }).await;
    controller
        .until("the NACK is noted", |service| {
            service.clients().list().iter().any(|client| client.types.iter().any(|typed| typed.nacks == 1))
        })
        .await;
    let listed = controller.service.clients().list().remove(0);
    assert_eq!((listed.caller.as_str(), listed.node.as_deref()), ("n1", Some("n1")));
    assert!(listed.peer.is_some() && listed.node_id == "ztunnel~n1");
    let typed = &listed.types[0];
    assert_eq!(typed.last_nack.as_ref().map(|nack| nack.message.as_str()), Some("a: no such port"));
    assert_eq!((typed.pending, typed.sent, typed.acked, typed.resources), (false, 1, 0, 1));
    let json = serde_json::to_string(&listed).unwrap();
    assert!(json.contains("a: no such port") && json.contains("\"unanswered_s\":null"), "{json}");
    let counted = controller.service.clients().counters();
    let address = counted.types[Kind::Address.type_url()];
    assert_eq!((counted.streams, counted.connected, counted.refused), (1, 1, 0));
    assert_eq!((address.responses, address.resources, address.nacks, address.acks), (1, 1, 1, 0));
    drop(client);
    controller.until("the client is gone", |service| service.clients().list().is_empty()).await;
}

#[tokio::test]
async fn who_may_not_is_told_why() {
    let controller =
        Controller::start(Limits { streams: 3, streams_per_caller: 2, ..Limits::default() }).await;
    let refused = async |node: &str| match Client::open(controller.channel().await, node).await {
        Ok(_) => panic!("{node} is let in"),
        Err(status) => status,
    };
    assert_eq!(refused("").await.code(), Code::Unauthenticated);
    let first = controller.client("n1").await;
    let second = controller.client("n1").await;
    let status = refused("n1").await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("n1 has 2 streams"), "{status}");
    let mut third = controller.client("n2").await;
    let status = refused("n3").await;
    assert!(status.message().contains("3 streams are open"), "{status}");
    drop(second);
    controller.until("its place is free", |service| service.clients().list().len() == 2).await;
    let _again = controller.client("n1").await;
    third.node = "n1".to_owned();
    third.begin().await;
    let status = third.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "a node that says it is another: {status}");
    drop(first);
    assert_eq!(controller.service.clients().counters().refused, 3);
}

#[tokio::test]
async fn what_else_is_called_is_refused_with_the_way_out() {
    let controller = Controller::start(Limits::default()).await;
    let mut grpc = tonic::client::Grpc::new(controller.channel().await);
    grpc.ready().await.unwrap();
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    let codec = tonic_prost::ProstCodec::<proto::DiscoveryRequest, proto::DiscoveryResponse>::default();
    let call = Request::new(futures::stream::pending());
    let answered = grpc.streaming(call, path.parse().unwrap(), codec).await;
    let status = answered.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DeltaAggregatedResources"), "{status}");
}

#[tokio::test]
async fn a_large_state_comes_in_responses_that_any_client_accepts() {
    let mut controller = Controller::start(Limits::default()).await;
    let body = "x".repeat(2000);
    controller.set((0..20_000).map(|n| resource(&format!("name{n}"), &body)));
    let mut client = controller.client("n1").await;
    client.begin().await;
    client.fill(20_000).await;
    let held = std::mem::take(&mut client.held);
    let counted = controller.service.clients().counters().types[Kind::Address.type_url()];
    assert!(counted.bytes > 40_000_000 && counted.bytes / counted.responses <= 256 * 1024, "{counted:?}");
    drop(client);
    controller.set([resource("one more", "1")]);
    let mut client = controller.client("n1").await;
    client.held = held;
    client.begin().await;
    assert_eq!(client.told().await, "one more", "a megabyte of versions is read and nothing repeated");
}

#[tokio::test]
async fn who_does_not_answer_is_given_up() {
    let session = Settings { answer_deadline: Duration::from_millis(200), ..Settings::default() };
    let controller = Controller::start(Limits { session, ..Limits::default() }).await;
    let mut client = controller.client("n1").await;
    client.begin().await;
    let response = client.hear().await.unwrap();
    let status = client.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains(&response.nonce), "{status}");
}

#[tokio::test]
async fn a_stop_ends_the_streams_at_once() {
    let controller = Controller::start(Limits::default()).await;
    let mut client = controller.client("n1").await;
    client.begin().await;
    client.told().await;
    controller.service.stop();
    assert_eq!(client.hear().await.unwrap_err().code(), Code::Unavailable);
    let mut late = controller.client("n1").await;
    assert_eq!(late.hear().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_thousand_clients_hear_every_change() {
    const CLIENTS: usize = 1000;
    const RESOURCES: usize = 500;
    raise_descriptor_limit(4 * CLIENTS as u64);
    let mut controller = Controller::start(Limits::default()).await;
    controller.set((0..RESOURCES).map(|n| resource(&format!("name{n}"), "1")));
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(controller.client(&format!("n{n}")).await);
    }
    let begun = Instant::now();
    join_all(clients.iter_mut().map(|client| async {
        client.begin().await;
        client.fill(RESOURCES).await;
    }))
    .await;
    println!("{CLIENTS} clients got {RESOURCES} resources in {:?}", begun.elapsed());
    // Every third is killed, every third stops to answer; the rest must not notice.
    let mut kept: Vec<_> = clients.into_iter().enumerate().filter(|(n, _)| n % 3 != 0).collect();
    for round in 2..12 {
        let begun = Instant::now();
        controller.set([resource("name0", &round.to_string())]);
        controller.remove(&format!("name{round}"));
        let removed = format!("name{round}");
        join_all(kept.iter_mut().filter(|(n, _)| n % 3 == 1).map(|(_, client)| async {
            while client.held.contains_key(&removed) {
                client.told().await;
            }
        }))
        .await;
        assert!(begun.elapsed() < DEADLINE);
    }
    controller
        .until("the killed are gone", |service| service.clients().counters().connected == kept.len())
        .await;
    // Those that were slow find all that they missed in one response.
    join_all(kept.iter_mut().filter(|(n, _)| n % 3 == 2).map(|(_, client)| async {
        let mut responses = 0;
        while client.held.len() > RESOURCES - 10 {
            client.told().await;
            responses += 1;
        }
        assert!(responses <= 2, "one was on its way, the other has the rest: {responses}");
    }))
    .await;
    let all_alike = kept.iter().all(|(_, client)| client.held == kept[0].1.held);
    assert!(all_alike && kept[0].1.held.len() == RESOURCES - 10);
}

#[tokio::test]
async fn it_is_served_over_tls_with_the_nodes_tokens() {
    let path = std::env::temp_dir().join(format!("xds-nodes-{}.json", std::process::id()));
    let nodes = serde_json::json!({"nodes": [{"name": "n1", "token": "secret", "identities": []}]});
    std::fs::write(&path, nodes.to_string()).unwrap();
    let nodes = Nodes::open(&path).unwrap();
    let authority = Authority::ephemeral().unwrap();
    let made = authority.server_certificate(&["controller.test".to_owned()]).unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(made.chain.concat(), made.key.as_str()));
    let (mut writer, store) = store();
    writer.complete();
    let service = service(store, Arc::new(nodes), Arc::new(Everything), Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder().tls_config(tls).unwrap();
    tokio::spawn(server.add_service(service.clone()).serve_with_incoming(TcpIncoming::from(listener)));
    let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.root()));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let endpoint = endpoint.tls_config(trusted.domain_name("controller.test")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let Err(status) = Client::open(channel.clone(), "guess").await else { panic!("a guess is let in") };
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(!status.message().contains("guess"), "{status}");
    let mut client = Client::open(channel, "secret").await.unwrap();
    client.node = "n1".to_owned();
    client.begin().await;
    assert_eq!(client.told().await, "");
    let listed = service.clients().list().remove(0);
    assert_eq!((listed.caller.as_str(), listed.peer.map(|peer| peer.ip())), ("n1", Some(address.ip())));
    std::fs::remove_file(&path).unwrap();
}

/// Knows one token, until it is told otherwise.
struct Knows(Mutex<Result<Proven, Refused>>, AtomicUsize);

#[tonic::async_trait]
impl Authenticate for Knows {
    async fn node(&self, _: &str) -> Result<Proven, Refused> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_token_counts_no_more_and_not_when_that_cannot_be_known() {
    let good = Proven { node: "n1".to_owned(), expires: None };
    let over = SystemTime::now() - Duration::from_secs(3600);
    let away = Refused::Unavailable { reason: "away".to_owned() };
    for (next, told) in [
        (Err(Refused::Unknown), Some(Code::Unauthenticated)),
        (Err(Refused::NoProxy { account: "x".to_owned() }), Some(Code::PermissionDenied)),
        (Ok(Proven { node: "n2".to_owned(), expires: None }), Some(Code::Unauthenticated)),
        (Err(away), None),
        (Ok(good.clone()), None),
    ] {
        let knows = Arc::new(Knows(Mutex::new(Ok(good.clone())), AtomicUsize::new(0)));
        let limits = Limits { check: Duration::from_millis(50), ..Limits::default() };
        let mut controller = Controller::start_with(limits, knows.clone()).await;
        let mut client = controller.client("t").await;
        client.node = "n1".to_owned();
        client.begin().await;
        assert_eq!(client.told().await, "");
        *knows.0.lock().unwrap() = next;
        match told {
            Some(code) => assert_eq!(client.hear().await.unwrap_err().code(), code),
            None => {
                let asked = knows.1.load(Ordering::Relaxed);
                let again = || knows.1.load(Ordering::Relaxed) > asked + 2;
                controller.until("it was asked about again and again", |_| again()).await;
                controller.set([resource("a", "1")]);
                assert_eq!(client.told().await, "a", "the stream goes on");
            }
        }
        let ended = controller.service.clients().counters().ended;
        assert_eq!(ended.contains_key(&Ended::Unproven), told.is_some(), "{ended:?}");
    }
    let knows = Arc::new(Knows(Mutex::new(Ok(Proven { expires: Some(over), ..good })), AtomicUsize::new(0)));
    let controller = Controller::start_with(Limits::default(), knows).await;
    let mut client = controller.client("t").await;
    let status = tokio::time::timeout(DEADLINE, client.hear()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("come with a new one"), "{status}");
}
