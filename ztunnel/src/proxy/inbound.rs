//! HBONE that arrives at this pod: one tunnel, and each stream in it.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use ztunnel_model::{Authority, LocalAddr, PeerAddr, Workload};

use super::failure::{self, Inbound as Failure};
use super::live::Direction;
use super::{CERTIFICATE_DEADLINE, Carried, LiveConnection, PodProxy, until_stopped};
use crate::hbone::server::{self, Incoming};
use crate::hbone::{HANDSHAKE_DEADLINE, headers};
use crate::io::budget::Taken;
use crate::io::share::as_one_of;
use crate::net::listen::Accepted;
use crate::policy::{self, AuthorizedConnection};
use crate::relay::Connection;
use crate::route::inbound::{Target, service_of, tunnelled};
use crate::telemetry::events::{self, Endpoint, Facts, HandshakeFailed, Rejection, Reporter, Security};
use crate::tls;
use crate::tls::verify::{Peer, VerifiedPeer};

/// What all streams of a tunnel share.
struct Tunnel {
    pod: Rc<PodProxy>,
    addr: PeerAddr,
    local: LocalAddr,
    peer: VerifiedPeer,
    /// A revocation of the peer ended the tunnel.
    revoked: CancellationToken,
}

pub(super) async fn open(pod: Rc<PodProxy>, accepted: Accepted) -> Option<Carried> {
    let Accepted { stream, peer, local, .. } = accepted;
    let failed = |rejection: Rejection, error: String| {
        HandshakeFailed { rejection, src: peer.addr(), dst: local.addr(), error }.emit(&pod.shared.metrics);
        None
    };
    pod.meters.handshakes.inc();
    let svid = match pod.svid.wait(CERTIFICATE_DEADLINE).await {
        Ok(svid) => svid,
        Err(error) => return failed(Rejection::Identity, error.to_string()),
    };
    let (tls, verified) = match tls::server::accept(&svid, stream, HANDSHAKE_DEADLINE).await {
        Ok(established) => established,
        Err(error) => {
            if error.is_revoked() {
                pod.shared.metrics.count_crl_rejection(Reporter::Destination);
            }
            return failed(failure::tls_rejection(&error), error.to_string());
        }
    };
    if tls.tracked().is_none() {
        pod.shared.metrics.count_crl_untracked(Reporter::Destination);
    }
    let revoked = CancellationToken::new();
    Some(Box::pin(serve(Rc::new(Tunnel { pod, addr: peer, local, peer: verified, revoked }), tls)))
}

async fn serve(tunnel: Rc<Tunnel>, tls: tls::Stream) {
    let (pod, revoked) = (&tunnel.pod, tunnel.revoked.clone());
    let account = pod.called_by(tunnel.addr.ip());
    let handle = |incoming: Incoming| {
        let opening = Box::pin(open_stream(tunnel.clone(), incoming));
        as_one_of(&account, until_stopped(pod.stop.clone(), opening, pod.shared.drain.guard()))
    };
    let signals =
        server::Signals { drain: pod.shared.drain.graceful().clone(), stop: pod.stop.clone(), revoked };
    if let Err(error) = server::serve(tls, &pod.shared.hbone, signals, handle).await {
        if matches!(error, server::Error::Revoked(_)) {
            pod.shared.metrics.count_crl_rejection(Reporter::Destination);
        }
        let (src, dst) = (tunnel.addr.addr(), tunnel.local.addr());
        let rejection = failure::http2_rejection(&error);
        HandshakeFailed { rejection, src, dst, error: error.to_string() }.emit(&pod.shared.metrics);
    }
}

