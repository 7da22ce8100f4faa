//! One client's stream without I/O: requests, the store and time in, responses out.
//!
//! ```text
//!             request            something to tell                  ACK, NACK
//!  (no type) ────────▶ answered ──────────────────▶ in flight ───────────────▶ answered …
//!                         ▲                              │ no answer for `answer_deadline`
//!                         └── a NACK is noted, not ──────┘ ─▶ End
//!                             repeated: what is refused is sent again when it has changed
//! ```
//!
//! Clients take a type for complete by its first response, and all for complete when each type has one; but a proxy that
//! is ready with a part of the mesh takes the rest of it for the outside. So the first answer with the policies is the last
//! of a new client's first answers: it comes when everything else there was has been sent, in as many responses as that
//! takes, and it is one whole response, however long. One that is longer than others waits until few of its size are on
//! their way.
//!
//! Each type has at most one response in flight. What changes meanwhile stays in the store, so a client that is slow
//! skips what is overwritten before it asks on. The first request for a type is answered even if there is nothing to say,
//! because clients wait for that before they start; nothing is answered before the store is complete.
//!
//! A client of everything that is slower than the store can remember what is gone is told to come back (`End::Behind`):
//! it then says what it holds, which this side does not keep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use xds_client::proto::DeltaDiscoveryRequest;

use self::interest::{Interest, Progress, View, Wishes};
use super::response::{Batch, Response, Room};
use super::store::Store;
use crate::resource::Kind;

pub use self::node::Node;
pub use self::report::{Nack, TypeReport};
pub use self::scope::{Everything, Facts, Scope};

mod interest;
mod node;
mod report;
mod scope;

/// What a stream is held to.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// About how much one response holds. A resource that is larger goes alone.
    pub response_bytes: usize,
    /// The same of the first response with the policies.
    pub first_response_bytes: usize,
    /// How long a response may go without ACK or NACK.
    pub answer_deadline: Duration,
    /// How many keys a client may subscribe to in one type.
    pub keys: usize,
    /// How many types, among them those that nobody has resources of.
    pub types: usize,
}

/// Why a stream is not gone on with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    #[error("the first request names no node; set DeltaDiscoveryRequest.node")]
    NoNode,
    #[error("the node's metadata has a NODE_NAME that is not a string")]
    NodeName,
    #[error("NODE_NAME is \"{claimed}\" but the token is that of node \"{shown}\"")]
    OtherNode { claimed: String, shown: String },
    #[error("a request names no type_url")]
    NoType,
    #[error("a request is for an {0}th type; that is too many for one stream")]
    Types(usize),
    #[error("{keys} keys of {type_url} are subscribed; at most {most} can be, so subscribe to \"*\"")]
    Keys { type_url: Arc<str>, keys: usize, most: usize },
    #[error("response {nonce} of {type_url} was not answered for {} s", waited.as_secs())]
    Unanswered { type_url: Arc<str>, nonce: String, waited: Duration },
    #[error("more of {0} was removed since the last answer than is remembered; reconnect with what is held")]
    Behind(Arc<str>),
}

/// What there is to do next.
#[derive(Debug)]
pub enum Step {
    Send(Response),
    /// A stretch of work is done and found nothing to send yet: poll again when others have had their turn.
    Working,
    /// Nothing until a request comes or the store changes.
    Idle,
}

/// What one request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Subscription,
    Ack,
    Nack(Nack),
    /// It answers nothing that is in flight, and says nothing else.
    Stale,
}

pub struct Session {
    /// Makes nonces differ from those of other streams.
    id: u64,
    settings: Settings,
    scope: Arc<dyn Scope>,
    /// The node whose token was shown.
    shown: Option<Arc<str>>,
    node: Option<Node>,
    types: Vec<Typed>,
    nonces: u64,
}

struct Typed {
    type_url: Arc<str>,
    kind: Option<Kind>,
    interest: Interest,
    /// What the first answer holds so far, until it is sent: only one that comes last is collected.
    first: Option<Batch>,
    /// For a first answer that is longer than others.
    room: Option<Room>,
    waits_for_room: bool,
    in_flight: Option<InFlight>,
    record: report::Record,
}

struct InFlight {
    nonce: String,
    sent: Instant,
    sequence: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            response_bytes: 256 * 1024,
            // Istio's ztunnel takes 200 MiB (interop.md section 4.1), as ours does.
            first_response_bytes: 190 * 1024 * 1024,
            answer_deadline: Duration::from_secs(300),
            keys: 262_144,
            types: 16,
        }
    }
}

impl End {
    pub fn status(&self) -> Status {
        let code = match self {
            Self::NoNode | Self::NodeName | Self::NoType => Code::InvalidArgument,
            Self::OtherNode { .. } => Code::PermissionDenied,
            Self::Types(_) | Self::Keys { .. } => Code::ResourceExhausted,
            Self::Unanswered { .. } => Code::DeadlineExceeded,
            Self::Behind(_) => Code::Aborted,
        };
        Status::new(code, self.to_string())
    }
}

