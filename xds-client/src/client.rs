//! The thin async shell: runs the machine over a transport, on the control thread, until it is dropped or told to stop.
//!
//! Owns the one stream, the wait between streams, and the way in for other threads ([`Demand`]) and out of it
//! ([`Status`], the sync signal). Must not know rules of the protocol: those are `delta`'s.
//!
//! - **Applying.** A response is handed to the [`Sink`] in place and answered by what that returns: between the two
//!   there is no await, no queue and no other thread, so an update can be neither lost nor half answered, not even by a
//!   shutdown. The next response is read only after that, and HTTP/2 holds the server back.
//! - **Bounds.** Opening a stream has a deadline; so has a server that does not read its requests, one that never answers
//!   (`delta`) and every demand. Queues: requests to send (16, then the machine holds back), answers that wait for a server
//!   that does not read (64, then no response is read), demands on their way (4096), callers that wait (65536).

mod demand;
mod status;

use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use prost::Message;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;

pub use demand::Demand;
pub use status::{Connection, Status};

use crate::backoff::End;
use crate::delta::{Lost, Machine, Settings};
use crate::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::{Rejection, Update};
use crate::transport::{Stream, Transport};
use demand::{Ask, Waiters};

/// Reading roots and token, name, TCP, TLS and HTTP/2 together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the server may leave requests unread.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers that may wait for a server that does not read before no more responses are read.
const UNSENT_ANSWERS: usize = 64;

/// Applies updates.
pub trait Sink {
    /// Applies what can be applied and gives a rejection for each resource that cannot. A rejected resource stays as it
    /// was before. Called on the control thread, which does nothing else meanwhile.
    fn apply(&mut self, update: &mut Update) -> Vec<Rejection>;

    /// Every type has been answered, for the first time. Called once, before anybody else hears of it.
    fn synced(&mut self) {}
}

impl<F: FnMut(&mut Update) -> Vec<Rejection>> Sink for F {
    fn apply(&mut self, update: &mut Update) -> Vec<Rejection> {
        self(update)
    }
}

/// The client, before it runs.
#[must_use = "nothing happens until it runs"]
pub struct Client<T, S> {
    transport: T,
    core: Core<S>,
}

/// What others have of the client. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub demand: Demand,
    /// Becomes true once every type has been answered, and stays so.
    pub synced: watch::Receiver<bool>,
    pub status: watch::Receiver<Status>,
}

struct Core<S> {
    machine: Machine,
    sink: S,
    asks: mpsc::Receiver<Ask>,
    /// Keeps `asks` open.
    _demand: Demand,
    waiters: Waiters,
    status: watch::Sender<Status>,
    synced: watch::Sender<bool>,
}

impl<T: Transport, S: Sink> Client<T, S> {
    pub fn new(settings: Settings, transport: T, sink: S) -> (Self, Handle) {
        let machine = Machine::new(settings);
        let (demand, asks) = Demand::channel();
        let (status, status_reader) = watch::channel(Status::new(now(), &machine));
        let (synced, synced_reader) = watch::channel(machine.synced());
        let handle = Handle { demand: demand.clone(), synced: synced_reader, status: status_reader };
        let core = Core { machine, sink, asks, _demand: demand, waiters: Waiters::default(), status, synced };
        (Self { transport, core }, handle)
    }

    /// Runs until `shutdown`. Demands that still wait are then unavailable.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = shutdown => {}
            never = self.serve() => match never {},
        }
    }

    async fn serve(&mut self) -> Infallible {
        loop {
            let lost = match self.open().await {
                Ok(stream) => self.core.serve(stream).await,
                Err(lost) => lost,
            };
            let wait = self.core.disconnected(lost);
            self.core.meanwhile(tokio::time::sleep(wait)).await;
        }
    }

    async fn open(&mut self) -> Result<Stream, Lost> {
        self.core.connecting();
        let opening = tokio::time::timeout(OPEN_TIMEOUT, self.transport.open());
        match self.core.meanwhile(opening).await {
            Ok(opened) => opened.map_err(|error| Lost::NotConnected(error.to_string())),
            Err(_) => {
                let waited = OPEN_TIMEOUT.as_secs();
                Err(Lost::NotConnected(format!("the xDS server did not take a connection in {waited} s")))
            }
        }
    }
}

