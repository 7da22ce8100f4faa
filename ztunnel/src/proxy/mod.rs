//! The three straight lines of a pod on one worker: outbound, inbound (HBONE), and inbound plaintext.
//!
//! Each line opens a connection in one async function that reads from top to bottom, and carries it in another; what it
//! needs of the pod is in `PodProxy`. State of a connection lives in its task and ends with it. Must not know how pods come
//! and go (`pod`) nor who asks for dumps (`admin`).

mod arrival;
pub mod failure;
pub mod inbound;
mod live;
mod neighbour;
pub mod outbound;
mod own;
pub mod passthrough;
mod seats;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use redirect::client::Listeners;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use ztunnel_model::{Identity, Network, Text, Workload};

use crate::hbone;
use crate::hbone::pool::Pool;
use crate::identity::manager::PodSvid;
use crate::io::budget::{Budget, Room, Taken};
use crate::io::load::Loads;
use crate::io::share::{Account, as_one_of};
use crate::net::listen::{Accepted, Listener};
use crate::net::socket::Options;
use crate::net::stock::{self, Ask, Stock};
use crate::policy::{self, AuthorizedConnection, Enforcer};
use crate::shutdown::Drain;
use crate::state::{Demand, Reader, Snapshot};
use crate::telemetry::events::{ConnectionSlowed, Reporter};
use crate::telemetry::{Metrics, PodMeters};
pub use arrival::Arrival;
use arrival::{Held, Line};
use failure::DialFailure;
pub use live::{Direction, Live, LiveConnection};
pub use neighbour::Neighbours;
use seats::Seats;

/// How long a connection waits for the pod's certificate.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection waits for a socket to dial with.
const STOCK_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stream waits for memory; within the time for which a peer waits for an answer.
const ROOM_DEADLINE: Duration = Duration::from_secs(15);
/// How often a stock is looked at for sockets that nobody needs.
const STOCK_REVIEW: Duration = Duration::from_secs(5);

/// What all pods share.
pub struct Shared {
    pub reader: Reader,
    /// `None` when the state holds everything anyway.
    pub demand: Option<Demand>,
    pub metrics: Arc<Metrics>,
    pub node: Option<String>,
    pub network: Network,
    pub cluster_id: Text,
    pub hbone: hbone::Settings,
    pub sockets: Options,
    /// Of connections that stay on this node: between an application and this proxy.
    pub local_sockets: Options,
    pub original_source: bool,
    /// Connections between pods of this node go without TLS.
    pub plain_same_node: bool,
    pub response_baggage: bool,
    pub policy_at_info: bool,
    pub drain: Drain,
    pub stocks: stock::Budget,
    pub memory: Budget,
}

/// Who a pod is, as the agent said.
#[derive(Clone, Debug)]
pub struct PodFacts {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub identity: Identity,
}

/// Where a pod is served.
pub struct Place {
    pub worker: usize,
    /// Its connections there.
    pub live: Live,
    pub neighbours: Rc<Neighbours>,
    /// What it takes on all workers.
    pub room: Arc<Room>,
    pub loads: Arc<Loads>,
    /// Gives a connection to the pod's share on another worker.
    pub elsewhere: Elsewhere,
    pub stop: CancellationToken,
}

pub type Elsewhere = Box<dyn Fn(usize, Arrival)>;

/// A connection that is open, until it ends. Opening it takes several times the memory of all the life that follows, so it is a
/// future of its own, gone by then.
type Carried = LocalBoxFuture<'static, ()>;
/// None when it was refused or failed, which is told by then.
type Opening = LocalBoxFuture<'static, Option<Carried>>;

/// One pod on one worker.
pub struct PodProxy {
    facts: Arc<PodFacts>,
    shared: Arc<Shared>,
    svid: PodSvid,
    stock: Rc<Stock>,
    pool: Rc<Pool<DialFailure>>,
    enforcer: Rc<Enforcer>,
    worker: usize,
    live: Live,
    neighbours: Rc<Neighbours>,
    room: Arc<Room>,
    seats: Seats,
    elsewhere: Elsewhere,
    vouchers: neighbour::Vouchers,
    meters: PodMeters,
    account: Rc<Account>,
    /// What arrives is shared by where it comes from: one busy client must not hold up the others.
    callers: RefCell<HashMap<IpAddr, Weak<Account>>>,
    /// Ends the accepting on the listeners in use.
    listening: RefCell<CancellationToken>,
    /// Ends everything of this pod at once, and when the process ends everything.
    stop: CancellationToken,
}