impl Session {
    /// `shown` is the node that the client has proved to be on, if its credentials say so.
    pub fn new(id: u64, settings: Settings, scope: Arc<dyn Scope>, shown: Option<Arc<str>>) -> Self {
        Self { id, settings, scope, shown, node: None, types: Vec::new(), nonces: 0 }
    }

    /// Who the client says it is, once it has.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// A request has come.
    pub fn received(&mut self, request: DeltaDiscoveryRequest, now: Instant) -> Result<Received, End> {
        if self.node.is_none() {
            let node = request.node.as_ref().ok_or(End::NoNode)?;
            self.node = Some(Node::of(node, self.shown.clone())?);
        }
        if request.type_url.is_empty() {
            return Err(End::NoType);
        }
        let index = self.types.iter().position(|typed| *typed.type_url == *request.type_url);
        let Some(index) = index else {
            if self.types.len() >= self.settings.types {
                return Err(End::Types(self.types.len() + 1));
            }
            let mut typed = Typed::new(&request.type_url);
            typed.change(request, true, self.settings.keys)?;
            self.types.push(typed);
            return Ok(Received::Subscription);
        };
        let typed = &mut self.types[index];
        let answer = typed.answered(&request, now);
        if !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty() {
            typed.change(request, false, self.settings.keys)?;
            return Ok(answer.unwrap_or(Received::Subscription));
        }
        Ok(answer.unwrap_or(Received::Stale))
    }

    /// What to do next. Poll after every event until there is nothing.
    pub fn poll(&mut self, store: &Store, now: Instant) -> Result<Step, End> {
        if self.types.iter().all(|typed| typed.in_flight.is_some()) || !store.is_complete() {
            return Ok(Step::Idle);
        }
        let client = self.node.as_ref().and_then(|node| node.name.as_deref());
        let mut moved = false;
        for index in 0..self.types.len() {
            if self.types[index].in_flight.is_some() {
                continue;
            }
            let until = self.first_unsent_of_others(index, store);
            let others_sent = self.has_sent_others(index);
            let typed = &mut self.types[index];
            if typed.waits_for_room || (typed.comes_last() && !others_sent) {
                continue;
            }
            let mut batch = typed.batch(&self.settings);
            let before = typed.interest.cursor();
            let progress = typed.tell(store, client, &*self.scope, until, &mut batch)?;
            let is_first = typed.comes_last();
            let whole = progress == Progress::Done;
            if is_first && batch.is_full() && typed.room.is_none() {
                typed.waits_for_room = true;
                typed.first = Some(batch);
                continue;
            }
            if is_first && !whole && !batch.is_full() {
                typed.first = Some(batch);
                return Ok(Step::Working);
            }
            if is_first && !whole {
                let (type_url, most) = (&typed.type_url, self.settings.first_response_bytes);
                tracing::warn!(
                    %type_url, most, "the first response would be longer than clients take: they will start without the rest"
                );
            }
            if (typed.first.is_some() && whole) || !batch.is_empty() {
                self.nonces += 1;
                let nonce = format!("{:x}-{:x}", self.id, self.nonces);
                return Ok(Step::Send(typed.send(nonce, batch, now)));
            }
            if progress == Progress::More {
                return Ok(Step::Working);
            }
            moved |= typed.interest.cursor() > before;
        }
        // Another type may have waited for what this client does not get.
        Ok(if moved { Step::Working } else { Step::Idle })
    }

    /// Changes are sent in the order in which they happened, also those of different types: a workload comes after the
    /// policy that it names, and a policy goes after the last workload that named it.
    fn first_unsent_of_others(&self, own: usize, store: &Store) -> u64 {
        let others = self.types.iter().enumerate().filter(|(index, _)| *index != own);
        let unsent = others.filter_map(|(_, typed)| {
            let cursor = typed.interest.cursor();
            store.read(typed.kind?, |table| table.after(cursor).next().map(|(sequence, _)| sequence))
        });
        unsent.min().unwrap_or(u64::MAX)
    }

    /// Everything there was when the client asked for everything. Answers to single questions wait for the policies.
    fn has_sent_others(&self, own: usize) -> bool {
        let mut others = self.types.iter().enumerate().filter(|(index, _)| *index != own);
        others.all(|(_, typed)| {
            typed.kind.is_none() || !typed.interest.is_wildcard() || typed.interest.has_compared()
        })
    }

    /// A first answer goes on only when it is given room.
    pub fn waits_for_room(&self) -> bool {
        self.types.iter().any(|typed| typed.waits_for_room)
    }

    pub fn give_room(&mut self, room: Room) {
        if let Some(typed) = self.types.iter_mut().find(|typed| typed.waits_for_room) {
            typed.waits_for_room = false;
            typed.room = Some(room);
        }
    }

    /// When `tick` has something to say.
    pub fn next_deadline(&self) -> Option<Instant> {
        let sent = self.types.iter().filter_map(|typed| typed.in_flight.as_ref()).map(|flight| flight.sent);
        sent.min().map(|sent| sent + self.settings.answer_deadline)
    }

