//! Delta ADS without I/O: events and the time go in, requests, responses and the answers to demands come out.
//!
//! ```text
//!                 connected                     every type's first request sent
//!  disconnected ─────────────▶ connected ─────────────────────────────────────▶ subscribed ─┐
//!   ▲ wait: back-off             │                                     response: apply, answer └─◀
//!   └────────────────────────────┴── disconnected(reason) ◀── tick: nobody answers ────────────┘
//! ```
//!
//! Owns the subscriptions, the answer to every response, the back-off, and what is reported about all this. Must not
//! know sockets, tokens, or what a resource means.
//!
//! - **Answers.** `received` lends out a [`Response`] that borrows the machine: until it is answered nothing else can
//!   happen, and answering consumes it. Dropped unanswered it is refused as a whole; leaked, it is refused at the next
//!   event. So no response is forgotten, answered twice, or answered after the next one.
//! - **First sync.** A type is synced by its first answered response, refused in part or not: one bad resource must not
//!   keep a node unready (the peer waits for an ACK without flaw). On-demand types are synced from the start.
//! - **Silence.** A server must answer each wildcard type once (istiod does, if only with nothing). While one has never
//!   been answered, silence has a deadline: `first_answer` on a stream that said nothing yet, the more patient
//!   `next_answer` on one that answered other types; then the stream is given up. Once all types are synced, silence is
//!   legitimate, even on a new stream: a server to which nothing changed owes no response. HTTP/2 pings find dead ones.
//! - **Unknown types** are reported and acknowledged, as the peer does, or the server would send them again.
//! - **Nonces** are the server's: whatever came is answered with its own nonce, once, in order, repeated or empty ones too.

mod lost;
mod report;
mod response;
mod settings;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use lost::{Lost, Unexpected};
pub use report::{Counters, Terminations, TypeReport};
pub use response::{Rejections, Response};
pub use settings::Settings;

use crate::backoff::Backoff;
use crate::proto::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::{self, Nonce, Rejection, ResourceName, TypeUrl, Update};
use crate::subscription::{DemandLimits, Subscription};
pub use crate::subscription::{Demanded, Mode, Outcome, Refused};

/// The end of a wait for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub type_url: TypeUrl,
    pub key: ResourceName,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    types: Vec<Typed>,
    stream: Option<Stream>,
    backoff: Backoff,
    answered: VecDeque<Answered>,
    counters: Counters,
}

/// One type: what is subscribed to and held, and what became of its responses.
#[derive(Debug)]
struct Typed {
    subscription: Subscription,
    synced: bool,
    report: TypeReport,
}

#[derive(Debug)]
struct Stream {
    since: Instant,
    /// First requests that were made.
    begun: usize,
    /// A response has come.
    spoke: bool,
    /// When silence becomes too long, and how long that is.
    patience: Option<(Instant, Duration)>,
    /// One for each response; the shell reads no more responses while many wait.
    answers: VecDeque<DeltaDiscoveryRequest>,
    /// A response that is lent out.
    lent: Option<(TypeUrl, Nonce)>,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        let limits =
            DemandLimits { timeout: settings.demand_timeout, outstanding: settings.outstanding_demands };
        let mut types: Vec<Typed> = Vec::new();
        for (type_url, mode) in &settings.types {
            if types.iter().all(|typed| typed.subscription.type_url() != type_url) {
                types.push(Typed::new(Subscription::new(type_url.clone(), *mode, limits)));
            }
        }
        Self {
            settings,
            types,
            stream: None,
            backoff: Backoff::new(),
            answered: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// A stream is open; the first requests can be polled.
    pub fn connected(&mut self, now: Instant) {
        self.end_stream(false);
        self.counters.streams += 1;
        self.stream = Some(Stream {
            since: now,
            begun: 0,
            spoke: false,
            patience: None,
            answers: VecDeque::new(),
            lent: None,
        });
        self.extend_patience(now);
    }

    /// There is no stream, or none any more. Gives the wait before the next try; `random` is in 0..1.
    pub fn disconnected(&mut self, lost: &Lost, random: f64, now: Instant) -> Duration {
        let spoke = self.stream.as_ref().is_some_and(|stream| stream.spoke);
        let lived = self.stream.as_ref().map(|stream| now.saturating_duration_since(stream.since));
        // Once all is synced, a server may have nothing to say.
        let worked = lived.filter(|_| spoke || self.synced());
        // Only what ends a stream before it said anything can have been about our first requests.
        let too_large = !spoke && lost.too_large();
        self.end_stream(too_large);
        self.counters.disconnects += 1;
        self.counters.terminations.count(lost);
        self.backoff.next(lost.end(), worked, random)
    }

    /// The next request to send. Poll after every event until there is none.
    pub fn poll_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.recover_leaked();
        let stream = self.stream.as_mut()?;
        if let Some(typed) = self.types.get_mut(stream.begun) {
            stream.begun += 1;
            return Some(DeltaDiscoveryRequest {
                node: Some(self.settings.node.clone()),
                ..typed.subscription.begin()
            });
        }
        stream
            .answers
            .pop_front()
            .or_else(|| self.types.iter_mut().find_map(|typed| typed.subscription.changes()))
    }

