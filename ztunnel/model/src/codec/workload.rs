//! `istio.workload.Workload` and the model's `Workload`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::interner::Interner;
use super::proto::workload as proto;
use super::{
    DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, Error, fields,
};
use crate::identity::Identity;
use crate::service::{GatewayAddress, NamespacedHostname, ServicePort};
use crate::text::Text;
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, Memberships, NetworkMode, TunnelProtocol,
    Workload, WorkloadType, WorkloadUid,
};

pub fn from_proto(message: proto::Workload, interner: &mut Interner) -> Result<Workload, Error> {
    if message.uid.is_empty() {
        return Err(Error::new("uid", "\"\"", "a workload has a uid"));
    }
    Ok(Workload {
        identity: identity(&message, interner)?,
        addresses: fields::list("addresses", message.addresses, |bytes| fields::ip(&bytes))?,
        protocol: fields::enumeration("tunnel_protocol", message.tunnel_protocol, |value| match value {
            proto::TunnelProtocol::None => Some(TunnelProtocol::Tcp),
            proto::TunnelProtocol::Hbone => Some(TunnelProtocol::Hbone),
            proto::TunnelProtocol::LegacyIstioMtls => None,
        })?,
        network_mode: fields::enumeration("network_mode", message.network_mode, |value| match value {
            proto::NetworkMode::Standard => Some(NetworkMode::Standard),
            proto::NetworkMode::HostNetwork => Some(NetworkMode::HostNetwork),
        })?,
        workload_type: fields::enumeration("workload_type", message.workload_type, |value| match value {
            proto::WorkloadType::Deployment => Some(WorkloadType::Deployment),
            proto::WorkloadType::Cronjob => Some(WorkloadType::CronJob),
            proto::WorkloadType::Pod => Some(WorkloadType::Pod),
            proto::WorkloadType::Job => Some(WorkloadType::Job),
        })?,
        status: fields::enumeration("status", message.status, |value| match value {
            proto::WorkloadStatus::Healthy => Some(HealthStatus::Healthy),
            proto::WorkloadStatus::Unhealthy => Some(HealthStatus::Unhealthy),
        })?,
        application_tunnel: message
            .application_tunnel
            .map(application_tunnel)
            .transpose()
            .map_err(|error| error.within("application_tunnel"))?,
        waypoint: gateway("waypoint", message.waypoint, interner)?,
        network_gateway: gateway("network_gateway", message.network_gateway, interner)?,
        services: interner.memberships(&message.services, || services(&message.services))?,
        uid: WorkloadUid::from(message.uid.as_str()),
        name: message.name.into(),
        namespace: interner.text(&message.namespace),
        hostname: interner.text(&message.hostname),
        network: interner.network(&message.network),
        node: interner.text(&message.node),
        workload_name: interner.text(&message.workload_name),
        canonical_name: interner.text(&message.canonical_name),
        canonical_revision: interner.text(&message.canonical_revision),
        cluster_id: interner.text(fields::text_or(&message.cluster_id, DEFAULT_CLUSTER)),
        locality: locality(&message.locality.unwrap_or_default(), interner),
        capacity: message.capacity.unwrap_or(DEFAULT_CAPACITY),
        native_tunnel: message.native_tunnel,
        authorization_policies: interner.names(&message.authorization_policies),
    })
}