impl<S: Sink> Core<S> {
    /// Serves demands until `work` is done; there is no stream.
    async fn meanwhile<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            self.deliver();
            let deadline = self.machine.next_deadline();
            tokio::select! {
                output = &mut work => return output,
                ask = self.asks.recv() => self.ask(ask),
                // Without a stream only demands run out of time.
                () = until(deadline) => drop(self.machine.tick(now())),
            }
        }
    }

    /// Serves one stream until it is lost.
    async fn serve(&mut self, stream: Stream) -> Lost {
        let Stream { requests, mut responses } = stream;
        self.machine.connected(now());
        self.connected();
        let mut unsent: Option<(DeltaDiscoveryRequest, Instant)> = None;
        loop {
            self.deliver();
            self.send(&requests, &mut unsent);
            let deadline = self.machine.next_deadline();
            let unread = unsent.as_ref().map(|(_, since)| *since + UNREAD_TIMEOUT);
            let reading = self.machine.unsent_answers() < UNSENT_ANSWERS;
            tokio::select! {
                response = responses.next(), if reading => match response {
                    Some(Ok(response)) => self.receive(response),
                    Some(Err(status)) => return Lost::Status(Box::new(status)),
                    None => return Lost::Closed,
                },
                ask = self.asks.recv() => self.ask(ask),
                // Room, or nobody takes requests any more.
                _ = requests.reserve(), if unsent.is_some() && !requests.is_closed() => {}
                () = until(unread) => return Lost::Stuck { waited: UNREAD_TIMEOUT },
                () = until(deadline) => if let Err(lost) = self.machine.tick(now()) {
                    return lost;
                },
            }
        }
    }

    /// Hands over what there is room for.
    fn send(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
        unsent: &mut Option<(DeltaDiscoveryRequest, Instant)>,
    ) {
        loop {
            let (request, since) = match unsent.take() {
                Some(waiting) => waiting,
                None => match self.machine.poll_request() {
                    Some(request) => (request, now()),
                    None => return,
                },
            };
            let bytes = request.encoded_len() as u64;
            match requests.try_send(request) {
                Ok(()) => self.status.send_modify(|status| status.bytes_sent += bytes),
                // If the queue is closed the stream has ended, and its responses say why; or should, in time.
                Err(TrySendError::Full(request) | TrySendError::Closed(request)) => {
                    return *unsent = Some((request, since));
                }
            }
        }
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) {
        let bytes = response.encoded_len() as u64;
        match self.machine.received(response, now()) {
            Ok(mut lent) => {
                let update = lent.update();
                let type_url = update.type_url().clone();
                let (changed, removed) = (update.changed().len(), update.removed().len());
                let rejected = self.sink.apply(update);
                lent.answer(rejected);
                tracing::debug!(%type_url, changed, removed, bytes, "xDS response");
            }
            Err(error) => tracing::warn!(%error, "xDS response not used"),
        }
        self.received(bytes);
    }

    fn ask(&mut self, ask: Option<Ask>) {
        if let Some(ask) = ask {
            self.waiters.take(ask, &mut self.machine, now());
        }
    }

    /// Tells callers what their demands came to.
    fn deliver(&mut self) {
        while let Some(answered) = self.machine.poll_answered() {
            self.waiters.answer(answered);
        }
    }
}

/// What is told about the client.
impl<S: Sink> Core<S> {
    fn connecting(&self) {
        self.status.send_modify(|status| status.connection = Connection::Connecting { since: now() });
    }

    fn connected(&self) {
        tracing::info!("connected to the xDS server");
        let counters = self.machine.counters();
        self.status.send_modify(|status| {
            status.connection = Connection::Connected { since: now() };
            status.counters = counters;
        });
    }

    fn disconnected(&mut self, lost: Lost) -> Duration {
        let now = now();
        let wait = self.machine.disconnected(&lost, rand::random(), now);
        let wait_ms = wait.as_millis() as u64;
        if lost.end() == End::Ordinary {
            tracing::info!(reason = %lost, wait_ms, "the xDS stream ended");
        } else {
            tracing::warn!(error = %lost, wait_ms, "no xDS stream");
        }
        let counters = self.machine.counters();
        self.status.send_modify(|status| {
            status.connection = Connection::Waiting { since: now, until: now + wait };
            status.last_error = Some(lost.to_string());
            status.counters = counters;
        });
        wait
    }

    fn received(&mut self, bytes: u64) {
        let (counters, types) = (self.machine.counters(), self.machine.reports());
        self.status.send_modify(|status| {
            for (before, after) in status.types.iter().zip(&types).filter(|(old, new)| old.nacks != new.nacks)
            {
                let rejected = after.rejected - before.rejected;
                let first = after.last_rejection.as_ref();
                let (name, reason) =
                    first.map_or(("", ""), |first| (first.name.as_str(), first.reason.as_str()));
                tracing::warn!(type_url = %after.type_url, rejected, name, reason, "xDS response refused");
            }
            status.bytes_received += bytes;
            (status.counters, status.types) = (counters, types);
        });
        if self.machine.synced() && !*self.synced.borrow() {
            self.sink.synced();
            self.synced.send_replace(true);
        }
    }
}

/// The machine's clock; it follows a paused one in tests.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