impl PodProxy {
    /// Starts to serve the pod on this worker, until its place's `stop`. Where it accepts is told by `listen`.
    pub fn start(
        facts: Arc<PodFacts>,
        shared: Arc<Shared>,
        svid: PodSvid,
        ask: Ask,
        Place { worker, live, neighbours, room, loads, elsewhere, stop }: Place,
    ) -> Rc<Self> {
        let stock = Stock::new(shared.stocks.clone(), ask);
        let meters = shared.metrics.pod(&facts.namespace, &facts.name);
        let account = account(&meters);
        let pool = Pool::new(shared.hbone.clone(), account.clone(), stop.clone());
        let (finder, node) = (facts.clone(), shared.node.clone());
        let own = Box::new(move |snapshot: &Snapshot| own::record(snapshot, &finder, node.as_deref()));
        let enforcer = Enforcer::new(shared.reader.clone(), own, shared.policy_at_info);
        let pod = Rc::new(Self {
            facts,
            shared,
            svid,
            stock,
            pool,
            enforcer,
            worker,
            live,
            neighbours,
            room,
            seats: Seats::new(loads),
            elsewhere,
            vouchers: neighbour::Vouchers::default(),
            meters,
            account,
            callers: RefCell::default(),
            listening: RefCell::default(),
            stop,
        });
        pod.neighbours.add(&pod);
        pod.keep_house();
        pod
    }

    /// Accepts on listeners that the agent handed over, instead of those before.
    pub fn listen(self: &Rc<Self>, listeners: Listeners) -> std::io::Result<()> {
        let options = &self.shared.sockets;
        let outbound = Listener::new(listeners.outbound, &self.shared.local_sockets)?;
        let plaintext = Listener::new(listeners.plaintext, options)?;
        let hbone = Listener::new(listeners.hbone, options)?;
        self.listening.replace(self.stop.child_token()).cancel();
        self.accept(outbound, Line::Outbound);
        self.accept(plaintext, Line::Plaintext);
        self.accept(hbone, Line::Hbone);
        Ok(())
    }

    /// Accepts no more here: another worker does.
    pub fn deafen(&self) {
        self.listening.borrow().cancel();
    }

    /// Carries a connection that another worker accepted.
    pub fn receive(self: &Rc<Self>, arrival: Arrival) {
        match arrival.settle() {
            Ok((line, accepted, held)) => self.carry(line, accepted, held),
            Err(error) => tracing::warn!(%error, "a connection was lost between two workers"),
        }
    }

    /// Policy first, then the application, which is dialled only for what policy allows.
    async fn to_app(
        &self,
        facts: policy::Facts,
        own: Arc<Workload>,
    ) -> Result<(AuthorizedConnection, TcpStream), failure::Inbound> {
        let authorized = self.enforcer.authorize(facts, own)?;
        let connected = async {
            let socket = self.stock.take(STOCK_DEADLINE).await?;
            let source = self.shared.original_source;
            let app = authorized
                .connect_app(socket, source, hbone::DIAL_DEADLINE, &self.shared.local_sockets)
                .await?;
            Ok::<_, failure::Inbound>(app)
        };
        let app = tokio::select! {
            app = connected => app?,
            denied = authorized.revoked() => return Err(failure::Inbound::Revoked(denied)),
        };
        Ok((authorized, app))
    }

    /// The same for what was not accepted as a connection of its own, once there is memory for it: somebody waits, so not for ever.
    async fn admit_to_app(
        &self,
        facts: policy::Facts,
        own: Arc<Workload>,
    ) -> Result<(Taken, AuthorizedConnection, TcpStream), failure::Inbound> {
        let left = self.room_left(Reporter::Destination);
        tokio::time::timeout(ROOM_DEADLINE, left).await.map_err(|_| failure::Inbound::NoRoom)?;
        let taken = self.room.take();
        let (authorized, app) = self.to_app(facts, own).await?;
        Ok((taken, authorized, app))
    }

    /// Sockets that the agent sent for this worker.
    pub fn restock(&self, sockets: Vec<OwnedFd>) {
        self.stock.put(sockets);
    }

