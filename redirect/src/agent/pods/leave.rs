//! A pod that leaves the mesh and lives on: nothing of it is captured any more, and what was captured goes on until it ends.
//!
//! ```text
//! captured ─▶ leaving ─▶ withdrawn (every proxy has drained, or none is left, or the time is over)
//!     ▲          │
//!     └──────────┘ listed again
//! ```
//!
//! Meanwhile it stays among the captured ones: its proxies serve it as before, because the peers of the pod hear of its
//! leaving on another way and send through tunnels until then. An agent that starts again has forgotten who was leaving,
//! and withdraws at once.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Captured, Change, Error, Hold, Inside, Pods, change, removed};
use crate::broker::server::ProxyId;
use crate::broker::wire::proto::{self, to_proxy};
use crate::rules::{self, Uncaptured};
use crate::source::Pod;

/// The connections of a pod that leaves are ended after so long.
const LONGEST: Duration = Duration::from_secs(3600);

pub(super) struct Leave {
    until: Instant,
    drained: HashSet<ProxyId>,
}

impl Pods {
    pub(in crate::agent) fn joined(&mut self, proxy: ProxyId) {
        self.proxies.insert(proxy);
    }

    pub(in crate::agent) fn left(&mut self, proxy: ProxyId) {
        self.proxies.remove(&proxy);
    }

    /// A proxy has no connection of this pod any more.
    pub(in crate::agent) fn drained(&mut self, proxy: ProxyId, uid: &str) {
        if let Some(leave) = self.captured.get_mut(uid).and_then(|held| held.leaving.as_mut()) {
            leave.drained.insert(proxy);
        }
    }

    /// Lets go of a pod that is no longer wanted in such a way that no connection ends; gives it back where that cannot be.
    pub(super) async fn leave(&mut self, held: Captured) -> Result<Change, Captured> {
        if self.proxies.is_empty() || !matches!(held.hold, Hold::Both(_)) {
            return Err(held);
        }
        let released = match held.pod.netns.reopen(held.ident) {
            Ok(netns) => netns.run(rules::release).await,
            Err(error) => Err(error),
        };
        let none_captured = match released.map_err(Error::from).and_then(|released| Ok(released?)) {
            Ok(none_captured) => none_captured,
            Err(error) => {
                tracing::debug!(pod = held.pod.uid, %error, "withdrawn at once");
                return Err(held);
            }
        };
        self.unguard(held.guard.as_ref());
        let Captured { pod, ident, hold: Hold::Both(installed), opening, .. } = held else {
            return Err(held);
        };
        tracing::info!(pod = pod.uid, "pod leaves; what was captured goes on");
        let leaving = Some(Leave { until: Instant::now() + LONGEST, drained: HashSet::new() });
        let (uid, hold) = (pod.uid.clone(), Hold::Released(installed.released(none_captured)));
        self.captured.insert(uid.clone(), Captured { pod, ident, hold, opening, guard: None, leaving });
        Ok(announcement(uid))
    }

    /// Captures a pod again that was leaving.
    pub(super) async fn rejoin(&mut self, pod: Pod) -> Option<Change> {
        let Captured { ident, hold, guard, .. } = self.captured.remove(&pod.uid)?;
        let Hold::Released(released) = hold else { return self.keep(pod, ident, hold, guard) };
        let uncaptured = Uncaptured::of(pod.strict);
        let capture = move || {
            let hold = Hold::Both(released.capture(uncaptured)?);
            let inside = Inside::look(&hold);
            Ok::<_, Error>((hold, inside))
        };
        let captured = match pod.netns.reopen(ident) {
            Ok(netns) => netns.run(capture).await.map_err(Error::from).flatten(),
            Err(error) => Err(error.into()),
        };
        match captured {
            Ok((hold, inside)) => {
                tracing::info!(pod = pod.uid, "pod captured again");
                let guard = self.guard(&pod, inside);
                self.keep(pod, ident, hold, Some(guard))
            }
            // The listeners went with the attempt; the proxies must let go of theirs, or no other could be opened.
            Err(error) => {
                let uid = pod.uid.clone();
                self.wait(pod, &error, true, None);
                Some(removed(uid))
            }
        }
    }

    /// Withdraws those that have left.
    pub(super) async fn finish_leaving(&mut self) -> Vec<Change> {
        let now = Instant::now();
        let is_over = |leave: &Leave| leave.until <= now || self.proxies.is_subset(&leave.drained);
        let over = |held: &Captured| held.leaving.as_ref().is_some_and(is_over);
        let mut changes = Vec::new();
        for uid in self.uids(|_, held| over(held)) {
            let Some(held) = self.captured.remove(&uid) else { continue };
            if let Some(entry) = self.entry(&held.pod, held.ident) {
                self.withdraw(entry, None).await;
            }
            changes.push(removed(uid));
        }
        changes
    }
}

/// What proxies hear of a pod that leaves.
pub(super) fn announcement(uid: String) -> Change {
    change(uid, |uid| to_proxy::Message::PodLeaving(proto::PodLeaving { uid }))
}
