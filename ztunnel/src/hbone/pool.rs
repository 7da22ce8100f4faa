//! The tunnels of one pod on one worker.
//!
//! Keyed by what a tunnel stands for, never by a hash of it. For each key at most one dial is in flight; everybody who
//! needs a tunnel meanwhile waits for it and shares its outcome, failure included. Nothing is locked while it runs.
//!
//! Tunnels of one key are filled one after the other, but for those that carry bulk: these take in nobody while another can.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared};
use tokio_util::sync::CancellationToken;
use ztunnel_model::Hop;

use super::client::{self, StreamHold, Tunnel};
use super::{DIAL_DEADLINE, Settings};
use crate::io::share::Account;
use crate::tls;

/// Each new tunnel takes in some waiters; who is still waiting after this many has a peer that takes in nobody.
const MOST_TUNNELS_WAITED_FOR: usize = 128;

/// How long a tunnel without streams is kept that is not the only one of its key: after a burst its memory goes back soon.
const SURPLUS: Duration = Duration::from_secs(10);

/// Tunnels that are made for one key so that streams need not wait behind bulk.
const MOST_APART: usize = 4;
/// For such a tunnel to be made.
const APART_DEADLINE: Duration = Duration::from_millis(500);

/// What a stream may share a tunnel with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    NoBulk,
    Anything,
}

/// What makes two streams able to share a tunnel. The source identity is the pod's, and the pool is the pod's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub hop: Hop,
    /// The peer sees this address as the client's.
    pub source: IpAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error<D> {
    #[error(transparent)]
    Dial(D),
    #[error(transparent)]
    Http2(#[from] client::Error),
}

/// An outcome that all waiters of a dial get.
pub type Outcome<D> = Result<Rc<Tunnel>, Rc<Error<D>>>;
type Dial<D> = Shared<LocalBoxFuture<'static, Outcome<D>>>;

pub struct Pool<D: 'static> {
    entries: RefCell<HashMap<Key, Entry<D>>>,
    settings: Settings,
    account: Rc<Account>,
    stop: CancellationToken,
}

struct Entry<D: 'static> {
    tunnels: Vec<Rc<Tunnel>>,
    dial: Option<Dial<D>>,
}

impl<D: 'static> Pool<D> {
    /// The tunnels take their turns as the pod's; `stop` closes every one at once.
    pub fn new(settings: Settings, account: Rc<Account>, stop: CancellationToken) -> Rc<Self> {
        Rc::new(Self { entries: RefCell::default(), settings, account, stop })
    }

    /// A place in a tunnel for `key`; `dial` makes the TLS stream when a new tunnel is needed.
    pub async fn stream<F, T>(self: &Rc<Self>, key: &Key, dial: F) -> Result<StreamHold, Rc<Error<D>>>
    where
        F: Fn() -> T,
        T: Future<Output = Result<tls::Stream, D>> + 'static,
    {
        if let Some(hold) = self.place(key, Beside::NoBulk) {
            return Ok(hold);
        }
        if self.has_room(key) {
            // Whatever comes of it: beside bulk is better than a long wait, and than nowhere.
            let _ = tokio::time::timeout(APART_DEADLINE, self.join_or_dial(key, &dial)).await;
        }
        for _ in 0..MOST_TUNNELS_WAITED_FOR {
            if let Some(hold) = self.place(key, Beside::Anything) {
                return Ok(hold);
            }
            self.join_or_dial(key, &dial).await?;
        }
        Err(Rc::new(Error::Http2(client::Error::NoRoom)))
    }

    /// Beside anything.
    fn has_room(&self, key: &Key) -> bool {
        let has_room = |tunnel: &Rc<Tunnel>| tunnel.has_room(self.settings.max_streams);
        self.entries.borrow().get(key).is_some_and(|entry| entry.tunnels.iter().any(has_room))
    }

    fn place(&self, key: &Key, beside: Beside) -> Option<StreamHold> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
        entry.tunnels.retain(|tunnel| !tunnel.is_closed() && tunnel.is_valid());
        let roomy = || entry.tunnels.iter().filter(|tunnel| tunnel.has_room(self.settings.max_streams));
        if let Some(quiet) = roomy().find(|tunnel| !tunnel.is_bulk()) {
            return Some(quiet.hold());
        }
        if beside == Beside::NoBulk && entry.tunnels.len() < MOST_APART {
            return None;
        }
        roomy().min_by_key(|tunnel| tunnel.streams()).map(Tunnel::hold)
    }

    fn join_or_dial<F, T>(self: &Rc<Self>, key: &Key, dial: &F) -> Dial<D>
    where
        F: Fn() -> T,
        T: Future<Output = Result<tls::Stream, D>> + 'static,
    {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry { tunnels: Vec::new(), dial: None });
        if let Some(in_flight) = &entry.dial {
            return in_flight.clone();
        }
        let in_flight = self.clone().dial(key.clone(), dial()).boxed_local().shared();
        entry.dial = Some(in_flight.clone());
        // Driven by a task of its own: a caller that gives up must not strand those who wait with it.
        tokio::task::spawn_local(in_flight.clone());
        in_flight
    }

    async fn dial<T>(self: Rc<Self>, key: Key, dial: T) -> Outcome<D>
    where
        T: Future<Output = Result<tls::Stream, D>>,
    {
        let opened = async {
            let tls = dial.await.map_err(Error::Dial)?;
            Tunnel::open(tls, &self.settings, &self.account, self.stop.child_token())
                .await
                .map_err(Error::Http2)
        };
        let outcome = opened.await.map_err(Rc::new);
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(&key) {
            entry.dial = None;
            if let Ok(tunnel) = &outcome {
                entry.tunnels.push(tunnel.clone());
            } else if entry.tunnels.is_empty() {
                entries.remove(&key);
            }
        }
        outcome
    }

    /// Lets go of tunnels that nobody used for the release time; runs until the pool's owner drops it.
    pub async fn release_unused(self: Rc<Self>) {
        let period = (self.surplus() / 2).max(DIAL_DEADLINE / 10);
        loop {
            tokio::time::sleep(period).await;
            self.review();
        }
    }

    fn review(&self) {
        self.entries.borrow_mut().retain(|_, entry| {
            entry.tunnels.retain(|tunnel| !tunnel.is_closed());
            let mut first = true;
            entry.tunnels.retain(|tunnel| {
                let most = if first { self.settings.unused_release } else { self.surplus() };
                first = false;
                tunnel.idle_for().is_none_or(|idle| idle < most)
            });
            !entry.tunnels.is_empty() || entry.dial.is_some()
        });
    }

    fn surplus(&self) -> Duration {
        self.settings.unused_release.min(SURPLUS)
    }

    /// Lets go of every tunnel: each closes when its last stream ends.
    pub fn release_all(&self) {
        self.entries.borrow_mut().clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.borrow().values().map(|entry| entry.tunnels.len()).sum()
    }
}

#[cfg(test)]
mod tests;
