//! Listeners where stock ztunnels open their own: this agent's exist only while a proxy of its own is connected, so that
//! either kind can serve the node, and take over from the other.

use super::{Captured, Change, Error, Part, Pods, Retry};
use crate::netns::{Ident, Place};
use crate::rules::Ports;
use crate::sockets::Listeners;

impl Pods {
    /// Proxies of this agent's own have come, or the last has left.
    pub(in crate::agent) async fn proxied(&mut self, now: bool) -> Vec<Change> {
        match &mut self.part {
            Part::Rules { proxied } if *proxied != now => *proxied = now,
            _ => return Vec::new(),
        }
        if !now {
            for (uid, held) in std::mem::take(&mut self.captured) {
                self.captured.insert(uid, Captured { hold: held.hold.close(), opening: None, ..held });
            }
        }
        self.open_listeners().await
    }

    /// Opens what should be open and is not; what fails is tried again.
    pub(super) async fn open_listeners(&mut self) -> Vec<Change> {
        if self.part != (Part::Rules { proxied: true }) {
            return Vec::new();
        }
        let due = |held: &Captured| {
            held.hold.listeners().is_none() && held.opening.is_none_or(|retry| retry.is_due())
        };
        let mut changes = Vec::new();
        for uid in self.uids(|_, held| due(held)) {
            changes.extend(self.open(&uid, None).await);
        }
        changes
    }

    /// Puts listeners behind the rules of a captured pod: those that a proxy handed back, or new ones.
    pub(super) async fn open(&mut self, uid: &str, listeners: Option<Listeners>) -> Option<Change> {
        let held = self.captured.get_mut(uid)?;
        match ports(&held.pod.netns, held.ident, listeners).await {
            Ok(ports) => {
                let Captured { pod, ident, hold, guard, .. } = self.captured.remove(uid)?;
                self.keep(pod, ident, hold.open(ports), guard)
            }
            Err(error) => {
                let retry = Retry::after(held.opening);
                held.opening = Some(retry);
                let retry_ms = retry.wait().as_millis();
                tracing::warn!(pod = uid, %error, retry_ms, "no listeners for the proxy");
                None
            }
        }
    }
}

async fn ports(place: &Place, ident: Ident, listeners: Option<Listeners>) -> Result<Ports, Error> {
    let prove = move || -> Result<Ports, Error> {
        let listeners = match listeners {
            Some(listeners) => listeners,
            None => Listeners::bind()?,
        };
        Ok(Ports::prove(listeners, ident)?)
    };
    place.reopen(ident)?.run(prove).await?
}
