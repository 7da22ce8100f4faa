//! A connection that an application of this pod opened.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use ztunnel_model::{Hop, Workload, WorkloadUid};

use super::failure::{DialFailure, Outbound as Failure};
use super::live::{Direction, Listed};
use super::neighbour::{self, Beside, Call};
use super::{CERTIFICATE_DEADLINE, Carried, LiveConnection, PodProxy, STOCK_DEADLINE};
use crate::hbone::client::Connected;
use crate::hbone::headers;
use crate::hbone::{DIAL_DEADLINE, HANDSHAKE_DEADLINE, pool};
use crate::net::dial::dial;
use crate::net::listen::Accepted;
use crate::net::socket::reset_on_close;
use crate::relay::Connection;
use crate::route::outbound::{Route, addressed_service, route};
use crate::state::Snapshot;
use crate::telemetry::events::{self, EarlyDeny, Endpoint, Facts, Reporter, Security, Trace};
use crate::tls;

/// Endpoints of a service that one connection tries at most.
const ATTEMPTS: usize = 3;

/// The far side of a connected route.
enum Far {
    Stream(Connected),
    Beside(Box<Beside>),
    Tcp(TcpStream),
}

/// A connection whose far side answered.
struct Opened {
    far: Far,
    event: events::Connection,
    listed: Listed,
}

pub(super) async fn open(pod: Rc<PodProxy>, accepted: Accepted) -> Option<Carried> {
    match find_way(&pod, &accepted).await {
        Some(opened) => Some(carry(pod, Connection::new(accepted.stream), opened)),
        None => {
            reset_on_close(&accepted.stream);
            None
        }
    }
}

/// Each way has a future of its own, so that none is as large as the largest.
fn carry(pod: Rc<PodProxy>, mut app: Connection, Opened { far, event, listed }: Opened) -> Carried {
    match far {
        Far::Stream(connected) => Box::pin(async move {
            let (up, down) = pod.meters.relayed(&event);
            let result = app.relay(connected.stream.halves(), up, down).await;
            let revoked = connected.hold.revoked();
            let result = result.map_err(|broken| revoked.map_or_else(|| broken.into(), Failure::Revoked));
            finish(&pod, event, listed, result);
        }),
        Far::Beside(beside) => Box::pin(async move {
            let (up, down) = pod.meters.relayed(&event);
            let result = neighbour::carry(&mut app, up, down, *beside).await;
            finish(&pod, event, listed, result);
        }),
        Far::Tcp(stream) => Box::pin(async move {
            let (up, down) = pod.meters.relayed(&event);
            let result = app.relay_to(&mut Connection::new(stream), up, down).await;
            finish(&pod, event, listed, result.map_err(Failure::from));
        }),
    }
}

fn finish(pod: &PodProxy, event: events::Connection, listed: Listed, result: Result<(), Failure>) {
    if matches!(result, Err(Failure::Revoked(_))) {
        pod.shared.metrics.count_crl_rejection(Reporter::Source);
    }
    drop(listed);
    event.finish(result.map_err(Into::into));
}

/// The way to the destination; none when it was refused or failed, which is told then.
async fn find_way(pod: &Rc<PodProxy>, accepted: &Accepted) -> Option<Opened> {
    pod.meters.count_connection(Reporter::Source);
    let own = pod.own_or_said();
    if let Some(demand) = &pod.shared.demand {
        let known = demand.owner(&own.network, accepted.orig_dst.ip(), &own.namespace).await;
        if let Err(unanswered) = known {
            let (src, dst) = (accepted.peer.addr(), accepted.orig_dst.addr());
            EarlyDeny { reporter: Reporter::Source, src, dst, error: unanswered.to_string() }.emit();
            return None;
        }
    }
    let snapshot = pod.shared.reader.snapshot();
    let (started, trace) = (Instant::now(), Trace::random());
    let (route, connected) = match connect(pod, &snapshot, &own, accepted, trace).await {
        Ok((route, far)) => (route, Ok(far)),
        Err((Some(route), failure)) => (route, Err(failure)),
        Err((None, failure)) => (Route::Passthrough { addr: accepted.orig_dst.addr() }, Err(failure)),
    };
    drop(snapshot);
    let security = match (&route, &connected) {
        (Route::Hbone { .. }, Ok(Far::Beside(_))) => Security::SameNode,
        (Route::Hbone { .. }, _) => Security::MutualTls,
        (Route::Tcp { .. } | Route::Passthrough { .. }, _) => Security::Plaintext,
    };
    let facts = facts(pod, &own, accepted, trace, &route, security);
    let event = events::Connection::open_since(&pod.shared.metrics, facts, started);
    match connected {
        Ok(far) => Some(Opened { event, listed: pod.live.add(listing(accepted, &route, &far)), far }),
        Err(failure) => {
            event.finish(Err(failure.into()));
            None
        }
    }
}

/// Tries endpoints until one answers. The route that comes with an error is the last one tried.
async fn connect(
    pod: &Rc<PodProxy>,
    snapshot: &Snapshot,
    own: &Arc<Workload>,
    accepted: &Accepted,
    trace: Trace,
) -> Result<(Route, Far), (Option<Route>, Failure)> {
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let mut last: Option<(Route, Failure)> = None;
    for _ in 0..ATTEMPTS {
        let route = match (route(snapshot, own, accepted.orig_dst, &tried), last.take()) {
            (Ok(route), _) => route,
            (Err(refused), None) => return Err((None, refused.into())),
            // Every endpoint was tried: the last failure says more than "none left".
            (Err(_), Some((route, failure))) => return Err((Some(route), failure)),
        };
        let failure = match attempt(pod, own, accepted, trace, &route).await {
            Ok(far) => return Ok((route, far)),
            Err(failure) => failure,
        };
        let another = match &route {
            Route::Hbone { upstream, .. } | Route::Tcp { upstream, .. } if upstream.service.is_some() => {
                tried.push(upstream.workload.uid.clone());
                failure.may_try_another()
            }
            _ => false,
        };
        if !another {
            return Err((Some(route), failure));
        }
        tracing::debug!(error = %failure, src = %accepted.peer, dst = %accepted.orig_dst, "trying another endpoint");
        last = Some((route, failure));
    }
    match last {
        Some((route, failure)) => Err((Some(route), failure)),
        None => Err((None, crate::route::outbound::Refused::NoUpstream(accepted.orig_dst.addr()).into())),
    }
}