/// The way to the application, and the answer to the peer.
async fn open_stream(tunnel: Rc<Tunnel>, mut incoming: Incoming) -> Option<Carried> {
    let pod = &tunnel.pod;
    pod.meters.count_connection(Reporter::Destination);
    let authority = incoming.authority_text().to_owned();
    let (own, target) = match target(&tunnel, &incoming).await {
        Ok(found) => found,
        Err(failure) => {
            let (rejection, status) = (Rejection::Request, failure.status());
            let (src, dst, error) = (tunnel.addr.addr(), tunnel.local.addr(), failure.to_string());
            HandshakeFailed { src, dst, rejection, error }.emit(&pod.shared.metrics);
            incoming.refuse(status);
            return None;
        }
    };
    let event =
        events::Connection::open(&pod.shared.metrics, facts(&tunnel, &own, target, authority, &incoming));
    let original_dst = headers::forwarded_host(incoming.headers()).map(str::to_owned);
    let (taken, authorized, app) = match establish(&tunnel, &own, target, &mut incoming).await {
        Ok(established) => established,
        Err(failure) => {
            incoming.refuse(failure.status());
            event.finish(Err(failure.into()));
            return None;
        }
    };
    let answer = if pod.shared.response_baggage { headers::response(&own) } else { http::HeaderMap::new() };
    let stream = match incoming.accept(answer) {
        Ok(stream) => stream,
        Err(error) => {
            event.finish(Err(Failure::Answer(error).into()));
            return None;
        }
    };
    let listed = pod.live.add(LiveConnection {
        direction: Direction::Inbound,
        src: tunnel.addr.addr(),
        original_dst,
        actual_dst: target.addr(),
        protocol: "HBONE",
    });
    let mut app = Connection::new(app);
    Some(Box::pin(async move {
        let (up, down) = tunnel.pod.meters.relayed(&event);
        let relayed = app.relay(stream.halves(), up, down);
        let result = tokio::select! {
            result = relayed => result.map_err(Failure::from),
            denied = authorized.revoked() => Err(Failure::Revoked(denied)),
            () = tunnel.revoked.cancelled() => Err(Failure::CertificateRevoked),
        };
        if result.is_err() {
            app.reset_on_close();
        }
        drop((listed, taken));
        event.finish(result.map_err(Into::into));
    }))
}

/// What the request asks for, before policy.
async fn target(tunnel: &Tunnel, incoming: &Incoming) -> Result<(Arc<Workload>, Target), Failure> {
    if incoming.method() != http::Method::CONNECT {
        return Err(Failure::Method(incoming.method().clone()));
    }
    let authority: Authority =
        incoming.authority().ok_or_else(|| Failure::Authority(incoming.authority_text().to_owned()))?;
    let own = tunnel.pod.own_record().await.ok_or(Failure::UnknownWorkload)?;
    let target = tunnelled(&tunnel.pod.shared.reader.snapshot(), &own, tunnel.local, &authority)?;
    Ok((own, target))
}

/// The answer to the peer comes after both policy and application.
async fn establish(
    tunnel: &Tunnel,
    own: &Arc<Workload>,
    target: Target,
    incoming: &mut Incoming,
) -> Result<(Taken, AuthorizedConnection, TcpStream), Failure> {
    let facts = policy::Facts {
        peer: Peer::Verified(tunnel.peer.clone()),
        source: tunnel.addr.addr(),
        destination: target.addr(),
    };
    tokio::select! {
        connected = tunnel.pod.admit_to_app(facts, own.clone()) => connected,
        () = incoming.abandoned() => Err(Failure::Abandoned),
    }
}

fn facts(
    tunnel: &Tunnel,
    own: &Arc<Workload>,
    target: Target,
    authority: String,
    incoming: &Incoming,
) -> Facts {
    let snapshot = tunnel.pod.shared.reader.snapshot();
    let host = headers::forwarded_host(incoming.headers());
    let source = match snapshot.workload_by_address(&own.network, tunnel.addr.ip()) {
        Some(workload) => Endpoint::Workload(workload.clone()),
        None if tunnel.pod.shared.response_baggage => {
            Endpoint::Baggage(Box::new(headers::parse_baggage(incoming.headers())))
        }
        None => Endpoint::Unknown,
    };
    Facts {
        reporter: Reporter::Destination,
        src: tunnel.addr.addr(),
        dst: tunnel.local.addr(),
        hbone_addr: Some(authority),
        source,
        destination: Endpoint::Workload(own.clone()),
        destination_service: service_of(&snapshot, own, target, host),
        source_principal: Some(tunnel.peer.identity().clone()),
        destination_principal: Some(tunnel.pod.facts.identity.clone()),
        security: Security::MutualTls,
        trace: headers::trace(incoming.headers()),
    }
}
