//! The three straight lines of a pod on one worker: outbound, inbound (HBONE), and inbound plaintext.
//!
//! Each line is one async function that reads from top to bottom; what it needs of the pod is in `PodProxy`. State of
//! a connection lives in its task and ends with it. Must not know how pods come and go (`pod`) nor who asks for dumps
//! (`admin`).

pub mod failure;
pub mod inbound;
mod live;
mod neighbour;
pub mod outbound;
mod own;
pub mod passthrough;

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
use crate::io::share::{Account, as_one_of};
use crate::net::listen::{Accepted, Listener};
use crate::net::socket::Options;
use crate::net::stock::{Ask, Budget, Stock};
use crate::policy::{self, AuthorizedConnection, Enforcer};
use crate::shutdown::Drain;
use crate::state::{Demand, Reader, Snapshot};
use crate::telemetry::events::Reporter;
use crate::telemetry::{Metrics, PodMeters};
use failure::DialFailure;
pub use live::{Direction, Live, LiveConnection};
pub use neighbour::Neighbours;

/// How long a connection waits for the pod's certificate.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection waits for a socket to dial with.
const STOCK_DEADLINE: Duration = Duration::from_secs(10);
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
    pub original_source: bool,
    /// Connections between pods of this node go without TLS.
    pub plain_same_node: bool,
    pub response_baggage: bool,
    pub policy_at_info: bool,
    pub drain: Drain,
    pub stocks: Budget,
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
    /// Its connections there.
    pub live: Live,
    pub neighbours: Rc<Neighbours>,
    pub stop: CancellationToken,
}

/// One pod on one worker.
pub struct PodProxy {
    facts: Arc<PodFacts>,
    shared: Arc<Shared>,
    svid: PodSvid,
    stock: Rc<Stock>,
    pool: Rc<Pool<DialFailure>>,
    enforcer: Rc<Enforcer>,
    live: Live,
    neighbours: Rc<Neighbours>,
    vouchers: neighbour::Vouchers,
    meters: PodMeters,
    account: Rc<Account>,
    /// What arrives is shared by where it comes from: one busy client must not hold up the others.
    callers: RefCell<HashMap<IpAddr, Weak<Account>>>,
    /// Ends the accepting on the listeners in use.
    listening: RefCell<CancellationToken>,
    /// Ends everything of this pod at once.
    stop: CancellationToken,
}

impl PodProxy {
    /// Starts to serve the pod on this worker, until its place's `stop`.
    pub fn start(
        facts: Arc<PodFacts>,
        shared: Arc<Shared>,
        svid: PodSvid,
        listeners: Listeners,
        ask: Ask,
        Place { live, neighbours, stop }: Place,
    ) -> std::io::Result<Rc<Self>> {
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
            live,
            neighbours,
            vouchers: neighbour::Vouchers::default(),
            meters,
            account,
            callers: RefCell::default(),
            listening: RefCell::default(),
            stop,
        });
        pod.listen(listeners)?;
        pod.neighbours.add(&pod);
        pod.keep_house();
        Ok(pod)
    }

    /// Accepts on listeners that the agent handed over, instead of those before.
    pub fn listen(self: &Rc<Self>, listeners: Listeners) -> std::io::Result<()> {
        let options = &self.shared.sockets;
        let outbound = Listener::new(listeners.outbound, options)?;
        let plaintext = Listener::new(listeners.plaintext, options)?;
        let hbone = Listener::new(listeners.hbone, options)?;
        self.listening.replace(self.stop.child_token()).cancel();
        self.accept(outbound, Reporter::Source, |pod, accepted| Box::pin(outbound::serve(pod, accepted)));
        self.accept(plaintext, Reporter::Destination, |pod, accepted| {
            Box::pin(passthrough::serve(pod, accepted))
        });
        self.accept(hbone, Reporter::Destination, |pod, accepted| Box::pin(inbound::serve(pod, accepted)));
        Ok(())
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
            let app =
                authorized.connect_app(socket, source, hbone::DIAL_DEADLINE, &self.shared.sockets).await?;
            Ok::<_, failure::Inbound>(app)
        };
        let app = tokio::select! {
            app = connected => app?,
            denied = authorized.revoked() => return Err(failure::Inbound::Revoked(denied)),
        };
        Ok((authorized, app))
    }

    /// Sockets that the agent sent for this worker.
    pub fn restock(&self, sockets: Vec<OwnedFd>) {
        self.stock.put(sockets);
    }

    /// The agent is new and knows of nothing that its predecessor was asked for.
    pub fn ask_again(&self) {
        self.stock.ask_again();
    }

    fn accept<F>(self: &Rc<Self>, listener: Listener, reporter: Reporter, line: F)
    where
        F: Fn(Rc<Self>, Accepted) -> LocalBoxFuture<'static, ()> + 'static,
    {
        let pod = self.clone();
        let listening = pod.listening.borrow().clone();
        tokio::task::spawn_local(async move {
            loop {
                let accepted = tokio::select! {
                    // What the kernel has accepted is served before this listener is given up.
                    biased;
                    accepted = listener.accept() => accepted,
                    () = pod.shared.drain.graceful().cancelled() => return,
                    () = listening.cancelled() => return,
                };
                let guard = pod.shared.drain.guard();
                let open = pod.shared.metrics.socket_opened(reporter);
                let account = match reporter {
                    Reporter::Source => pod.account.clone(),
                    Reporter::Destination => pod.called_by(accepted.peer.ip()),
                };
                let line = line(pod.clone(), accepted);
                let (stop, force) = (pod.stop.clone(), pod.shared.drain.force().clone());
                tokio::task::spawn_local(as_one_of(&account, async move {
                    tokio::select! {
                        () = line => {}
                        () = stop.cancelled() => {}
                        () = force.cancelled() => {}
                    }
                    drop((guard, open));
                }));
            }
        });
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

fn account(meters: &PodMeters) -> Rc<Account> {
    let worker = meters.worker.clone();
    Account::new(move |time| worker.inc_by(time.as_secs_f64()))
}