    /// Answers that wait to be polled.
    pub fn unsent_answers(&self) -> usize {
        self.stream.as_ref().map_or(0, |stream| stream.answers.len())
    }

    /// A response has come. Nothing else can happen until it is answered.
    pub fn received(
        &mut self,
        response: DeltaDiscoveryResponse,
        now: Instant,
    ) -> Result<Response<'_>, Unexpected> {
        self.recover_leaked();
        let DeltaDiscoveryResponse { type_url, nonce, resources: sent, removed_resources, .. } = response;
        let (type_url, nonce) = (TypeUrl::from(type_url), Nonce::from(nonce));
        let Some(stream) = self.stream.as_mut() else { return Err(Unexpected::NoStream(type_url)) };
        stream.spoke = true;
        let Some(index) = self.types.iter().position(|typed| *typed.subscription.type_url() == type_url)
        else {
            self.queue(answer(&type_url, &nonce, None));
            self.counters.unknown_type += 1;
            self.extend_patience(now);
            return Err(Unexpected::UnknownType { type_url, resources: sent.len() });
        };
        stream.lent = Some((type_url.clone(), nonce));
        let (changed, refused) = resource::sort_out(&type_url, sent);
        self.types[index].report.bytes +=
            changed.iter().map(|resource| resource.body.len() as u64).sum::<u64>();
        let removed = removed_resources.into_iter().map(ResourceName::from).collect();
        let mut update = Update { type_url, changed, removed };
        self.types[index].subscription.complete(&mut update, &refused);
        Ok(Response::new(self, index, update, refused, now))
    }

    /// Asks for one resource of an on-demand type.
    pub fn demand(&mut self, type_url: &TypeUrl, key: &str, now: Instant) -> Result<Demanded, Refused> {
        match self.types.iter_mut().find(|typed| typed.subscription.type_url() == type_url) {
            Some(typed) => typed.subscription.demand(key, now),
            None => Err(Refused::UnknownType(type_url.clone())),
        }
    }

    /// The next demand that has been answered.
    pub fn poll_answered(&mut self) -> Option<Answered> {
        self.answered.pop_front()
    }

    /// When `tick` has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let patience = self.stream.as_ref().and_then(|stream| stream.patience).map(|(until, _)| until);
        self.types.iter().filter_map(|typed| typed.subscription.deadline()).chain(patience).min()
    }

    /// Ends the waits that took too long. An error says that the stream is to be given up.
    pub fn tick(&mut self, now: Instant) -> Result<(), Lost> {
        let outcome = if self.stream.is_some() { Outcome::TimedOut } else { Outcome::Unavailable };
        for typed in &mut self.types {
            let type_url = typed.subscription.type_url().clone();
            for key in typed.subscription.expired(now) {
                self.answered.push_back(Answered { type_url: type_url.clone(), key, outcome });
            }
        }
        match self.stream.as_ref().and_then(|stream| stream.patience) {
            Some((until, waited)) if until <= now => Err(Lost::Silent { types: self.unsynced(), waited }),
            _ => Ok(()),
        }
    }

    /// Every type has been answered once; stays true for ever.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|typed| typed.synced)
    }

    pub fn unsynced(&self) -> Vec<TypeUrl> {
        self.types
            .iter()
            .filter(|typed| !typed.synced)
            .map(|typed| typed.subscription.type_url().clone())
            .collect()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn reports(&self) -> Vec<TypeReport> {
        self.types
            .iter()
            .map(|typed| TypeReport {
                held: typed.subscription.held().len(),
                synced: typed.synced,
                ..typed.report.clone()
            })
            .collect()
    }

    /// What is held of a type: the names and versions that the next stream begins with.
    pub fn held(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&ResourceName, &resource::Version)> {
        self.types
            .iter()
            .filter(move |typed| typed.subscription.type_url() == type_url)
            .flat_map(|typed| typed.subscription.held())
    }

    /// The consumer has applied the response that is lent out, but for what it rejected.
    fn settle(&mut self, index: usize, update: Update, rejected: &[Rejection], now: Instant) {
        if self.close(index, update, rejected, response::refusal(rejected)) {
            self.types[index].synced = true;
            self.extend_patience(now);
        }
    }

    /// The consumer did not say what became of the response that is lent out, so nothing of it counts.
    fn refuse(&mut self, index: usize, update: Update) {
        let reject = |name: ResourceName| Rejection::new(name, response::UNANSWERED);
        let mut rejected: Vec<_> =
            update.changed.iter().map(|resource| reject(resource.name.clone())).collect();
        if rejected.is_empty() {
            rejected.push(reject("<response>".into()));
        }
        let untold = Update { removed: Vec::new(), ..update };
        self.close(index, untold, &rejected, Some(response::UNANSWERED.to_owned()));
    }

    /// Records what was applied and answers. False if nothing is lent out.
    fn close(
        &mut self,
        index: usize,
        update: Update,
        rejected: &[Rejection],
        refusal: Option<String>,
    ) -> bool {
        let Some((type_url, nonce)) = self.stream.as_mut().and_then(|stream| stream.lent.take()) else {
            return false;
        };
        let typed = &mut self.types[index];
        typed.report.count(&update, rejected);
        for (key, outcome) in typed.subscription.record(update, rejected) {
            self.answered.push_back(Answered { type_url: type_url.clone(), key, outcome });
        }
        self.queue(answer(&type_url, &nonce, refusal));
        true
    }

    /// A response whose destructor never ran is gone; the server is told so.
    fn recover_leaked(&mut self) {
        let Some((type_url, nonce)) = self.stream.as_mut().and_then(|stream| stream.lent.take()) else {
            return;
        };
        self.queue(answer(&type_url, &nonce, Some(response::UNANSWERED.to_owned())));
    }

    fn queue(&mut self, answer: DeltaDiscoveryRequest) {
        if answer.error_detail.is_some() {
            self.counters.nacks += 1;
        } else {
            self.counters.acks += 1;
        }
        if let Some(stream) = &mut self.stream {
            stream.answers.push_back(answer);
        }
    }

    fn extend_patience(&mut self, now: Instant) {
        let synced = self.synced();
        let Some(stream) = &mut self.stream else { return };
        let wait = if stream.spoke { self.settings.next_answer } else { self.settings.first_answer };
        stream.patience = (!synced).then(|| (now + wait, wait));
    }

    fn end_stream(&mut self, too_large: bool) {
        if self.stream.take().is_some() {
            self.types.iter_mut().for_each(|typed| typed.subscription.end(too_large));
        }
    }
}

impl Typed {
    fn new(subscription: Subscription) -> Self {
        let synced = subscription.mode() == Mode::OnDemand;
        let report = TypeReport::new(subscription.type_url().clone());
        Self { subscription, synced, report }
    }
}

fn answer(type_url: &TypeUrl, nonce: &Nonce, refusal: Option<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_string(),
        response_nonce: nonce.to_string(),
        error_detail: refusal.map(|message| proto::Status { message, ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
