//! A connection between two pods of this node, for which no tunnel is made (SAME_NODE=plain): the bytes go from the one
//! application's socket to the other's.
//!
//! All that a tunnel would decide is decided here: both certificates are judged by both ends' trust, revocation included;
//! the destination's policy judges the proven identity, now and after every change; both ends count and log. Only the TLS
//! between two sockets of one process is left out. Where the destination is not served here, `find` has nothing, and a
//! tunnel finds it wherever it is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::FutureExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use ztunnel_model::{Authority, Hop, Identity, LocalAddr, Workload};

use super::failure::{DialFailure, Inbound, Outbound as Failure};
use super::live::{Direction, Listed};
use super::{CERTIFICATE_DEADLINE, LiveConnection, PodProxy};
use crate::hbone::{client, pool};
use crate::io::budget::Taken;
use crate::net::listen::Accepted;
use crate::policy::{self, AuthorizedConnection};
use crate::relay::Connection;
use crate::route::inbound::{Target, service_of, tunnelled};
use crate::route::outbound::{Route, addressed_service};
use crate::telemetry::PodMeters;
use crate::telemetry::events::{self, Endpoint, Facts, Reporter, Security, Trace};
use crate::tls::svid::Svid;
use crate::tls::verify::Peer;
use crate::tls::vouch::Vouched;

/// The pods on this worker, by address.
#[derive(Default)]
pub struct Neighbours(RefCell<HashMap<IpAddr, Weak<PodProxy>>>);

/// What was found of pairs of certificates: each is judged once, and again when either is renewed.
#[derive(Default)]
pub(super) struct Vouchers(RefCell<HashMap<Identity, Rc<Vouched>>>);

/// The destination's end of a connection.
pub(super) struct Beside {
    app: TcpStream,
    authorized: AuthorizedConnection,
    vouched: Rc<Vouched>,
    event: events::Connection,
    meters: PodMeters,
    stop: CancellationToken,
    _listed: Listed,
    _taken: Taken,
}

/// What the source knows of a connection.
pub(super) struct Call<'a> {
    pub(super) own: &'a Arc<Workload>,
    pub(super) accepted: &'a Accepted,
    pub(super) route: &'a Route,
    pub(super) trace: Trace,
}

impl Neighbours {
    pub(super) fn add(&self, pod: &Rc<PodProxy>) {
        let mut pods = self.0.borrow_mut();
        pods.retain(|_, known| known.strong_count() > 0);
        pods.extend(pod.facts.addresses.iter().map(|ip| (*ip, Rc::downgrade(pod))));
    }

    fn at(&self, ip: IpAddr) -> Option<Rc<PodProxy>> {
        let found = self.0.borrow().get(&ip)?.upgrade()?;
        (!found.stop.is_cancelled()).then_some(found)
    }
}

impl Vouchers {
    fn vouch(
        &self,
        client: Arc<Svid>,
        server: Arc<Svid>,
        hop: &Hop,
    ) -> Result<Rc<Vouched>, crate::tls::Error> {
        let known = self.0.borrow().get(server.identity()).cloned();
        let good = |known: &Rc<Vouched>| {
            known.is_of(&client, &server) && known.is_valid() && known.revoked().now_or_never().is_none()
        };
        if let Some(known) = known.filter(good) {
            return Ok(known);
        }
        let identity = server.identity().clone();
        let vouched = Rc::new(Vouched::judge(client, server, &hop.expected, hop.addr)?);
        let mut all = self.0.borrow_mut();
        all.retain(|_, known| known.is_valid());
        all.insert(identity, vouched.clone());
        Ok(vouched)
    }
}

/// The pod of this node that a route leads to, if nothing stands between, and it may answer there.
pub(super) fn find(pod: &PodProxy, route: &Route) -> Option<Rc<PodProxy>> {
    let Route::Hbone { hop, authority, .. } = route else { return None };
    if !pod.shared.plain_same_node || hop.addr.ip() != authority.ip() {
        return None;
    }
    pod.neighbours.at(authority.ip()).filter(|found| hop.expected.contains(&found.facts.identity))
}

