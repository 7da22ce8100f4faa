//! Virtual addresses: exact ones by one look-up, prefixes by one look-up for each length in use, instead of a scan.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ztunnel_model::service::Vip;
use ztunnel_model::{Network, Service};

use super::{Hasher, visible};
use crate::state::table::Table;

#[derive(Clone, Default)]
pub(in crate::state) struct ExactVips(Table<Arc<Service>>);

impl ExactVips {
    /// In the order in which they came.
    pub(super) fn services(
        &self,
        hasher: &Hasher,
        network: &Network,
        ip: IpAddr,
    ) -> impl DoubleEndedIterator<Item = &Arc<Service>> {
        self.0.all(hasher.address(network, ip), move |service| {
            service.vips.iter().any(|vip| {
                vip.is_exact() && vip.prefix.addr() == ip && vip.network.as_str() == network.as_str()
            })
        })
    }

    pub(in crate::state) fn put(&mut self, hasher: &Hasher, vip: &Vip, service: &Arc<Service>) {
        let hash = hasher.address(&vip.network, vip.prefix.addr());
        self.0.put(hash, service.clone(), |other| other.key == service.key);
    }

    pub(in crate::state) fn remove(&mut self, hasher: &Hasher, vip: &Vip, service: &Service) {
        let hash = hasher.address(&vip.network, vip.prefix.addr());
        self.0.remove(hash, |other| other.key == service.key);
    }
}

#[derive(Clone, Default)]
pub(in crate::state) struct PrefixVips {
    /// The lengths in use, with the number of prefixes that have them; IPv4 and IPv6 apart.
    lengths: [Vec<(u8, u32)>; 2],
    services: Table<Arc<Service>>,
}

impl PrefixVips {
    pub(in crate::state) fn put(&mut self, hasher: &Hasher, vip: &Vip, service: &Arc<Service>) {
        let before = self.services.len();
        self.services
            .put(hash(hasher, &vip.network, vip.prefix), service.clone(), |other| other.key == service.key);
        if self.services.len() > before {
            let lengths = &mut self.lengths[family(vip.prefix.addr())];
            match lengths.iter_mut().find(|(length, _)| *length == vip.prefix.prefix_len()) {
                Some((_, count)) => *count += 1,
                None => lengths.push((vip.prefix.prefix_len(), 1)),
            }
        }
    }

    pub(in crate::state) fn remove(&mut self, hasher: &Hasher, vip: &Vip, service: &Service) {
        let hash = hash(hasher, &vip.network, vip.prefix);
        if self.services.remove(hash, |other| other.key == service.key).is_some() {
            let lengths = &mut self.lengths[family(vip.prefix.addr())];
            if let Some((_, count)) =
                lengths.iter_mut().find(|(length, _)| *length == vip.prefix.prefix_len())
            {
                *count -= 1;
            }
            lengths.retain(|(_, count)| *count > 0);
        }
    }

    /// The best by (own namespace, prefix length, canonical); the first inserted wins a tie.
    pub(super) fn best(
        &self,
        hasher: &Hasher,
        network: &Network,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Service>> {
        let mut best: Option<&Arc<Service>> = None;
        let mut best_rank = None;
        for &(length, _) in &self.lengths[family(ip)] {
            let Ok(prefix) = IpNet::new(ip, length).map(|prefix| prefix.trunc()) else { continue };
            let of = |service: &Arc<Service>| {
                service
                    .vips
                    .iter()
                    .any(|vip| vip.prefix.trunc() == prefix && vip.network.as_str() == network.as_str())
            };
            let found = self.services.all(hash(hasher, network, prefix), &of);
            for service in found.filter(|service| visible(service, namespace)) {
                let rank = Some((service.key.namespace == namespace, length, service.canonical));
                if rank > best_rank {
                    (best, best_rank) = (Some(service), rank);
                }
            }
        }
        best
    }
}

fn hash(hasher: &Hasher, network: &Network, prefix: IpNet) -> u64 {
    hasher.of((network.as_str(), prefix.trunc()))
}

fn family(ip: IpAddr) -> usize {
    usize::from(ip.is_ipv6())
}
