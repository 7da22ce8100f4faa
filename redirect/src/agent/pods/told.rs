//! What proxies are told of pods.

use std::net::IpAddr;

use crate::agent::Change;
use crate::broker::server::Outgoing;
use crate::broker::wire::proto::{self, to_proxy};
use crate::sockets::Listeners;
use crate::source::Pod;

pub(super) fn added(pod: &Pod, listeners: &Listeners) -> std::io::Result<Outgoing> {
    let bytes = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let Listeners { outbound, plaintext, hbone } = listeners.try_clone()?;
    let message = to_proxy::Message::PodAdded(proto::PodAdded {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.iter().map(bytes).collect(),
    });
    Ok(Outgoing { message, descriptors: vec![outbound.into(), plaintext.into(), hbone.into()] })
}

pub(super) fn removed(uid: String) -> Change {
    change(uid, |uid| to_proxy::Message::PodRemoved(proto::PodRemoved { uid }))
}

/// One without descriptors.
pub(super) fn change(uid: String, message: fn(String) -> to_proxy::Message) -> Change {
    let told = uid.clone();
    let message = move || Ok(Outgoing { message: message(told.clone()), descriptors: Vec::new() });
    Change { uid, message: Box::new(message) }
}