pub fn to_proto(workload: &Workload) -> proto::Workload {
    proto::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(fields::ip_bytes).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.protocol {
            TunnelProtocol::Tcp => proto::TunnelProtocol::None,
            TunnelProtocol::Hbone => proto::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: workload.identity.trust_domain().to_owned(),
        service_account: workload.identity.service_account().to_owned(),
        waypoint: workload.waypoint.as_deref().map(fields::gateway_proto),
        network_gateway: workload.network_gateway.as_deref().map(fields::gateway_proto),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => proto::WorkloadType::Deployment,
            WorkloadType::CronJob => proto::WorkloadType::Cronjob,
            WorkloadType::Pod => proto::WorkloadType::Pod,
            WorkloadType::Job => proto::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.as_ref().map(application_tunnel_proto),
        services: workload.services.iter().map(endpoint_proto).collect(),
        authorization_policies: workload.authorization_policies.iter().map(Text::to_string).collect(),
        status: match workload.status {
            HealthStatus::Healthy => proto::WorkloadStatus::Healthy,
            HealthStatus::Unhealthy => proto::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster_id.to_string(),
        locality: Some(locality_proto(&workload.locality)),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => proto::NetworkMode::Standard,
            NetworkMode::HostNetwork => proto::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: Vec::new(),
        capacity: Some(workload.capacity),
    }
}

fn gateway(
    name: &str,
    message: Option<proto::GatewayAddress>,
    interner: &mut Interner,
) -> Result<Option<Arc<GatewayAddress>>, Error> {
    let gateway = message.map(fields::gateway).transpose().map_err(|error| error.within(name))?;
    Ok(gateway.map(|gateway| interner.gateway(gateway)))
}

fn identity(message: &proto::Workload, interner: &mut Interner) -> Result<Identity, Error> {
    let trust_domain = fields::text_or(&message.trust_domain, DEFAULT_TRUST_DOMAIN);
    let service_account = fields::text_or(&message.service_account, DEFAULT_SERVICE_ACCOUNT);
    interner.identity(trust_domain, &message.namespace, service_account).map_err(|error| {
        let parts = [
            ("trust_domain", trust_domain),
            ("namespace", &message.namespace),
            ("service_account", service_account),
        ];
        let (field, value) = parts
            .into_iter()
            .find(|(_, part)| part.is_empty() || part.contains('/'))
            .expect("invariant: an identity is refused for one of its parts");
        Error::new(field, format!("{value:?}"), error.to_string())
    })
}

pub(super) fn services(message: &BTreeMap<String, proto::PortList>) -> Result<Memberships, Error> {
    let mut services = BTreeMap::new();
    for (name, list) in message {
        let field = format!("services[{name:?}]");
        let key = name
            .parse::<NamespacedHostname>()
            .map_err(|_| Error::new(field.as_str(), format!("{name:?}"), "expected NAMESPACE/HOSTNAME"))?;
        let ports = fields::list("ports", list.ports.iter().copied(), fields::service_port)
            .map_err(|error| error.within(&field))?;
        services.insert(key, ports.into());
    }
    Ok(services)
}

fn endpoint_proto((key, ports): (&NamespacedHostname, &Arc<[ServicePort]>)) -> (String, proto::PortList) {
    (key.to_string(), proto::PortList { ports: ports.iter().map(fields::service_port_proto).collect() })
}

fn application_tunnel(message: proto::ApplicationTunnel) -> Result<ApplicationTunnel, Error> {
    use proto::application_tunnel::Protocol;
    let protocol = fields::enumeration("protocol", message.protocol, |value| match value {
        Protocol::None => Some(ApplicationProtocol::None),
        Protocol::Proxy => Some(ApplicationProtocol::Proxy),
    })?;
    let port = fields::port("port", message.port)?;
    Ok(ApplicationTunnel { protocol, port: (port != 0).then_some(port) })
}

fn application_tunnel_proto(tunnel: &ApplicationTunnel) -> proto::ApplicationTunnel {
    use proto::application_tunnel::Protocol;
    let protocol = match tunnel.protocol {
        ApplicationProtocol::None => Protocol::None,
        ApplicationProtocol::Proxy => Protocol::Proxy,
    };
    proto::ApplicationTunnel { protocol: protocol.into(), port: tunnel.port.unwrap_or(0).into() }
}

fn locality(message: &proto::Locality, interner: &mut Interner) -> Arc<Locality> {
    interner.locality(&message.region, &message.zone, &message.subzone)
}

fn locality_proto(locality: &Locality) -> proto::Locality {
    proto::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    }
}