    /// The agent is new and knows of nothing that its predecessor was asked for.
    pub fn ask_again(&self) {
        self.stock.ask_again();
    }

    fn accept(self: &Rc<Self>, listener: Listener, line: Line) {
        let pod = self.clone();
        let listening = pod.listening.borrow().clone();
        let source = pod.shared.drain.source();
        tokio::task::spawn_local(async move {
            let _source = source;
            loop {
                let accepted = tokio::select! {
                    // What the kernel has accepted is served before this listener is given up.
                    biased;
                    accepted = pod.accept_one(&listener, line) => accepted,
                    () = pod.shared.drain.graceful().cancelled() => return,
                    () = listening.cancelled() => return,
                };
                pod.place(line, accepted);
            }
        });
    }

    async fn accept_one(&self, listener: &Listener, line: Line) -> Accepted {
        if line.takes_room() {
            self.room_left(line.reporter()).await;
        }
        listener.accept().await
    }

    /// Waits for as long as there is no memory for another connection.
    async fn room_left(&self, reporter: Reporter) {
        let memory = &self.shared.memory;
        if let Some(beyond) = memory.beyond(&self.room) {
            let PodFacts { namespace, name: pod, .. } = &*self.facts;
            ConnectionSlowed { namespace, pod, reporter, budget: beyond.as_str() }.emit(&self.shared.metrics);
            memory.wait(&self.room).await;
        }
    }

    /// Has a connection carried, here or on another worker.
    fn place(self: &Rc<Self>, line: Line, accepted: Accepted) {
        let seat = self.seats.take(line.whose(&accepted), self.worker);
        let worker = seat.worker();
        let held = Held {
            _guard: self.shared.drain.guard(),
            _open: self.shared.metrics.socket_opened(line.reporter()),
            _carried: self.shared.metrics.carried(worker),
            _taken: line.takes_room().then(|| self.room.take()),
            _seat: seat,
        };
        if worker == self.worker {
            return self.carry(line, accepted, held);
        }
        match Arrival::new(line, accepted, held) {
            Ok(arrival) => (self.elsewhere)(worker, arrival),
            Err(error) => tracing::warn!(%error, "a connection was lost between two workers"),
        }
    }

    fn carry(self: &Rc<Self>, line: Line, accepted: Accepted, held: Held) {
        let account = match line {
            Line::Outbound => self.account.clone(),
            Line::Plaintext | Line::Hbone => self.called_by(accepted.peer.ip()),
        };
        let opening = line.open(self.clone(), accepted);
        tokio::task::spawn_local(as_one_of(&account, until_stopped(self.stop.clone(), opening, held)));
    }

    /// The account of what a caller does with this pod.
    fn called_by(&self, caller: IpAddr) -> Rc<Account> {
        let mut callers = self.callers.borrow_mut();
        if let Some(known) = callers.get(&caller).and_then(Weak::upgrade) {
            return known;
        }
        if callers.len() == callers.capacity() {
            callers.retain(|_, known| known.strong_count() > 0);
        }
        let new = account(&self.meters);
        callers.insert(caller, Rc::downgrade(&new));
        new
    }

    fn keep_house(self: &Rc<Self>) {
        let pod = self.clone();
        tokio::task::spawn_local(async move {
            let review = async {
                loop {
                    tokio::time::sleep(STOCK_REVIEW).await;
                    pod.stock.review();
                }
            };
            let asked = async {
                pod.ask_for_record().await;
                std::future::pending::<()>().await;
            };
            let drained = async {
                pod.shared.drain.graceful().cancelled().await;
                pod.pool.release_all();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = pod.enforcer.clone().watch() => {}
                () = pod.pool.clone().release_unused() => {}
                () = review => {}
                () = asked => {}
                () = drained => {}
                () = pod.stop.cancelled() => {}
            }
        });
    }
}

async fn until_stopped<H>(stop: CancellationToken, opening: Opening, held: H) {
    let served = async {
        if let Some(carried) = opening.await {
            carried.await;
        }
    };
    tokio::select! {
        // Before anything that it carries ends by the same signal and tells another story.
        biased;
        () = stop.cancelled() => {}
        () = served => {}
    }
    drop(held);
}

fn account(meters: &PodMeters) -> Rc<Account> {
    let worker = meters.worker.clone();
    Account::new(move |time| worker.inc_by(time.as_secs_f64()))
}
