//! One kind, for ever: listed page by page, watched from there on, watched again where a watch has ended, and listed again
//! when the API server no longer knows from where.
//!
//! ```text
//!            ┌──── trouble: pause ────┐      ┌── ended, trouble: pause ──┐
//!            ▼                        │      ▼                           │
//!          list ──────────────────────┴──▶ watch ────────────────────────┤
//!            ▲                                                           │
//!            └── 410, 404, or refused three times in a row: pause ───────┘
//! ```

use std::time::Duration;

use futures::AsyncBufRead;
use kube::Client;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::ask::{self, Event, Trouble, Watch};
use super::{Resource, Timing};

/// Objects to a page, as long as these are not too long.
const PAGE: u32 = 250;
/// A version that the API server does not like is held to no longer than this.
const REFUSALS: u32 = 3;
/// However long the API server asks to be left alone.
const LONGEST_REQUESTED_PAUSE: Duration = Duration::from_secs(60);

/// What is heard of the objects of a kind.
#[derive(Debug)]
pub enum Told {
    /// All that there are follow, up to `Listed`.
    Listing,
    Set(Value),
    /// As it was last.
    Gone(Value),
    Listed,
    /// The API server does not have this kind.
    Absent,
}

/// Tells of one kind under a key.
pub struct Follower<K> {
    client: Client,
    resource: Resource,
    timing: Timing,
    key: K,
    out: mpsc::Sender<(K, Told)>,
    page: u32,
    failures: u32,
    refusals: u32,
    /// The last trouble, while it lasts.
    trouble: Option<String>,
}

impl<K: Copy> Follower<K> {
    pub fn new(
        client: Client,
        resource: Resource,
        timing: Timing,
        key: K,
        out: mpsc::Sender<(K, Told)>,
    ) -> Self {
        Self { client, resource, timing, key, out, page: PAGE, failures: 0, refusals: 0, trouble: None }
    }

    /// Ends when nobody listens any more.
    pub async fn run(mut self) {
        let mut version = None;
        loop {
            let outcome = match version.take() {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(mut from) => {
                    let begun = Instant::now();
                    let outcome = self.watch(&mut from).await;
                    if begun.elapsed() >= self.timing.steady {
                        (self.failures, self.refusals) = (0, 0);
                    } else if outcome.is_ok() {
                        self.pause(Duration::ZERO).await;
                    }
                    if !self.is_lost(&outcome) {
                        version = Some(from);
                    }
                    outcome
                }
            };
            match outcome {
                Ok(()) => {}
                Err(Trouble::Unheard) => return,
                Err(trouble) => self.suffer(trouble).await,
            }
        }
    }

    /// Returns from where the list is to be watched.
    async fn list(&mut self) -> Result<String, Trouble> {
        let mut next = None;
        let mut is_first = true;
        loop {
            let page = ask::page(&self.client, &self.resource, next, self.page, &self.timing).await?;
            if is_first {
                self.tell(Told::Listing).await?;
                is_first = false;
            }
            for object in page.objects {
                self.tell(Told::Set(object)).await?;
            }
            next = page.next;
            if next.is_none() {
                self.tell(Told::Listed).await?;
                self.is_well();
                return Ok(page.version);
            }
        }
    }

    /// Until the watch ends; `version` goes along with what was told.
    async fn watch(&mut self, version: &mut String) -> Result<(), Trouble> {
        let mut watch = ask::watch(&self.client, &self.resource, version, &self.timing).await?;
        self.is_well();
        self.drain(&mut watch, version).await
    }

