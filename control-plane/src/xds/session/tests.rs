//! Scripts: what a client says, what the index does, and what the client hears.

use std::collections::HashMap;

use bytes::{Buf, Bytes};
use prost::Message;
use prost_types::{Struct, Value, value};
use tokio::sync::Semaphore;
use xds_client::proto::{self, DeltaDiscoveryResponse};

use super::*;
use crate::resource::{Changes, Resource};
use crate::xds::store::{Writer, store_remembering};

mod answers;
mod members;
mod on_demand;
mod order;
mod random;
mod reconnect;
mod scoped;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// One controller and one client of it.
struct Script {
    writer: Writer,
    store: Store,
    session: Session,
    settings: Settings,
    scope: Arc<dyn Scope>,
    now: Instant,
    streams: u64,
    rooms: Arc<Semaphore>,
    /// What the script is about.
    kind: Kind,
}

impl Script {
    fn new() -> Self {
        Self::with(1000, Settings::default())
    }

    /// Remembers so much of what is gone.
    fn with(gone: usize, settings: Settings) -> Self {
        let (mut writer, store) = store_remembering(gone);
        writer.complete();
        let scope: Arc<dyn Scope> = Arc::new(Everything);
        let session = Session::new(0, settings, Arc::clone(&scope), Some("n1".into()));
        Self {
            writer,
            store,
            session,
            settings,
            scope,
            now: Instant::now(),
            streams: 0,
            rooms: Arc::new(Semaphore::new(1)),
            kind: Kind::Address,
        }
    }

    fn set(&mut self, names: &[(&str, &str)]) {
        self.set_aliased(&names.iter().map(|(name, body)| (*name, *body, "")).collect::<Vec<_>>());
    }

    /// Names, bodies and aliases, the latter with spaces between them.
    fn set_aliased(&mut self, resources: &[(&str, &str, &str)]) {
        let all: Vec<_> =
            resources.iter().map(|(name, body, aliases)| (*name, *body, *aliases, "")).collect();
        self.set_belonging(&all);
    }

    /// One after the other: name, body, aliases and what it belongs to, the latter two with spaces between them.
    fn set_belonging(&mut self, resources: &[(&str, &str, &str, &str)]) {
        let words = |words: &str| words.split_whitespace().map(Arc::from).collect();
        let set = resources.iter().map(|(name, body, aliases, owners)| Resource {
            kind: self.kind,
            name: (*name).into(),
            aliases: words(aliases),
            belongs_to: words(owners),
            node: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        });
        self.writer.apply(Changes { set: set.collect(), removed: Vec::new() });
    }

    fn remove(&mut self, name: &str) {
        self.writer.apply(Changes { set: Vec::new(), removed: vec![(self.kind, name.into())] });
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        let scope = Arc::clone(&self.scope);
        self.session = Session::new(self.streams, self.settings, scope, Some("n1".into()));
    }

    fn say(&mut self, request: DeltaDiscoveryRequest) -> Received {
        self.session.received(request, self.now).unwrap()
    }

    /// The next response, if there is one.
    fn hear(&mut self) -> Option<DeltaDiscoveryResponse> {
        for _ in 0..100_000 {
            match self.session.poll(&self.store, self.now).unwrap() {
                Step::Send(response) => return Some(decode(response)),
                Step::Working => {}
                Step::Idle if self.session.waits_for_room() => self.give_room(),
                Step::Idle => return None,
            }
        }
        panic!("it works for ever");
    }

    fn give_room(&mut self) {
        let room = Arc::clone(&self.rooms).try_acquire_owned().expect("the last one was given back");
        self.session.give_room(room);
    }

    /// The next response in short, which is acknowledged: "a=1 -b".
    fn told(&mut self) -> String {
        let Some(response) = self.hear() else { return "nothing".to_owned() };
        self.say(answer(&response));
        short(&response)
    }
}

fn decode(response: Response) -> DeltaDiscoveryResponse {
    let mut bytes = Bytes::from_iter(response.into_pieces().flatten());
    assert_eq!(bytes.get_u8(), 0);
    assert_eq!(bytes.get_u32() as usize, bytes.len());
    DeltaDiscoveryResponse::decode(bytes).unwrap()
}

fn short(response: &DeltaDiscoveryResponse) -> String {
    let set = response.resources.iter().map(|resource| {
        let body = &resource.resource.as_ref().unwrap().value;
        format!("{}={}", resource.name, String::from_utf8_lossy(body))
    });
    let mut words: Vec<_> =
        set.chain(response.removed_resources.iter().map(|name| format!("-{name}"))).collect();
    words.sort();
    if words.is_empty() { "empty".to_owned() } else { words.join(" ") }
}

fn node(name: Option<&str>) -> proto::Node {
    let value = |name: &str| Value { kind: Some(value::Kind::StringValue(name.to_owned())) };
    let fields = name.map(|name| ("NODE_NAME".to_owned(), value(name))).into_iter().collect();
    proto::Node { id: "ztunnel~1".to_owned(), metadata: Some(Struct { fields }), ..Default::default() }
}

fn strings(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

/// A first request: what to subscribe to and from, and what is held.
fn first(subscribe: &str, unsubscribe: &str, held: HashMap<String, String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node(Some("n1"))),
        initial_resource_versions: held,
        ..change(subscribe, unsubscribe)
    }
}

fn wildcard() -> DeltaDiscoveryRequest {
    first("", "", HashMap::new())
}

fn nothing_at_first() -> DeltaDiscoveryRequest {
    first("*", "*", HashMap::new())
}

fn change(subscribe: &str, unsubscribe: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ADDRESS.to_owned(),
        resource_names_subscribe: strings(subscribe),
        resource_names_unsubscribe: strings(unsubscribe),
        ..Default::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn refusal(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    let message = message.to_owned();
    let error_detail = Some(proto::Status { message, ..Default::default() });
    DeltaDiscoveryRequest { error_detail, ..answer(response) }
}