async fn attempt(
    pod: &Rc<PodProxy>,
    own: &Arc<Workload>,
    accepted: &Accepted,
    trace: Trace,
    route: &Route,
) -> Result<Far, Failure> {
    match route {
        Route::Hbone { hop, authority, .. } => {
            if let Some(to) = neighbour::find(pod, route) {
                let call = Call { own, accepted, route, trace };
                let beside = neighbour::connect(pod, &to, (hop, *authority), call).await?;
                return Ok(Far::Beside(Box::new(beside)));
            }
            let key = pool::Key { hop: hop.clone(), source: accepted.peer.ip() };
            let service = addressed_service(route).map(|key| key.hostname.as_str());
            let headers = headers::request(own, accepted.peer.addr(), service, trace);
            let authority = authority.to_string();
            let place = || pod.pool.stream(&key, || dial_tunnel(pod.clone(), key.clone()));
            match place().await?.connect(&authority, headers.clone()).await {
                // The tunnel was on its way out (GOAWAY) when it was chosen; another is dialled.
                Err(error) if error.is_tunnel_gone() => {}
                connected => return Ok(Far::Stream(connected?)),
            }
            Ok(Far::Stream(place().await?.connect(&authority, headers).await?))
        }
        Route::Tcp { addr, .. } | Route::Passthrough { addr } => {
            let socket = pod.stock.take(STOCK_DEADLINE).await?;
            Ok(Far::Tcp(dial(socket, None, *addr, DIAL_DEADLINE, &pod.shared.sockets).await?))
        }
    }
}

/// Dials from inside the pod, so the peer sees the pod's address, and shows the pod's certificate.
async fn dial_tunnel(pod: Rc<PodProxy>, key: pool::Key) -> Result<tls::Stream, DialFailure> {
    let Hop { addr, expected } = &key.hop;
    let svid = pod.svid.wait(CERTIFICATE_DEADLINE).await?;
    pod.meters.handshakes.inc();
    let socket = pod.stock.take(STOCK_DEADLINE).await?;
    let tcp = dial(socket, source(key.source, addr.ip()), *addr, DIAL_DEADLINE, &pod.shared.sockets).await?;
    let connected = tls::client::connect(&svid, expected, tcp, HANDSHAKE_DEADLINE).await;
    let (stream, _peer) = connected.inspect_err(|error| {
        if error.is_revoked() {
            pod.shared.metrics.count_crl_rejection(Reporter::Source);
        }
    })?;
    if stream.tracked().is_none() {
        pod.shared.metrics.count_crl_untracked(Reporter::Source);
    }
    Ok(stream)
}

/// A pod with several addresses keeps the one that its application used.
fn source(application: IpAddr, hop: IpAddr) -> Option<IpAddr> {
    (application.is_ipv4() == hop.is_ipv4() && !application.is_loopback()).then_some(application)
}

fn facts(
    pod: &PodProxy,
    own: &Arc<Workload>,
    accepted: &Accepted,
    trace: Trace,
    route: &Route,
    security: Security,
) -> Facts {
    let (dst, hbone_addr, upstream) = match route {
        // Nothing goes to the port of the tunnels.
        Route::Hbone { authority, upstream, .. } if security == Security::SameNode => {
            (*authority, None, Some(upstream))
        }
        Route::Hbone { hop, authority, upstream } => (hop.addr, Some(authority.to_string()), Some(upstream)),
        Route::Tcp { addr, upstream } => (*addr, None, Some(upstream)),
        Route::Passthrough { addr } => (*addr, None, None),
    };
    let proven = security != Security::Plaintext;
    let service = upstream.and_then(|upstream| upstream.service.as_ref());
    Facts {
        reporter: Reporter::Source,
        src: accepted.peer.addr(),
        dst,
        hbone_addr,
        source: Endpoint::Workload(own.clone()),
        destination: upstream
            .map_or(Endpoint::Unknown, |upstream| Endpoint::Workload(upstream.workload.clone())),
        destination_service: service.cloned(),
        source_principal: proven.then(|| pod.facts.identity.clone()),
        destination_principal: upstream.filter(|_| proven).map(|upstream| upstream.workload.identity.clone()),
        security,
        trace: Some(trace),
    }
}

fn listing(accepted: &Accepted, route: &Route, far: &Far) -> LiveConnection {
    let (actual_dst, protocol) = match (route, far) {
        (Route::Hbone { authority, .. }, Far::Beside(_)) => (*authority, "TCP"),
        (Route::Hbone { hop, .. }, _) => (hop.addr, "HBONE"),
        (Route::Tcp { addr, .. } | Route::Passthrough { addr }, _) => (*addr, "TCP"),
    };
    LiveConnection {
        direction: Direction::Outbound,
        src: accepted.peer.addr(),
        original_dst: Some(accepted.orig_dst.to_string()),
        actual_dst,
        protocol,
    }
}
