//! What clients cost the controller: streams without a network, in a process of their own, so that what is measured is
//! what the xDS server keeps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::alloc::System;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use control_plane::resource::{Changes, Kind};
use control_plane::xds::{Everything, Limits, Service, Writer, service, store};
use http_body::{Body, Frame};
use prost::Message;
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::Service as _;
use xds_client::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::xds_support::{TokenIsName, answer, node, resource};

mod xds_support;

const CLIENTS: usize = 1000;
const RESOURCES: usize = 20_000;

/// What a client says, as the body of its call.
struct Requests(mpsc::UnboundedReceiver<Bytes>);

impl Body for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A client's stream with nothing between it and the service.
struct Stream {
    requests: mpsc::UnboundedSender<Bytes>,
    responses: tonic::body::Body,
}

impl Stream {
    async fn open(service: &mut Service, name: &str) -> Self {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let call = http::Request::post(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        );
        let call = call.header("authorization", format!("Bearer {name}"));
        let call = call.body(tonic::body::Body::new(Requests(outgoing))).unwrap();
        Self { requests, responses: service.call(call).await.unwrap().into_body() }
    }

    fn say(&self, request: &DeltaDiscoveryRequest) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(request.encoded_len()).unwrap());
        request.encode(&mut bytes).unwrap();
        self.requests.send(bytes.freeze()).unwrap();
    }

    fn begin(&self, name: &str, held: &[(String, String)]) {
        self.say(&DeltaDiscoveryRequest {
            node: Some(node(name)),
            type_url: Kind::Address.type_url().to_owned(),
            initial_resource_versions: held.iter().cloned().collect(),
            ..Default::default()
        });
    }

    async fn hear(&mut self) -> DeltaDiscoveryResponse {
        let mut bytes = BytesMut::new();
        while bytes.len() < 5 || bytes.len() < 5 + (&bytes[1..5]).get_u32() as usize {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.responses).poll_frame(cx)).await;
            bytes.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        bytes.advance(5);
        DeltaDiscoveryResponse::decode(bytes).unwrap()
    }

    /// Hears and acknowledges so many resources, and gives their versions.
    async fn fill(&mut self, resources: usize) -> Vec<(String, String)> {
        let mut held = Vec::new();
        while held.len() < resources {
            let response = self.hear().await;
            self.say(&answer(&response));
            held.extend(response.resources.into_iter().map(|resource| (resource.name, resource.version)));
        }
        held
    }
}

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What is allocated and not freed, in bytes: what an allocator keeps beside it depends on what came before.
fn memory() -> usize {
    let Stats { bytes_allocated, bytes_deallocated, .. } = ALLOCATOR.stats();
    bytes_allocated - bytes_deallocated
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn set(writer: &mut Writer, names: std::ops::Range<usize>, body: &str) {
    let set = names.map(|n| resource(&format!("cluster//Pod/namespace/name{n}"), body)).collect();
    writer.apply(Changes { set, removed: Vec::new() });
}

fn served() -> (Writer, Service) {
    let (mut writer, store) = store();
    set(&mut writer, 0..RESOURCES, &"x".repeat(250));
    writer.complete();
    let limits = Limits { streams: 2 * CLIENTS, ..Limits::default() };
    (writer, service(store, Arc::new(TokenIsName), Arc::new(Everything), limits))
}

/// One test, because memory is the whole process's.
#[tokio::test]
async fn clients_cost_little() {
    let (mut writer, mut service) = served();
    let mut first = Stream::open(&mut service, "first").await;
    first.begin("first", &[]);
    let held = first.fill(RESOURCES).await;
    idle_clients(&mut service, &held).await;
    unread_clients(&mut writer, &mut service).await;
}

/// Clients that are up to date, a tenth of them new; the others come back with all they hold.
async fn idle_clients(service: &mut Service, held: &[(String, String)]) {
    let before = memory();
    let mut streams = Vec::new();
    for n in 0..CLIENTS {
        let name = format!("idle{n}");
        let mut stream = Stream::open(service, &name).await;
        if n % 10 == 0 {
            stream.begin(&name, &[]);
            stream.fill(RESOURCES).await;
        } else {
            stream.begin(&name, held);
            let response = stream.hear().await;
            assert!(response.resources.is_empty());
            stream.say(&answer(&response));
        }
        streams.push(stream);
    }
    settle().await;
    let listed = service.clients().list();
    let up_to_date = |client: &&control_plane::xds::Client| client.types.iter().all(|typed| !typed.pending);
    assert_eq!(listed.iter().filter(up_to_date).count(), CLIENTS + 1);
    drop(listed);
    let each = memory().saturating_sub(before) / CLIENTS;
    println!("an idle client costs {each} bytes");
    assert!(each < 16 * 1024, "an idle client costs {each} bytes");
}

/// Clients that never read, and one that reads and never answers, while everything changes again and again.
async fn unread_clients(writer: &mut Writer, service: &mut Service) {
    let mut streams = Vec::new();
    for n in 0..50 {
        let name = format!("unread{n}");
        let stream = Stream::open(service, &name).await;
        stream.begin(&name, &[]);
        streams.push(stream);
    }
    streams[0].hear().await;
    settle().await;
    let mut before = 0;
    for round in 0..6 {
        for start in (0..RESOURCES).step_by(1000) {
            set(writer, start..start + 1000, &format!("{round}{}", "y".repeat(249)));
            settle().await;
        }
        // The first round takes the old bodies out, which the unread responses still hold: 256 KiB each at most.
        if round == 0 {
            before = memory();
        }
    }
    let grown = memory().saturating_sub(before);
    println!("100,000 updates for 50 clients that do not read cost {grown} bytes");
    assert!(grown < 8 << 20, "100,000 updates for clients that do not read cost {grown} bytes");
    let report = service.clients().list().pop().unwrap();
    assert!(report.types[0].pending && report.types[0].responses == 1);
    assert!(report.types[0].unanswered_s.is_some_and(|waits| waits < Duration::from_secs(300).as_secs_f64()));
}
