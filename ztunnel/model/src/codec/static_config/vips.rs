//! Virtual addresses that would never answer, or of which chance would say who answers.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::service::vip_text;
use crate::address::{Network, NetworkAddress};
use crate::codec::located::{Mistake, Place};
use crate::service::{NamespacedHostname, Service, Vip};
use crate::workload::{NetworkMode, Workload};

/// All virtual addresses of a document, to be checked against each other and against the workloads.
pub(super) struct Vips<'a> {
    workloads: HashMap<NetworkAddress, &'a str>,
    all: Vec<Written>,
}

struct Written {
    service: NamespacedHostname,
    vip: Vip,
    /// At the place where it is written.
    mistake: Mistake,
}

impl<'a> Vips<'a> {
    pub(super) fn new(workloads: &'a [Workload]) -> Self {
        let reachable = workloads.iter().filter(|workload| workload.network_mode == NetworkMode::Standard);
        let addresses = reachable.flat_map(|workload| {
            let at =
                |ip: &IpAddr| (NetworkAddress::new(workload.network.clone(), *ip), workload.uid.as_str());
            workload.addresses.iter().map(at)
        });
        Self { workloads: addresses.collect(), all: Vec::new() }
    }

    pub(super) fn add(&mut self, service: &Service, vip: &Vip, place: &Place<'_>) {
        let (service, vip) = (service.key.clone(), vip.clone());
        self.all.push(Written { service, vip, mistake: place.mistake("") });
    }

    /// Within a namespace no virtual address may overlap another service's; in another namespace it may, because a
    /// client's own namespace comes first. No workload may have it: a workload is found before a service.
    pub(super) fn check(mut self, mistakes: &mut Vec<Mistake>) {
        // Short prefixes first, so that one look upwards finds every overlap.
        self.all.sort_by_key(|one| (one.vip.prefix.prefix_len(), one.mistake.line));
        let mut seen: HashMap<(&str, &Network, IpNet), &Written> = HashMap::new();
        let mut lengths = BTreeSet::new();
        for one in &self.all {
            let (prefix, network) = (one.vip.prefix, &one.vip.network);
            lengths.insert(prefix.prefix_len());
            let wider =
                lengths.iter().filter_map(|&length| Some(IpNet::new(prefix.addr(), length).ok()?.trunc()));
            let mut found =
                wider.filter_map(|wide| seen.get(&(one.service.namespace.as_str(), network, wide)));
            if let Some(other) = found.find(|other| other.vip == one.vip || other.service != one.service) {
                let (later, first) =
                    if one.mistake.line < other.mistake.line { (*other, one) } else { (one, *other) };
                mistakes.push(later.mistake(format!(
                    "virtual address {} overlaps {} of service {} on line {}",
                    vip_text(&later.vip),
                    vip_text(&first.vip),
                    first.service,
                    first.mistake.line
                )));
            }
            let address = NetworkAddress::new(network.clone(), prefix.addr());
            if one.vip.is_exact()
                && let Some(uid) = self.workloads.get(&address)
            {
                let text = vip_text(&one.vip);
                mistakes.push(one.mistake(format!(
                    "virtual address {text} is the address of workload {uid}, so that the service could never be reached"
                )));
            }
            seen.entry((one.service.namespace.as_str(), network, prefix)).or_insert(one);
        }
    }
}

impl Written {
    fn mistake(&self, reason: String) -> Mistake {
        Mistake { reason, ..self.mistake.clone() }
    }
}
