//! One client's task: requests in, responses out, and the deadlines of both.
//!
//! The next response is made only when the last one is on its way, from what the store is by then. It is handed over
//! through a queue of one and becomes bytes when the connection has room for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Buf;
use http_body::Body;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::clients::{Clients, Ended, Registered};
use super::grpc::{Inbound, Incoming};
use super::response::{Response, Room};
use super::session::{End, Received, Session, Step};
use super::store::Store;

/// How long a client may take to say what it wants.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may go without reading while there is something to read.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// A stream and all that its task needs.
pub(super) struct Stream<B> {
    pub(super) inbound: Inbound<B>,
    pub(super) responses: mpsc::Sender<Response>,
    /// Counts what the client has read.
    pub(super) taken: Arc<AtomicUsize>,
    pub(super) rooms: Arc<Semaphore>,
    pub(super) end: Arc<OnceLock<Status>>,
    pub(super) store: Store,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) clients: Clients,
    pub(super) registered: Registered,
    pub(super) stop: watch::Receiver<bool>,
    /// Ends when the caller's token counts no more.
    pub(super) lost: Pin<Box<dyn Future<Output = Status> + Send>>,
}

/// What there was to do.
enum Done {
    /// Nothing more until something happens.
    Idle,
    /// The client has not read the last response.
    Unread,
}

/// The client has read so much and no more since then.
#[derive(Clone, Copy)]
struct Unread {
    since: Instant,
    taken: usize,
}

/// A place in the queue for room, which is kept while other things happen.
struct Waiting(Option<Pin<Box<dyn Future<Output = Option<Room>> + Send>>>);

/// Why the stream is over, for the client and for who counts.
struct Ending {
    reason: Ended,
    status: Status,
}

impl Ending {
    fn new(reason: Ended, status: Status) -> Self {
        Self { reason, status }
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        let reason = match end {
            End::Unanswered { .. } => Ended::Unanswered,
            End::Behind(_) => Ended::Behind,
            _ => Ended::Refused,
        };
        Self::new(reason, end.status())
    }
}

enum Event {
    Stop(&'static str),
    Request(Result<Option<Box<Incoming>>, Status>),
    /// The client has read; or has gone, which is found out at once.
    Read,
    Room(Room),
    Change,
    Deadline,
}

impl<B> Stream<B>
where
    B: Body + Unpin,
    B::Data: Buf,
    B::Error: std::fmt::Display,
{
    /// Serves until the client goes, or is given up.
    pub(super) async fn run(mut self) {
        let Ending { reason: ended, status } = self.serve().await;
        self.clients.count_ended(ended);
        let connected = &self.registered.connected;
        let node = self.session().node().map(|node| node.id.clone()).unwrap_or_default();
        let (caller, peer) = (&connected.caller, connected.peer.map(tracing::field::display));
        let seconds = connected.since.elapsed().as_secs();
        let (code, reason) = (status.code(), status.message());
        if matches!(code, Code::Ok | Code::Unavailable | Code::Cancelled) {
            tracing::info!(%caller, ?node, peer, seconds, ?code, ?reason, "xDS client gone");
        } else {
            tracing::warn!(%caller, ?node, peer, seconds, ?code, ?reason, "xDS client given up");
        }
        // Nobody else sets it.
        let _ = self.end.set(status);
    }

    async fn serve(&mut self) -> Ending {
        let begun = Instant::now();
        let mut unread_since = None;
        let mut taken = 0;
        // The place of a large request, held until what it lists is compared for the most part.
        let mut place = None;
        let mut room = Waiting(None);
        loop {
            match self.advance().await {
                Ok(Done::Idle) => unread_since = None,
                Ok(Done::Unread) => _ = unread_since.get_or_insert_with(|| self.unread()),
                Err(end) => return end.into(),
            }
            drop(place.take());
            room.wait_if(self.session().waits_for_room(), &self.rooms);
            let silent = self.session().node().is_none().then_some(begun + FIRST_REQUEST_DEADLINE);
            let unread = unread_since.map(|Unread { since, .. }| since + READ_DEADLINE);
            let answer = self.session().next_deadline().map(Instant::from_std);
            let deadlines = [silent, unread, answer, self.inbound.deadline()];
            let deadline = deadlines.into_iter().flatten().min();
            let event = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => Event::Stop("the controller is stopping"),
                () = self.responses.closed() => {
                    return Ending::new(Ended::Closed, Status::cancelled("the client has gone"));
                }
                incoming = self.inbound.message() => Event::Request(incoming),
                _ = self.responses.reserve(), if unread_since.is_some() => Event::Read,
                changed = self.changes.changed() => match changed {
                    Ok(()) => Event::Change,
                    Err(_) => Event::Stop("there is nothing to serve any more"),
                },
                Some(given) = room.given() => Event::Room(given),
                status = &mut self.lost => return Ending::new(Ended::Unproven, status),
                () = until(deadline) => Event::Deadline,
            };
            match event {
                Event::Stop(why) => return Ending::new(Ended::Stopped, Status::unavailable(why)),
                Event::Request(Ok(None)) => return Ending::new(Ended::Closed, Status::ok("")),
                Event::Request(Err(status)) => return Ending::new(Ended::Broken, status),
                Event::Request(Ok(Some(incoming))) => match self.received(*incoming) {
                    Ok(of_large) => place = of_large,
                    Err(end) => return end.into(),
                },
                Event::Read => unread_since = None,
                Event::Room(given) => self.session().give_room(given),
                Event::Change => {}
                Event::Deadline => {
                    let before = std::mem::replace(&mut taken, self.taken.load(Ordering::Relaxed));
                    if before != taken {
                        self.session().goes_on(std::time::Instant::now());
                    }
                    // What is long is read for long.
                    let unread = match unread_since {
                        Some(before) if before.taken != self.taken.load(Ordering::Relaxed) => {
                            unread_since = Some(self.unread());
                            None
                        }
                        _ => unread,
                    };
                    if let Some(ending) = self.overdue(silent, unread) {
                        return ending;
                    }
                }
            }
        }
    }

