//! How each pod is, for whoever asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Pods;
use super::guard::Kind;
use crate::broker::server::ProxyId;
use crate::source::Pod;
use crate::status::{PodStatus, State};

impl Pods {
    pub(in crate::agent) fn statuses(
        &self,
        quarantined: Option<&BTreeSet<IpAddr>>,
        proxies: impl Fn(&str) -> Vec<ProxyId>,
    ) -> Vec<PodStatus> {
        let shut =
            |addresses: &[IpAddr]| quarantined.is_some_and(|all| addresses.iter().any(|ip| all.contains(ip)));
        let of = |pod: &Pod, state, reason, repairs| PodStatus {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: pod.addresses.clone(),
            strict: pod.strict,
            state: if pod.strict && state != State::Captured && shut(&pod.addresses) {
                State::Quarantined
            } else {
                state
            },
            reason,
            proxies: proxies(&pod.uid),
            repairs,
        };
        let captured = self.captured.values().map(|held| {
            let trouble = held.guard.as_ref().and_then(|guard| guard.trouble.as_ref());
            let state = match trouble.map(|trouble| trouble.kind) {
                None if held.leaving.is_some() => State::Leaving,
                None => State::Captured,
                Some(Kind::Unproven | Kind::Broken | Kind::Contested) => State::Unproven,
            };
            let reason = trouble.map(|trouble| trouble.message.clone());
            of(&held.pod, state, reason, held.guard.as_ref().map_or(0, |guard| guard.repairs))
        });
        let pending =
            self.pending.values().map(|one| of(&one.pod, State::Pending, Some(one.reason.clone()), 0));
        let lost = self.lost.values().map(|lost| {
            let pod = &lost.pod;
            PodStatus {
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                addresses: pod.addresses.clone(),
                strict: pod.strict,
                state: if pod.strict && shut(&pod.addresses) { State::Quarantined } else { State::Pending },
                reason: pod.reason.clone(),
                ..PodStatus::default()
            }
        });
        let leaving = self.leaving.iter().map(|leaving| PodStatus {
            uid: leaving.entry.uid.clone(),
            state: State::Leaving,
            reason: Some("its rules are not removed yet".to_owned()),
            ..PodStatus::default()
        });
        captured.chain(pending).chain(lost).chain(leaving).collect()
    }

    /// Network namespaces that are kept by sockets of this agent.
    pub(in crate::agent) fn namespaces(&self) -> usize {
        self.captured.len()
    }
}