pub(super) async fn connect(
    pod: &PodProxy,
    to: &PodProxy,
    (hop, authority): (&Hop, SocketAddr),
    call: Call<'_>,
) -> Result<Beside, Failure> {
    let client = pod.svid.wait(CERTIFICATE_DEADLINE).await.map_err(|error| undialled(error.into()))?;
    let Ok(server) = to.svid.wait(CERTIFICATE_DEADLINE).await else {
        return Err(answered(&Inbound::UnknownWorkload));
    };
    let vouched = pod.vouchers.vouch(client, server, hop).map_err(|error| {
        if error.is_revoked() {
            pod.shared.metrics.count_crl_rejection(Reporter::Source);
        }
        undialled(error.into())
    })?;
    let (own, target) = match target(to, hop, authority).await {
        Ok(found) => found,
        Err(failure) => return Err(answered(&failure)),
    };
    to.meters.count_connection(Reporter::Destination);
    let event = events::Connection::open(&to.shared.metrics, facts(to, &own, target, &call));
    let about = policy::Facts {
        peer: Peer::Verified(vouched.client().clone()),
        source: call.accepted.peer.addr(),
        destination: target.addr(),
    };
    let (_taken, authorized, app) = match to.admit_to_app(about, own).await {
        Ok(connected) => connected,
        Err(failure) => {
            let answer = answered(&failure);
            event.finish(Err(failure.into()));
            return Err(answer);
        }
    };
    let _listed = to.live.add(LiveConnection {
        direction: Direction::Inbound,
        src: call.accepted.peer.addr(),
        original_dst: addressed_service(call.route).map(|service| service.hostname.to_string()),
        actual_dst: target.addr(),
        protocol: "TCP",
    });
    let (meters, stop) = (to.meters.clone(), to.stop.clone());
    Ok(Beside { app, authorized, vouched, event, meters, stop, _listed, _taken })
}

/// `on_up` and `on_down` count for the source.
pub(super) async fn carry(
    source: &mut Connection,
    on_up: impl Fn(usize),
    on_down: impl Fn(usize),
    beside: Beside,
) -> Result<(), Failure> {
    let Beside { app, authorized, vouched, event: arrival, meters, stop, _listed, _taken } = beside;
    let (sent, received) = meters.relayed(&arrival);
    let up = move |count| {
        on_up(count);
        received(count);
    };
    let down = move |count| {
        on_down(count);
        sent(count);
    };
    let mut app = Connection::new(app);
    let (result, arrived) = tokio::select! {
        result = source.relay_to(&mut app, up, down) => {
            // What broke is told once, by the end that knows more of it.
            (result.map_err(Failure::from), Ok(()))
        }
        denied = authorized.revoked() => (Ok(()), Err(Inbound::Revoked(denied))),
        revoked = vouched.revoked() => (Err(Failure::Revoked(revoked)), Err(Inbound::CertificateRevoked)),
        () = stop.cancelled() => {
            // As a tunnel that is cut: a reset for the source, and what `arrival` says when it is dropped.
            [&*source, &app].into_iter().for_each(Connection::reset_on_close);
            return Ok(());
        }
    };
    if result.is_err() || arrived.is_err() {
        [&*source, &app].into_iter().for_each(Connection::reset_on_close);
    }
    arrival.finish(arrived.map_err(Into::into));
    result
}

async fn target(to: &PodProxy, hop: &Hop, authority: SocketAddr) -> Result<(Arc<Workload>, Target), Inbound> {
    let own = to.own_record().await.ok_or(Inbound::UnknownWorkload)?;
    let (local, asked) = (LocalAddr::new(hop.addr), Authority::Address(authority));
    let target = tunnelled(&to.shared.reader.snapshot(), &own, local, &asked)?;
    Ok((own, target))
}

fn undialled(failure: DialFailure) -> Failure {
    Failure::Tunnel(Rc::new(pool::Error::Dial(failure)))
}

/// What a tunnel's CONNECT would have been answered with.
fn answered(failure: &Inbound) -> Failure {
    Failure::Stream(client::Error::Status(failure.status()))
}

fn facts(to: &PodProxy, own: &Arc<Workload>, target: Target, call: &Call<'_>) -> Facts {
    let snapshot = to.shared.reader.snapshot();
    let host = addressed_service(call.route).map(|service| service.hostname.as_str());
    Facts {
        reporter: Reporter::Destination,
        src: call.accepted.peer.addr(),
        dst: target.addr(),
        hbone_addr: None,
        source: Endpoint::Workload(call.own.clone()),
        destination: Endpoint::Workload(own.clone()),
        destination_service: service_of(&snapshot, own, target, host),
        source_principal: Some(call.own.identity.clone()),
        destination_principal: Some(to.facts.identity.clone()),
        security: Security::SameNode,
        trace: Some(call.trace),
    }
}