    /// Does what there is to do without waiting for the client.
    async fn advance(&mut self) -> Result<Done, End> {
        loop {
            let Ok(place) = self.responses.try_reserve() else { return Ok(Done::Unread) };
            self.changes.mark_unchanged();
            let step = session(&self.registered).poll(&self.store, std::time::Instant::now());
            match step? {
                Step::Send(response) => {
                    self.clients.count_sent(&response);
                    place.send(response);
                }
                Step::Working => {
                    drop(place);
                    tokio::task::yield_now().await;
                }
                Step::Idle => return Ok(Done::Idle),
            }
        }
    }

    fn received(&mut self, incoming: Incoming) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, End> {
        let Incoming { request, place } = incoming;
        let type_url = request.type_url.clone();
        let received = self.session().received(request, std::time::Instant::now())?;
        self.clients.count_received(&type_url, &received);
        if let Received::Nack(nack) = received {
            let connected = &self.registered.connected;
            let (caller, peer) = (&connected.caller, connected.peer.map(tracing::field::display));
            tracing::warn!(%caller, peer, ?type_url, nonce = nack.nonce, error = ?nack.message, "NACK");
        }
        Ok(place)
    }

    /// Which deadline has passed, if it still counts.
    fn overdue(&self, silent: Option<Instant>, unread: Option<Instant>) -> Option<Ending> {
        let now = Instant::now();
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let late = |reason: Ended, what: &str, limit: Duration| {
            let status = Status::deadline_exceeded(format!("{what} in {} s", limit.as_secs()));
            Some(Ending::new(reason, status))
        };
        if passed(silent) {
            return late(Ended::Silent, "the client said nothing", FIRST_REQUEST_DEADLINE);
        }
        if passed(unread) {
            return late(Ended::Unread, "the client read nothing", READ_DEADLINE);
        }
        if passed(self.inbound.deadline()) {
            let status = Status::deadline_exceeded("a request was begun and did not end in time");
            return Some(Ending::new(Ended::Silent, status));
        }
        self.session().tick(now.into_std()).err().map(Ending::from)
    }

    fn unread(&self) -> Unread {
        Unread { since: Instant::now(), taken: self.taken.load(Ordering::Relaxed) }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        session(&self.registered)
    }
}

impl Waiting {
    fn wait_if(&mut self, needed: bool, rooms: &Arc<Semaphore>) {
        if needed && self.0.is_none() {
            let rooms = Arc::clone(rooms);
            self.0 = Some(Box::pin(async move { rooms.acquire_owned().await.ok() }));
        }
    }

    async fn given(&mut self) -> Option<Room> {
        let given = self.0.as_mut()?.await;
        self.0 = None;
        given
    }
}

fn session(registered: &Registered) -> MutexGuard<'_, Session> {
    registered.connected.session.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