    async fn drain<R: AsyncBufRead + Unpin>(
        &mut self,
        watch: &mut Watch<R>,
        version: &mut String,
    ) -> Result<(), Trouble> {
        while let Some(event) = watch.next().await? {
            let now = match event {
                Event::Bookmark(now) => now,
                Event::Set(object) => {
                    let now = ask::version(&object).to_owned();
                    self.tell(Told::Set(object)).await?;
                    now
                }
                Event::Gone(object) => {
                    let now = ask::version(&object).to_owned();
                    self.tell(Told::Gone(object)).await?;
                    now
                }
            };
            self.refusals = 0;
            if !now.is_empty() {
                *version = now;
            }
        }
        Ok(())
    }

    /// Whether there is no watching from the same version any more.
    fn is_lost(&mut self, outcome: &Result<(), Trouble>) -> bool {
        match outcome {
            Err(Trouble::Refused { code: 404 | 410, .. }) => true,
            Err(Trouble::Refused { code: 429, .. }) => false,
            Err(Trouble::Refused { .. } | Trouble::Unreadable(_) | Trouble::Long(_)) => {
                self.refusals += 1;
                let lost = self.refusals >= REFUSALS;
                if lost {
                    self.refusals = 0;
                }
                lost
            }
            _ => false,
        }
    }

    async fn suffer(&mut self, trouble: Trouble) {
        let kind = self.resource.name;
        let mut at_least = Duration::ZERO;
        match &trouble {
            Trouble::Refused { code: 404, .. } if self.resource.custom => {
                if self.tell(Told::Absent).await.is_err() {
                    return;
                }
                if self.is_new("absent".to_owned()) {
                    tracing::info!(
                        kind,
                        "the API server does not have this kind; it is followed once it is installed"
                    );
                }
                return sleep(pause(u32::MAX, &self.timing)).await;
            }
            // From time to time it forgets what is long ago.
            Trouble::Refused { code: 410, .. } => tracing::debug!(kind, %trouble, "listed again"),
            Trouble::Refused { retry_after, .. } => {
                at_least = retry_after.unwrap_or_default().min(LONGEST_REQUESTED_PAUSE);
            }
            Trouble::Long(_) => self.page = (self.page / 4).max(1),
            _ => {}
        }
        if !matches!(trouble, Trouble::Refused { code: 410, .. }) && self.is_new(trouble.to_string()) {
            tracing::warn!(kind, %trouble, "the API server is not heard; what is known stays in force");
        }
        self.pause(at_least).await;
    }

    fn is_new(&mut self, trouble: String) -> bool {
        let is_new = self.trouble.as_ref() != Some(&trouble);
        self.trouble = Some(trouble);
        is_new
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(kind = self.resource.name, "the API server is heard again");
        }
    }

    async fn pause(&mut self, at_least: Duration) {
        sleep(pause(self.failures, &self.timing).max(at_least)).await;
        self.failures = self.failures.saturating_add(1);
    }

    async fn tell(&self, told: Told) -> Result<(), Trouble> {
        self.out.send((self.key, told)).await.map_err(|_| Trouble::Unheard)
    }
}

/// Twice as long after each failure, and less by up to half, so that not all come at once.
fn pause(failures: u32, timing: &Timing) -> Duration {
    let doubled = 1_u32.checked_shl(failures).and_then(|factor| timing.first_pause.checked_mul(factor));
    let longest = doubled.map_or(timing.longest_pause, |pause| pause.min(timing.longest_pause));
    longest.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        let timing = Timing::default();
        let bounds = |failures: u32| {
            let all: Vec<Duration> = (0..200).map(|_| pause(failures, &timing)).collect();
            (*all.iter().min().expect("there are some"), *all.iter().max().expect("there are some"))
        };
        for (failures, longest) in
            [(0, 200), (1, 400), (5, 6400), (8, 30_000), (31, 30_000), (u32::MAX, 30_000)]
        {
            let longest = Duration::from_millis(longest);
            let (least, most) = bounds(failures);
            assert!(least >= longest / 2 && most <= longest, "{failures}: {least:?} to {most:?}");
            assert!(most - least > longest / 4, "{failures}: {least:?} to {most:?} is not spread");
        }
    }
}
