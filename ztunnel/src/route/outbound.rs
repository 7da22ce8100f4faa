//! The outbound decision (interop.md section 8.1, without waypoints and other networks: what would need them is
//! refused, never sent past them).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ztunnel_model::service::{IpFamilies, LoadBalancerMode, Service};
use ztunnel_model::workload::TunnelProtocol;
use ztunnel_model::{
    Hop, Identity, IdentitySet, NamespacedHostname, Network, OrigDst, Workload, WorkloadUid,
};

use super::balance;
use crate::state::Snapshot;
use crate::state::snapshot::Owner;

/// Ports that a connection towards loopback must never have: it would come back to the proxy.
pub const OWN_PORTS: [u16; 3] = [redirect::OUTBOUND_PORT, redirect::PLAINTEXT_PORT, redirect::HBONE_PORT];

/// Where an outbound connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// Through a tunnel to the peer that serves the workload; `authority` is what the CONNECT asks for.
    Hbone { hop: Hop, authority: SocketAddr, upstream: Upstream },
    /// Plain TCP to a known workload that has no proxy.
    Tcp { addr: SocketAddr, upstream: Upstream },
    /// Plain TCP to where the application dialled; nothing is known of it.
    Passthrough { addr: SocketAddr },
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub workload: Arc<Workload>,
    pub service: Option<Arc<Service>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("attempted recursive call to ourselves")]
    Recursive,
    #[error("no healthy upstream: {0}")]
    NoUpstream(SocketAddr),
    #[error("{0} must be reached through its waypoint, which this proxy does not support")]
    NeedsWaypoint(String),
    #[error(
        "{uid} is on network \"{network}\" and can only be reached through a network gateway, which this proxy does not support"
    )]
    NeedsGateway { uid: WorkloadUid, network: Network },
    #[error("{0} has no address")]
    NoAddress(WorkloadUid),
}

/// Decides for a connection of `from` towards `destination`; `tried` are endpoints that already failed.
pub fn route(
    snapshot: &Snapshot,
    from: &Workload,
    destination: OrigDst,
    tried: &[WorkloadUid],
) -> Result<Route, Refused> {
    if destination.ip().is_loopback() && OWN_PORTS.contains(&destination.port()) {
        return Err(Refused::Recursive);
    }
    let addr = destination.addr();
    let owner = snapshot.owner(&from.network, addr.ip(), &from.namespace);
    if let Some(Owner::Service(service)) = &owner
        && (service.waypoint.is_some()
            || service.weighted_waypoints.iter().any(|waypoint| waypoint.weight > 0))
    {
        return Err(Refused::NeedsWaypoint(service.key.to_string()));
    }
    let Some((upstream, port)) = upstream(snapshot, from, addr, tried) else {
        return match owner {
            Some(Owner::Service(service)) if !is_passthrough(&service) => Err(Refused::NoUpstream(addr)),
            _ => Ok(Route::Passthrough { addr }),
        };
    };
    let workload = &upstream.workload;
    if workload.network != from.network {
        return Err(Refused::NeedsGateway { uid: workload.uid.clone(), network: workload.network.clone() });
    }
    // Traffic that was addressed to a service passes by the waypoint of the workload behind it.
    if workload.waypoint.is_some() && !matches!(owner, Some(Owner::Service(_))) {
        return Err(Refused::NeedsWaypoint(workload.uid.to_string()));
    }
    let ip = chosen_ip(&upstream, addr.ip()).ok_or_else(|| Refused::NoAddress(workload.uid.clone()))?;
    let target = SocketAddr::new(ip, port);
    Ok(match workload.protocol {
        TunnelProtocol::Tcp => Route::Tcp { addr: target, upstream },
        TunnelProtocol::Hbone => Route::Hbone {
            hop: Hop { addr: SocketAddr::new(ip, redirect::HBONE_PORT), expected: expected(&upstream) },
            authority: target,
            upstream,
        },
    })
}

/// Services before workloads here (interop.md section 8.1, step 5).
fn upstream(
    snapshot: &Snapshot,
    from: &Workload,
    addr: SocketAddr,
    tried: &[WorkloadUid],
) -> Option<(Upstream, u16)> {
    if let Some(service) = snapshot.service_by_vip(&from.network, addr.ip(), &from.namespace) {
        if is_passthrough(service) {
            return None;
        }
        let chosen = balance::choose(snapshot, service, addr.port(), from, tried)?;
        return Some((Upstream { workload: chosen.workload, service: Some(service.clone()) }, chosen.port));
    }
    let workload = snapshot.workload_by_address(&from.network, addr.ip())?;
    Some((Upstream { workload: workload.clone(), service: None }, addr.port()))
}

fn is_passthrough(service: &Service) -> bool {
    service.load_balancing.as_ref().is_some_and(|block| block.mode == LoadBalancerMode::Passthrough)
}

/// The address that was dialled if it is the workload's, else one of the dialled family, else any that the service
/// allows.
fn chosen_ip(upstream: &Upstream, dialled: IpAddr) -> Option<IpAddr> {
    let addresses = &upstream.workload.addresses;
    if addresses.contains(&dialled) {
        return Some(dialled);
    }
    let families = upstream.service.as_ref().map_or(IpFamilies::Automatic, |service| service.ip_families);
    let allowed = |ip: &&IpAddr| match families {
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    };
    let mut candidates = addresses.iter().filter(allowed);
    candidates.clone().find(|ip| ip.is_ipv4() == dialled.is_ipv4()).or_else(|| candidates.next()).copied()
}

/// Who may answer: the workload itself, and whoever the service says (interop.md section 2.1).
fn expected(upstream: &Upstream) -> IdentitySet {
    let own = upstream.workload.identity.clone();
    let mut names = upstream.service.iter().flat_map(|service| &service.subject_alt_names).peekable();
    if names.peek().is_none() {
        return IdentitySet::one(own);
    }
    let extra = names.filter_map(|name| name.parse::<Identity>().ok());
    IdentitySet::from_iter(extra.chain([own.clone()])).unwrap_or(IdentitySet::one(own))
}

/// The service that a route was addressed to, for `forwarded` and telemetry.
pub fn addressed_service(route: &Route) -> Option<&NamespacedHostname> {
    match route {
        Route::Hbone { upstream, .. } | Route::Tcp { upstream, .. } => {
            upstream.service.as_ref().map(|service| &service.key)
        }
        Route::Passthrough { .. } => None,
    }
}

#[cfg(test)]
mod tests;
