//! Plaintext that arrives at this pod: no identity, the same gate.

use std::rc::Rc;
use std::sync::Arc;

use ztunnel_model::Workload;

use super::failure::Inbound as Failure;
use super::live::Direction;
use super::{Carried, LiveConnection, PodProxy};
use crate::net::listen::Accepted;
use crate::net::socket::reset_on_close;
use crate::policy;
use crate::relay::Connection;
use crate::route::inbound::{Target, plaintext, service_of};
use crate::telemetry::events::{self, EarlyDeny, Endpoint, Facts, Reporter, Security};
use crate::tls::verify::{Peer, Unproven};

pub(super) async fn open(pod: Rc<PodProxy>, accepted: Accepted) -> Option<Carried> {
    let deny = |failure: Failure| {
        let (src, dst) = (accepted.peer.addr(), accepted.orig_dst.addr());
        EarlyDeny { reporter: Reporter::Destination, src, dst, error: failure.to_string() }.emit();
        reset_on_close(&accepted.stream);
        None
    };
    pod.meters.count_connection(Reporter::Destination);
    let target = match plaintext(accepted.orig_dst) {
        Ok(target) => target,
        Err(refused) => return deny(refused.into()),
    };
    let Some(own) = pod.own_record().await else {
        return deny(Failure::UnknownWorkload);
    };
    let event = events::Connection::open(&pod.shared.metrics, facts(&pod, &own, &accepted, target));
    let about = policy::Facts {
        peer: Peer::Plaintext(Unproven::OutsideTunnel),
        source: accepted.peer.addr(),
        destination: target.addr(),
    };
    let (authorized, app) = match pod.to_app(about, own).await {
        Ok(established) => established,
        Err(failure) => {
            reset_on_close(&accepted.stream);
            event.finish(Err(failure.into()));
            return None;
        }
    };
    let listed = pod.live.add(LiveConnection {
        direction: Direction::Inbound,
        src: accepted.peer.addr(),
        original_dst: None,
        actual_dst: target.addr(),
        protocol: "TCP",
    });
    let (mut app, mut far) = (Connection::new(app), Connection::new(accepted.stream));
    Some(Box::pin(async move {
        let (up, down) = pod.meters.relayed(&event);
        let relayed = app.relay_to(&mut far, up, down);
        let result = tokio::select! {
            result = relayed => result.map_err(Failure::from),
            denied = authorized.revoked() => Err(Failure::Revoked(denied)),
        };
        if result.is_err() {
            [&app, &far].into_iter().for_each(Connection::reset_on_close);
        }
        drop(listed);
        event.finish(result.map_err(Into::into));
    }))
}

fn facts(pod: &PodProxy, own: &Arc<Workload>, accepted: &Accepted, target: Target) -> Facts {
    let snapshot = pod.shared.reader.snapshot();
    let source = snapshot
        .workload_by_address(&own.network, accepted.peer.ip())
        .map_or(Endpoint::Unknown, |workload| Endpoint::Workload(workload.clone()));
    Facts {
        reporter: Reporter::Destination,
        src: accepted.peer.addr(),
        dst: target.addr(),
        hbone_addr: None,
        source,
        destination: Endpoint::Workload(own.clone()),
        destination_service: service_of(&snapshot, own, target, None),
        source_principal: None,
        destination_principal: None,
        security: Security::Plaintext,
        trace: None,
    }
}
