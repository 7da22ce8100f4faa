//! Pods that must be captured and whose namespace is not found: what has rules of an earlier capture stays shut by them, what has
//! none is open, is told as not captured, and is quarantined while it is strict.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::guard::BOUND;
use super::{Pods, is_whole};
use crate::netns::Place;
use crate::rules::host::Members;
use crate::source::Unlocated;

pub(super) struct Lost {
    pub(super) pod: Unlocated,
    since: Instant,
    /// Its rules are not in place, or nobody knows.
    open: bool,
}

pub(super) type All = BTreeMap<String, Lost>;

impl Pods {
    /// All of them, as the source has looked for them.
    pub(in crate::agent) async fn unlocated(&mut self, unlocated: Vec<Unlocated>) {
        let mut before = std::mem::take(&mut self.lost);
        for pod in unlocated.into_iter().filter(|pod| pod.reason.is_some()) {
            let lost = match before.remove(&pod.uid) {
                Some(known) => Lost { pod, ..known },
                None => {
                    *self.counts.failures.entry("unlocated").or_default() += 1;
                    let open = !self.holds_rules(&pod).await;
                    Lost { pod, since: Instant::now(), open }
                }
            };
            self.lost.insert(lost.pod.uid.clone(), lost);
        }
    }

    /// Whether a namespace in which this pod was captured before is still there, with all rules.
    async fn holds_rules(&mut self, pod: &Unlocated) -> bool {
        let Some(form) = self.guarding.form(pod.strict).cloned() else { return false };
        for entry in self.record.entries().iter().filter(|entry| entry.uid == pod.uid) {
            let Ok(netns) = Place::from(entry.netns.clone()).reopen(entry.ident) else { continue };
            let form = form.clone();
            if netns.run(move || is_whole(&form)).await.unwrap_or(false) {
                return true;
            }
        }
        false
    }
}

impl Lost {
    /// Probed by the kubelet like any other; quarantined once it was open for as long as any may be.
    pub(super) fn join(&self, members: &mut Members) {
        members.pods.extend(&self.pod.addresses);
        if self.open && self.pod.strict && self.since.elapsed() >= BOUND {
            members.quarantined.extend(&self.pod.addresses);
        }
    }
}
