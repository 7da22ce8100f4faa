//! The inbound decision: where a stream that arrived at a pod goes (interop.md sections 8.6 and 8.7).

use std::net::SocketAddr;
use std::sync::Arc;

use ztunnel_model::workload::ApplicationProtocol;
use ztunnel_model::{Authority, LocalAddr, OrigDst, Service, Workload};

use super::outbound::OWN_PORTS;
use crate::state::Snapshot;

/// The application that a stream is for. Only made here, so its port is never one of the proxy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(SocketAddr);

impl Target {
    pub fn addr(self) -> SocketAddr {
        self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("ip mismatch: {asked} != {pod}")]
    Mismatch { asked: std::net::IpAddr, pod: std::net::IpAddr },
    #[error("no service \"{0}\" leads to this workload")]
    UnknownHost(String),
    #[error("attempted recursive call to ourselves")]
    Recursive,
    #[error(
        "this workload wants the PROXY protocol in front of every stream, which this proxy does not speak"
    )]
    ProxyProtocol,
}

/// The target of a CONNECT that arrived on `local`. An application that tunnels itself may be asked for any address, and
/// may say on which port (interop.md section 2.10).
pub fn tunnelled(
    snapshot: &Snapshot,
    workload: &Workload,
    local: LocalAddr,
    authority: &Authority,
) -> Result<Target, Refused> {
    let tunnel = workload.application_tunnel.as_ref();
    if tunnel.is_some_and(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy) {
        return Err(Refused::ProxyProtocol);
    }
    let port = match authority {
        Authority::Address(addr) => {
            let asked = ztunnel_model::canonical(*addr);
            if asked.ip() != local.ip() && tunnel.is_none() {
                return Err(Refused::Mismatch { asked: asked.ip(), pod: local.ip() });
            }
            asked.port()
        }
        Authority::Host { name, port } => host_port(snapshot, workload, name, *port)
            .ok_or_else(|| Refused::UnknownHost(format!("{name}:{port}")))?,
    };
    let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    target(SocketAddr::new(local.ip(), port))
}

/// The target of a plaintext connection that was redirected.
pub fn plaintext(destination: OrigDst) -> Result<Target, Refused> {
    target(destination.addr())
}

/// The service that a stream was meant for: the one that `forwarded` names if this workload serves it, else the
/// first whose port leads to the real one.
pub fn service_of(
    snapshot: &Snapshot,
    workload: &Workload,
    target: Target,
    forwarded_host: Option<&str>,
) -> Option<Arc<Service>> {
    let mut services = workload.services.keys().filter_map(|key| snapshot.service(key));
    let named = forwarded_host.and_then(|host| services.clone().find(|service| service.key.hostname == host));
    named
        .or_else(|| {
            services.find(|service| {
                let own = workload.services.get(&service.key).into_iter().flat_map(|ports| ports.iter());
                own.chain(&service.ports).any(|port| port.target_port == target.0.port())
            })
        })
        .cloned()
}

fn target(addr: SocketAddr) -> Result<Target, Refused> {
    if OWN_PORTS.contains(&addr.port()) { Err(Refused::Recursive) } else { Ok(Target(addr)) }
}

fn host_port(snapshot: &Snapshot, workload: &Workload, host: &str, port: u16) -> Option<u16> {
    let own = |key: &&ztunnel_model::NamespacedHostname| key.hostname == host;
    let key = workload.services.keys().filter(own).max_by_key(|key| {
        (key.namespace == workload.namespace, snapshot.service(key).is_some_and(|s| s.canonical))
    })?;
    let endpoint = workload.services.get(key)?.iter().find(|known| known.service_port == port);
    let listed = snapshot.service(key)?.ports.iter().find(|known| known.service_port == port);
    endpoint.or(listed).map(|known| known.target_port).filter(|&target| target != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::apply::build;
    use ztunnel_model::codec::static_config::parse;

    fn mesh() -> Snapshot {
        let text = "
workloads:
- {uid: w, name: w, namespace: shop, workloadIps: [10.0.0.2], services: {shop/cart.svc: {80: 8080}, shop/other.svc: {}}}
- {uid: tunnels, namespace: shop, workloadIps: [10.0.0.2], services: {}, applicationTunnel: {protocol: NONE, port: 8081}}
- {uid: proxies, namespace: shop, workloadIps: [10.0.0.2], services: {}, applicationTunnel: {protocol: PROXY}}
services:
- {name: cart, namespace: shop, hostname: cart.svc, vips: [], ports: {80: 1, 81: 8081}}
- {name: other, namespace: shop, hostname: other.svc, vips: [], ports: {80: 9090}}
";
        build(&parse(text, "test.yaml").unwrap_or_else(|mistakes| panic!("{mistakes:?}")))
    }

    fn ask(authority: Authority) -> Result<SocketAddr, Refused> {
        ask_of("w", authority)
    }

    fn ask_of(uid: &str, authority: Authority) -> Result<SocketAddr, Refused> {
        let snapshot = mesh();
        let workload = snapshot.workload(&uid.into()).expect("the workload").clone();
        let local = LocalAddr::new("10.0.0.2:15008".parse().expect("an address"));
        tunnelled(&snapshot, &workload, local, &authority).map(Target::addr)
    }

    #[test]
    fn addresses_must_be_the_pods_own() {
        let at = |text: &str| Authority::Address(text.parse().expect("an address"));
        assert_eq!(ask(at("10.0.0.2:8080")).map(|addr| addr.port()), Ok(8080));
        assert!(matches!(ask(at("10.0.0.3:8080")), Err(Refused::Mismatch { .. })));
        assert_eq!(ask(at("10.0.0.2:15006")), Err(Refused::Recursive));
    }

    #[test]
    fn an_application_tunnel_takes_any_address_on_its_own_port() {
        let asked = || Authority::Address("10.9.0.1:80".parse().expect("an address"));
        assert_eq!(ask_of("tunnels", asked()).map(|addr| addr.to_string()).as_deref(), Ok("10.0.0.2:8081"));
        assert_eq!(
            ask_of("proxies", asked()),
            Err(Refused::ProxyProtocol),
            "never without the header it needs"
        );
    }

    #[test]
    fn hosts_are_resolved_among_the_workloads_services() {
        let at = |name: &str, port| Authority::Host { name: name.into(), port };
        assert_eq!(ask(at("cart.svc", 80)).map(|addr| addr.port()), Ok(8080), "the endpoint's own map wins");
        assert_eq!(ask(at("cart.svc", 81)).map(|addr| addr.port()), Ok(8081));
        assert!(matches!(ask(at("cart.svc", 82)), Err(Refused::UnknownHost(_))));
        assert!(matches!(ask(at("unknown.svc", 80)), Err(Refused::UnknownHost(_))));
    }

    #[test]
    fn the_service_is_the_forwarded_one_or_the_one_that_fits() {
        let snapshot = mesh();
        let workload = snapshot.workload(&"w".into()).expect("the workload").clone();
        let name = |port: u16, host| {
            service_of(&snapshot, &workload, Target(SocketAddr::new([10, 0, 0, 2].into(), port)), host)
                .map(|service| service.name.clone())
        };
        assert_eq!(name(9090, Some("cart.svc")).as_deref(), Some("cart"));
        assert_eq!(name(9090, None).as_deref(), Some("other"));
        assert_eq!(name(1234, Some("elsewhere.svc")), None);
    }
}
