//! Demands from other threads, and who waits for them.

use std::collections::HashMap;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::delta::{Answered, Demanded, Machine};
use crate::resource::{ResourceName, TypeUrl};
use crate::subscription::Outcome;

/// Demands that the control thread has not taken yet.
const QUEUE: usize = 4096;

/// Callers that wait.
const WAITERS: usize = 65536;

/// Asks for single resources of on-demand types. Cheap to clone; may be used on any thread and any runtime.
#[derive(Clone, Debug)]
pub struct Demand(mpsc::Sender<Ask>);

#[derive(Debug)]
pub(super) struct Ask {
    type_url: TypeUrl,
    key: ResourceName,
    /// Dropped when the outcome is unavailable for lack of room.
    reply: oneshot::Sender<Outcome>,
}

/// The callers of each key. As the machine waits for a key no longer than its deadline, so do they.
#[derive(Default)]
pub(super) struct Waiters {
    callers: HashMap<(TypeUrl, ResourceName), Vec<oneshot::Sender<Outcome>>>,
    count: usize,
}

impl Demand {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Ask>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// The resource with this name or alias. Ends with the demand's time-out at the latest, which the control thread
    /// keeps. When it says `Found`, the sink has applied the resource.
    pub async fn fetch(&self, type_url: &TypeUrl, key: &str) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let ask = Ask { type_url: type_url.clone(), key: key.into(), reply };
        match self.0.try_send(ask) {
            Ok(()) => outcome.await.unwrap_or(Outcome::Unavailable),
            Err(_) => Outcome::Unavailable,
        }
    }
}

impl Waiters {
    pub(super) fn take(&mut self, ask: Ask, machine: &mut Machine, now: Instant) {
        let Ask { type_url, key, reply } = ask;
        if reply.is_closed() {
            return;
        }
        if self.count >= WAITERS {
            return tracing::debug!(%type_url, %key, "too many callers wait for xDS resources");
        }
        match machine.demand(&type_url, key.as_str(), now) {
            // A caller that has left needs no answer.
            Ok(Demanded::Known(outcome)) => _ = reply.send(outcome),
            Ok(Demanded::Waiting) => {
                self.callers.entry((type_url, key)).or_default().push(reply);
                self.count += 1;
            }
            Err(error) => tracing::debug!(%error, %type_url, %key, "xDS demand refused"),
        }
    }

    pub(super) fn answer(&mut self, answered: Answered) {
        let Answered { type_url, key, outcome } = answered;
        let callers = self.callers.remove(&(type_url, key)).unwrap_or_default();
        self.count -= callers.len();
        callers.into_iter().for_each(|caller| _ = caller.send(outcome));
    }
}
