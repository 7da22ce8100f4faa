//! `istio.workload.Workload` and the model's `Workload`.

use std::collections::BTreeMap;

use super::proto::workload as proto;
use super::{
    DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, Error, fields,
};
use crate::address::Network;
use crate::identity::Identity;
use crate::service::{NamespacedHostname, ServicePort};
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};

pub fn from_proto(message: proto::Workload) -> Result<Workload, Error> {
    if message.uid.is_empty() {
        return Err(Error::new("uid", "\"\"", "a workload has a uid"));
    }
    let gateway = |name: &str, message: Option<proto::GatewayAddress>| {
        message.map(fields::gateway).transpose().map_err(|error| error.within(name))
    };
    Ok(Workload {
        identity: identity(&message)?,
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
        waypoint: gateway("waypoint", message.waypoint)?,
        network_gateway: gateway("network_gateway", message.network_gateway)?,
        services: services(message.services)?,
        uid: WorkloadUid::from(message.uid.as_str()),
        name: message.name,
        namespace: message.namespace,
        hostname: message.hostname,
        network: Network::from(message.network.as_str()),
        node: message.node,
        workload_name: message.workload_name,
        canonical_name: message.canonical_name,
        canonical_revision: message.canonical_revision,
        cluster_id: fields::text_or(message.cluster_id, DEFAULT_CLUSTER),
        locality: message.locality.map(locality).unwrap_or_default(),
        capacity: message.capacity.unwrap_or(DEFAULT_CAPACITY),
        native_tunnel: message.native_tunnel,
        authorization_policies: message.authorization_policies,
    })
}

pub fn to_proto(workload: &Workload) -> proto::Workload {
    proto::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        addresses: workload.addresses.iter().copied().map(fields::ip_bytes).collect(),
        hostname: workload.hostname.clone(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.protocol {
            TunnelProtocol::Tcp => proto::TunnelProtocol::None,
            TunnelProtocol::Hbone => proto::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: workload.identity.trust_domain().to_owned(),
        service_account: workload.identity.service_account().to_owned(),
        waypoint: workload.waypoint.as_ref().map(fields::gateway_proto),
        network_gateway: workload.network_gateway.as_ref().map(fields::gateway_proto),
        node: workload.node.clone(),
        canonical_name: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => proto::WorkloadType::Deployment,
            WorkloadType::CronJob => proto::WorkloadType::Cronjob,
            WorkloadType::Pod => proto::WorkloadType::Pod,
            WorkloadType::Job => proto::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.clone(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.as_ref().map(application_tunnel_proto),
        services: workload.services.iter().map(endpoint_proto).collect(),
        authorization_policies: workload.authorization_policies.clone(),
        status: match workload.status {
            HealthStatus::Healthy => proto::WorkloadStatus::Healthy,
            HealthStatus::Unhealthy => proto::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster_id.clone(),
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

fn identity(message: &proto::Workload) -> Result<Identity, Error> {
    let or = |text: &str, default: &str| fields::text_or(text.to_owned(), default);
    let trust_domain = or(&message.trust_domain, DEFAULT_TRUST_DOMAIN);
    let service_account = or(&message.service_account, DEFAULT_SERVICE_ACCOUNT);
    Identity::new(&trust_domain, &message.namespace, &service_account).map_err(|error| {
        let parts = [
            ("trust_domain", &trust_domain),
            ("namespace", &message.namespace),
            ("service_account", &service_account),
        ];
        let (field, value) = parts
            .into_iter()
            .find(|(_, part)| part.is_empty() || part.contains('/'))
            .expect("invariant: an identity is refused for one of its parts");
        Error::new(field, format!("{value:?}"), error.to_string())
    })
}

fn services(
    message: std::collections::HashMap<String, proto::PortList>,
) -> Result<BTreeMap<NamespacedHostname, Vec<ServicePort>>, Error> {
    let mut services = BTreeMap::new();
    for (name, list) in message {
        let field = format!("services[{name:?}]");
        let key = name
            .parse::<NamespacedHostname>()
            .map_err(|_| Error::new(field.as_str(), format!("{name:?}"), "expected NAMESPACE/HOSTNAME"))?;
        let ports =
            fields::list("ports", list.ports, fields::service_port).map_err(|error| error.within(&field))?;
        services.insert(key, ports);
    }
    Ok(services)
}

fn endpoint_proto((key, ports): (&NamespacedHostname, &Vec<ServicePort>)) -> (String, proto::PortList) {
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

fn locality(message: proto::Locality) -> Locality {
    Locality { region: message.region, zone: message.zone, subzone: message.subzone }
}

fn locality_proto(locality: &Locality) -> proto::Locality {
    proto::Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        subzone: locality.subzone.clone(),
    }
}
