//! A connection that an application of this pod opened.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use ztunnel_model::{Hop, Workload, WorkloadUid};

use super::failure::{DialFailure, Outbound as Failure};
use super::live::Direction;
use super::{CERTIFICATE_DEADLINE, LiveConnection, PodProxy, STOCK_DEADLINE};
use crate::hbone::client::Connected;
use crate::hbone::headers;
use crate::hbone::{DIAL_DEADLINE, HANDSHAKE_DEADLINE, pool};
use crate::net::dial::dial;
use crate::net::listen::Accepted;
use crate::net::socket::reset_on_close;
use crate::relay::{Side, relay, tcp};
use crate::route::outbound::{Route, addressed_service, route};
use crate::state::Snapshot;
use crate::telemetry::events::{self, EarlyDeny, Endpoint, Facts, Reporter, Trace};
use crate::tls;

/// Endpoints of a service that one connection tries at most.
const ATTEMPTS: usize = 3;

/// The far side of a connected route.
enum Far {
    Stream(Connected),
    Tcp(TcpStream),
}

pub(super) async fn serve(pod: Rc<PodProxy>, accepted: Accepted) {
    let deny = |error: String| {
        EarlyDeny {
            reporter: Reporter::Source,
            src: accepted.peer.addr(),
            dst: accepted.orig_dst.addr(),
            error,
        }
        .emit();
        reset_on_close(&accepted.stream);
    };
    let own = pod.own_or_said();
    if let Some(demand) = &pod.shared.demand {
        let known = demand.owner(&own.network, accepted.orig_dst.ip(), &own.namespace).await;
        if let Err(unanswered) = known {
            return deny(unanswered.to_string());
        }
    }
    let snapshot = pod.shared.reader.snapshot();
    let (started, trace) = (Instant::now(), Trace::random());
    let (route, connected) = match connect(&pod, &snapshot, &own, &accepted, trace).await {
        Ok((route, far)) => (route, Ok(far)),
        Err((Some(route), failure)) => (route, Err(failure)),
        Err((None, failure)) => (Route::Passthrough { addr: accepted.orig_dst.addr() }, Err(failure)),
    };
    drop(snapshot);
    let event = events::Connection::open_since(
        &pod.shared.metrics,
        facts(&pod, &own, &accepted, trace, &route),
        started,
    );
    let far = match connected {
        Ok(far) => far,
        Err(failure) => {
            reset_on_close(&accepted.stream);
            return event.finish(Err(failure.into()));
        }
    };
    let _listed = pod.live.add(listing(&accepted, &route));
    let app = tcp::halves(&accepted.stream, Side::Application);
    let (up, down) = (|count| event.add_received(count as u64), |count| event.add_sent(count as u64));
    let result = match far {
        Far::Stream(connected) => {
            let result = relay(app, connected.stream.halves(), up, down).await;
            let revoked = connected.hold.revoked();
            result.map_err(|broken| revoked.map_or_else(|| broken.into(), Failure::Revoked))
        }
        Far::Tcp(stream) => {
            relay(app, tcp::halves(&stream, Side::Far), up, down).await.map_err(Failure::from)
        }
    };
    if matches!(result, Err(Failure::Revoked(_))) {
        pod.shared.metrics.count_crl_rejection(Reporter::Source);
    }
    event.finish(result.map_err(Into::into));
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

fn facts(pod: &PodProxy, own: &Arc<Workload>, accepted: &Accepted, trace: Trace, route: &Route) -> Facts {
    let (dst, hbone_addr, upstream) = match route {
        Route::Hbone { hop, authority, upstream } => (hop.addr, Some(authority.to_string()), Some(upstream)),
        Route::Tcp { addr, upstream } => (*addr, None, Some(upstream)),
        Route::Passthrough { addr } => (*addr, None, None),
    };
    let mutual_tls = hbone_addr.is_some();
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
        source_principal: mutual_tls.then(|| pod.facts.identity.clone()),
        destination_principal: upstream
            .filter(|_| mutual_tls)
            .map(|upstream| upstream.workload.identity.clone()),
        mutual_tls,
        trace: Some(trace),
    }
}

fn listing(accepted: &Accepted, route: &Route) -> LiveConnection {
    let (actual_dst, protocol) = match route {
        Route::Hbone { hop, .. } => (hop.addr, "HBONE"),
        Route::Tcp { addr, .. } | Route::Passthrough { addr } => (*addr, "TCP"),
    };
    LiveConnection {
        direction: Direction::Outbound,
        src: accepted.peer.addr(),
        original_dst: Some(accepted.orig_dst.to_string()),
        actual_dst,
        protocol,
    }
}
