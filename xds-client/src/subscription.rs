//! What the client wants and holds of one type.
//!
//! Owns the version map, which outlives streams and is told to the server when one begins, so that nothing unchanged is
//! sent again; and, for an on-demand type, the demands (`on_demand`). Holds names and versions only, never bodies:
//! a million workloads with names of 60 bytes take 140 MiB, and 200 MiB if each has a version of its own. Must not know
//! responses, nonces or streams beyond "one began" and "it ended".
//!
//! A server may refuse the versions for their size (istiod takes 4 MiB at most, which some ten thousand workloads fill).
//! Then the next stream begins without them; the first response brings everything, and what it does not bring has gone.

mod on_demand;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use on_demand::OnDemand;

use crate::proto::DeltaDiscoveryRequest;
use crate::resource::{Rejection, ResourceName, TypeUrl, Update, Version};

/// Version maps below this size are not what a server refuses.
const LARGE: usize = 1 << 20;

/// A demand's key is an address, a host name or a uid.
const LONGEST_KEY: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All resources of the type.
    Wildcard,
    /// Only those that were asked for, and what the server adds to them.
    OnDemand,
}

/// How a demand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A resource with this name or alias is held: it was applied before this was said.
    Found,
    /// The server says that there is none.
    Absent,
    /// The server said nothing in time. It may be asked again.
    TimedOut,
    /// It cannot be told: no server is connected, too much is asked at once, or what came could not be applied. Not the
    /// same as absent: whoever reads it as such would treat a workload of the mesh as a stranger.
    Unavailable,
}

/// Why a demand was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("nothing of type \"{0}\" is subscribed to")]
    UnknownType(TypeUrl),
    #[error("type \"{0}\" is not subscribed to on demand")]
    NotOnDemand(TypeUrl),
    #[error("a key of {0} bytes (\"*\", nothing, or over {LONGEST_KEY}) names no resource")]
    Key(usize),
    #[error("{0} keys are asked for and not answered yet, which is the limit")]
    TooMany(usize),
}

/// What a demand came to at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demanded {
    Known(Outcome),
    /// The outcome follows.
    Waiting,
}

/// Bounds on the demands of one type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DemandLimits {
    pub timeout: Duration,
    pub outstanding: usize,
}

#[derive(Debug)]
pub(crate) struct Subscription {
    type_url: TypeUrl,
    held: HashMap<ResourceName, Version>,
    on_demand: Option<OnDemand>,
    /// A server refused a first request for its size: leave the versions out while they are large.
    versions_refused: bool,
    /// The stream began without versions, so its first response is the whole of what there is.
    whole_expected: bool,
}

impl Subscription {
    pub(crate) fn new(type_url: TypeUrl, mode: Mode, limits: DemandLimits) -> Self {
        Self {
            type_url,
            held: HashMap::new(),
            on_demand: (mode == Mode::OnDemand).then(|| OnDemand::new(limits)),
            versions_refused: false,
            whole_expected: false,
        }
    }

    pub(crate) fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    pub(crate) fn mode(&self) -> Mode {
        if self.on_demand.is_some() { Mode::OnDemand } else { Mode::Wildcard }
    }

    pub(crate) fn held(&self) -> &HashMap<ResourceName, Version> {
        &self.held
    }

    /// The first request for this type on a stream, without the node.
    pub(crate) fn begin(&mut self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest { type_url: self.type_url.to_string(), ..Default::default() };
        if let Some(on_demand) = &mut self.on_demand {
            (request.resource_names_subscribe, request.resource_names_unsubscribe) = on_demand.begin();
        }
        let omitted = self.versions_refused && self.versions_size() > LARGE;
        self.whole_expected = omitted && self.on_demand.is_none();
        if !omitted {
            let pair = |(name, version): (&ResourceName, &Version)| (name.to_string(), version.to_string());
            request.initial_resource_versions = self.held.iter().map(pair).collect();
        }
        request
    }

    /// Subscriptions that changed since, if any did.
    pub(crate) fn changes(&mut self) -> Option<DeltaDiscoveryRequest> {
        let (subscribe, unsubscribe) = self.on_demand.as_mut()?.changes()?;
        Some(DeltaDiscoveryRequest {
            type_url: self.type_url.to_string(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..Default::default()
        })
    }

    /// The stream is gone; `too_large` if the server refused a request for its size.
    pub(crate) fn end(&mut self, too_large: bool) {
        if let Some(on_demand) = &mut self.on_demand {
            on_demand.end();
        }
        self.whole_expected = false;
        self.versions_refused |= too_large;
    }

    pub(crate) fn demand(&mut self, key: &str, now: Instant) -> Result<Demanded, Refused> {
        let Some(on_demand) = &mut self.on_demand else {
            return Err(Refused::NotOnDemand(self.type_url.clone()));
        };
        if key.is_empty() || key == "*" || key.len() > LONGEST_KEY {
            return Err(Refused::Key(key.len()));
        }
        if self.held.contains_key(key) || on_demand.is_alias(key) {
            return Ok(Demanded::Known(Outcome::Found));
        }
        on_demand.demand(key, now).map(|()| Demanded::Waiting)
    }

    /// When the next demand runs out of time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.on_demand.as_ref()?.deadline()
    }

    /// Keys whose time is over.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<ResourceName> {
        self.on_demand.as_mut().map_or_else(Vec::new, |on_demand| on_demand.expired(now))
    }

    /// Adds the removals that a server without our versions could not name. `also_sent` came but cannot be used.
    pub(crate) fn complete(&mut self, update: &mut Update, also_sent: &[Rejection]) {
        if !std::mem::take(&mut self.whole_expected) {
            return;
        }
        let sent: HashSet<&ResourceName> = update
            .changed
            .iter()
            .map(|resource| &resource.name)
            .chain(also_sent.iter().map(|rejection| &rejection.name))
            .chain(&update.removed)
            .collect();
        let gone: Vec<_> = self.held.keys().filter(|name| !sent.contains(name)).cloned().collect();
        update.removed.extend(gone);
    }

    /// The consumer has applied the update but for what it `rejected`. Gives the demands that this answers.
    pub(crate) fn record(&mut self, update: Update, rejected: &[Rejection]) -> Vec<(ResourceName, Outcome)> {
        let rejected: HashSet<&str> = rejected.iter().map(|rejection| rejection.name.as_str()).collect();
        let mut answered = Vec::new();
        if self.held.is_empty() {
            self.held.reserve(update.changed.len());
        }
        for resource in update.changed {
            let applied = !rejected.contains(resource.name.as_str());
            if let Some(on_demand) = &mut self.on_demand {
                on_demand.changed(&resource, applied, &mut answered);
            }
            if applied {
                self.held.insert(resource.name, resource.version);
            }
        }
        for name in update.removed {
            self.held.remove(&name);
            if let Some(on_demand) = &mut self.on_demand {
                on_demand.removed(&name, &mut answered);
            }
        }
        if let Some(on_demand) = &mut self.on_demand {
            // Names that came in no usable form at all (no body, a body of another type).
            rejected.iter().for_each(|name| on_demand.unusable(name, &mut answered));
        }
        answered
    }

    /// About what the versions take on the wire.
    fn versions_size(&self) -> usize {
        self.held.iter().map(|(name, version)| name.as_str().len() + version.as_str().len() + 8).sum()
    }
}