    /// The client takes what it was sent, which may be long: it has time to answer from now on.
    pub fn goes_on(&mut self, now: Instant) {
        let in_flight = self.types.iter_mut().filter_map(|typed| typed.in_flight.as_mut());
        in_flight.for_each(|flight| flight.sent = now);
    }

    /// An error says that the stream is to be given up.
    pub fn tick(&self, now: Instant) -> Result<(), End> {
        for typed in &self.types {
            let Some(flight) = &typed.in_flight else { continue };
            let waited = now.saturating_duration_since(flight.sent);
            if waited >= self.settings.answer_deadline {
                let (type_url, nonce) = (Arc::clone(&typed.type_url), flight.nonce.clone());
                return Err(End::Unanswered { type_url, nonce, waited });
            }
        }
        Ok(())
    }

    pub fn reports(&self, store: &Store, now: Instant) -> Vec<TypeReport> {
        self.types.iter().map(|typed| typed.report(store, now)).collect()
    }
}

impl Typed {
    fn new(type_url: &str) -> Self {
        let kind = Kind::from_type_url(type_url);
        Self {
            type_url: type_url.into(),
            kind,
            interest: Interest::default(),
            first: Some(Batch::new(0)),
            room: None,
            waits_for_room: false,
            in_flight: None,
            record: report::Record::default(),
        }
    }

    fn change(&mut self, request: DeltaDiscoveryRequest, first: bool, most: usize) -> Result<(), End> {
        self.interest.change(Wishes {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            first: first.then_some(request.initial_resource_versions),
        });
        let keys = self.interest.keys();
        if keys > most {
            return Err(End::Keys { type_url: Arc::clone(&self.type_url), keys, most });
        }
        Ok(())
    }

    /// Reads a request as an answer; none if it is not one.
    fn answered(&mut self, request: &DeltaDiscoveryRequest, now: Instant) -> Option<Received> {
        if request.response_nonce.is_empty() {
            return None;
        }
        let Some(flight) = self.in_flight.take_if(|flight| flight.nonce == request.response_nonce) else {
            self.record.stale += 1;
            return Some(Received::Stale);
        };
        Some(match &request.error_detail {
            None => {
                self.record.acked(flight.sequence, now);
                Received::Ack
            }
            Some(error) => Received::Nack(self.record.refused(flight.nonce, &error.message, now)),
        })
    }

    /// What is to be filled next. Of a first answer that is begun, an empty one stays behind until it is put back.
    fn batch(&mut self, settings: &Settings) -> Batch {
        let limit = match self.room {
            Some(_) => settings.first_response_bytes,
            None => settings.response_bytes,
        };
        match &mut self.first {
            Some(first) if self.kind == Some(Kind::Authorization) && self.interest.is_wildcard() => {
                std::mem::replace(first, Batch::new(0)).again(limit)
            }
            _ => Batch::new(limit),
        }
    }

    /// Its first answer does, and is whole.
    fn comes_last(&self) -> bool {
        self.first.is_some() && self.kind == Some(Kind::Authorization) && self.interest.is_wildcard()
    }

    fn tell(
        &mut self,
        store: &Store,
        client: Option<&str>,
        scope: &dyn Scope,
        until: u64,
        batch: &mut Batch,
    ) -> Result<Progress, End> {
        let Some(kind) = self.kind else { return Ok(self.interest.tell_nothing(batch)) };
        let view = View { kind, client, scope, until };
        let told = match self.comes_last() {
            true => store.read(kind, |table| self.interest.tell_all(table, &view, batch)),
            false => store.read(kind, |table| self.interest.tell(table, &view, batch)),
        };
        told.map_err(|_| End::Behind(Arc::clone(&self.type_url)))
    }

    fn send(&mut self, nonce: String, batch: Batch, now: Instant) -> Response {
        self.first = None;
        let sequence = self.interest.cursor();
        self.record.responses += 1;
        self.record.sent = sequence;
        self.in_flight = Some(InFlight { nonce: nonce.clone(), sent: now, sequence });
        Response { type_url: Arc::clone(&self.type_url), nonce, sequence, batch, room: self.room.take() }
    }

    fn report(&self, store: &Store, now: Instant) -> TypeReport {
        let extent = self.kind.map(|kind| store.extent(kind)).unwrap_or_default();
        let caught_up = self.interest.is_caught_up();
        let wildcard = self.interest.is_wildcard();
        let waits = self.in_flight.as_ref().map(|flight| now.saturating_duration_since(flight.sent));
        TypeReport {
            type_url: self.type_url.to_string(),
            wildcard,
            keys: self.interest.keys(),
            resources: if wildcard && caught_up { extent.resources } else { self.interest.held() },
            pending: !caught_up || waits.is_some() || self.interest.cursor() < extent.latest,
            latest: extent.latest,
            unanswered_s: waits.map(|waits| waits.as_secs_f64()),
            ..self.record.report(now)
        }
    }
}

#[cfg(test)]
mod tests;
