//! Field types that several messages share.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Error;
use super::proto::workload as proto;
use crate::address::{Network, NetworkAddress};
use crate::service::{GatewayAddress, GatewayDestination};
use crate::service::{NamespacedHostname, ServicePort};

/// Decodes every item, naming the first that fails by its index.
pub(super) fn list<T, U>(
    name: &str,
    items: impl IntoIterator<Item = T>,
    decode: impl Fn(T) -> Result<U, Error>,
) -> Result<Vec<U>, Error> {
    let located = |(index, item)| decode(item).map_err(|error| error.within(&format!("{name}[{index}]")));
    items.into_iter().enumerate().map(located).collect()
}

/// The model's value of an enum: `None` of `convert` is a value that is known and refused.
pub(super) fn enumeration<P, T>(name: &str, number: i32, convert: impl Fn(P) -> Option<T>) -> Result<T, Error>
where
    P: TryFrom<i32> + std::fmt::Debug + Copy,
{
    let known = P::try_from(number)
        .map_err(|_| Error::new(name, number, "not a value of this field that is known here"))?;
    convert(known).ok_or_else(|| Error::new(name, format!("{known:?}"), "not supported"))
}

pub(super) fn text_or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    Ok(raw_ip(bytes)?.to_canonical())
}

/// IPv4 stays 4 bytes, whatever the socket called it.
pub(super) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(super) fn prefix(bytes: &[u8], length: u32) -> Result<IpNet, Error> {
    let ip = raw_ip(bytes)?;
    let full = if ip.is_ipv4() { 32 } else { 128 };
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .map(canonical_prefix)
        .ok_or_else(|| Error::new("", format!("{ip}/{length}"), format!("the prefix is longer than {full}")))
}

/// Connections are compared in their IPv4 form, so a v4-mapped prefix must be too: it would never hold otherwise, and a
/// DENY that never holds is a wider policy.
pub(super) fn canonical_prefix(prefix: IpNet) -> IpNet {
    match (prefix.addr().to_canonical(), prefix.prefix_len()) {
        (ip @ IpAddr::V4(_), length) if prefix.addr().is_ipv6() && length >= 96 => {
            IpNet::new(ip, length - 96).expect("invariant: 128 - 96 bits are an IPv4 length")
        }
        _ => prefix,
    }
}

pub(super) fn port(name: &str, number: u32) -> Result<u16, Error> {
    u16::try_from(number).map_err(|_| Error::new(name, number, "a port is at most 65535"))
}

pub(super) fn service_port(message: proto::Port) -> Result<ServicePort, Error> {
    Ok(ServicePort {
        service_port: port("service_port", message.service_port)?,
        target_port: port("target_port", message.target_port)?,
    })
}

pub(super) fn service_port_proto(port: &ServicePort) -> proto::Port {
    proto::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: proto::AppProtocol::Unknown.into(),
    }
}

pub(super) fn service_key(namespace: &str, hostname: &str) -> Result<NamespacedHostname, Error> {
    let text = format!("{namespace}/{hostname}");
    text.parse().map_err(|_| Error::new("", format!("{text:?}"), "expected NAMESPACE/HOSTNAME"))
}

pub(super) fn gateway(message: proto::GatewayAddress) -> Result<GatewayAddress, Error> {
    use proto::gateway_address::Destination;
    let destination = match message.destination {
        Some(Destination::Hostname(key)) => service_key(&key.namespace, &key.hostname)
            .map(GatewayDestination::Hostname)
            .map_err(|error| error.within("hostname"))?,
        Some(Destination::Address(address)) => {
            gateway_ip(&address).map_err(|error| error.within("address"))?
        }
        None => return Err(Error::new("destination", "absent", "a gateway has a host name or an address")),
    };
    Ok(GatewayAddress { destination, hbone_mtls_port: port("hbone_mtls_port", message.hbone_mtls_port)? })
}

pub(super) fn gateway_proto(gateway: &GatewayAddress) -> proto::GatewayAddress {
    use proto::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => Destination::Hostname(proto::NamespacedHostname {
            namespace: key.namespace.clone(),
            hostname: key.hostname.clone(),
        }),
        GatewayDestination::Address(address) => Destination::Address(proto::NetworkAddress {
            network: address.network.to_string(),
            address: ip_bytes(address.ip),
            length: None,
        }),
    };
    proto::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_mtls_port.into() }
}

fn gateway_ip(address: &proto::NetworkAddress) -> Result<GatewayDestination, Error> {
    let ip = ip(&address.address).map_err(|error| error.within("address"))?;
    match address.length {
        Some(length) if length as usize != address.address.len() * 8 => {
            Err(Error::new("length", length, "a gateway is one address, not a prefix"))
        }
        _ => {
            Ok(GatewayDestination::Address(NetworkAddress::new(Network::from(address.network.as_str()), ip)))
        }
    }
}

fn raw_ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    Err(Error::new("", format!("{} bytes", bytes.len()), "an address has 4 or 16 bytes"))
}
