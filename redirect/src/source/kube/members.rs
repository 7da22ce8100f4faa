//! The pods of this node that belong to the mesh, and where the namespace of each is.
//!
//! A namespace that was found counts until it is gone, the plugin says so, or the pod has an address that was not proven to be
//! inside. One that cannot be found is looked for again with back-off, and keeps no other pod waiting.

use std::collections::{BTreeMap, HashSet};

use tokio::time::Instant;

use super::cluster::Cluster;
use super::enrolment::{self, Verdict};
use super::object::Seen;
use crate::locate::{Error, Located, Wanted};
use crate::retry::Retry;
use crate::source::{Notice, Pod, Unlocated};

/// A pod that starts may be found at the second look only, and need not be talked about.
const QUIET: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<String, Member>);

#[derive(Debug)]
struct Member {
    pod: Seen,
    located: Option<Located>,
    /// Whose namespace it is, if the plugin told it.
    container: Option<String>,
    /// After a look that found nothing.
    retry: Option<Retry>,
    failures: u32,
    /// Why, the last time.
    reason: Option<String>,
}

impl Member {
    fn new(pod: Seen) -> Self {
        Self { pod, located: None, container: None, retry: None, failures: 0, reason: None }
    }

    fn is_proven(&self) -> bool {
        let proven = |located: &Located| self.pod.addresses.iter().all(|ip| located.addresses.contains(ip));
        self.located.as_ref().is_some_and(proven)
    }

    /// Where it was not told yet which addresses it has, there is nothing to tell its namespace by.
    fn is_looked_for(&self) -> bool {
        !self.is_proven() && !self.pod.addresses.is_empty()
    }

    fn let_go(&mut self) {
        *self = Self::new(self.pod.clone());
    }
}

impl Members {
    /// Takes over what is known of the cluster. Returns whether anything differs, and what is to be said about pods.
    pub(super) fn reconcile(&mut self, cluster: &Cluster) -> (bool, Vec<Notice>) {
        let (mut differ, mut notices) = (false, Vec::new());
        let mut meshed = HashSet::new();
        for pod in cluster.pods() {
            let mode = cluster.mode(&pod.namespace);
            if let Some(message) = enrolment::mistake(pod, mode) {
                notices.push(warning(&pod.uid, "UnknownLabel", message));
            }
            match enrolment::verdict(pod, mode) {
                Verdict::Outside => {}
                Verdict::Refused(message) => notices.push(warning(&pod.uid, "NotCaptured", message)),
                Verdict::Meshed => {
                    if let Some(message) = enrolment::unknown_capture(pod) {
                        notices.push(warning(&pod.uid, "UnknownAnnotation", message));
                    }
                    meshed.insert(pod.uid.as_str());
                    match self.0.get_mut(&pod.uid) {
                        Some(member) if member.pod == *pod => {}
                        Some(member) => {
                            differ = true;
                            member.pod = pod.clone();
                            // New addresses are a reason to look at once.
                            member.retry = None;
                        }
                        None => {
                            differ = true;
                            self.0.insert(pod.uid.clone(), Member::new(pod.clone()));
                        }
                    }
                }
            }
        }
        let before = self.0.len();
        self.0.retain(|uid, _| meshed.contains(uid.as_str()));
        (differ || self.0.len() != before, notices)
    }

    /// Each was looked for once, if it can be.
    pub(super) fn settled(&self) -> bool {
        self.0.values().all(|member| !member.is_looked_for() || member.failures > 0)
    }

    /// Whose namespaces are to be looked for now.
    pub(super) fn due(&self) -> Vec<Wanted> {
        let due =
            |member: &&Member| member.is_looked_for() && member.retry.is_none_or(|retry| retry.is_due());
        let wanted = |Member { pod, .. }: &Member| Wanted {
            uid: pod.uid.clone(),
            known_as: pod.known_as.clone(),
            addresses: pod.addresses.clone(),
        };
        self.0.values().filter(due).map(wanted).collect()
    }

    /// When the next look is due; `None` if all are found.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let looked_for = self.0.values().filter(|member| member.is_looked_for());
        looked_for.map(|member| member.retry.map_or_else(Instant::now, |retry| retry.due())).min()
    }

    /// Returns whether anything differs.
    pub(super) fn looked(
        &mut self,
        uid: &str,
        outcome: Result<Located, Error>,
        notices: &mut Vec<Notice>,
    ) -> bool {
        let Some(member) = self.0.get_mut(uid).filter(|member| member.is_looked_for()) else { return false };
        match outcome {
            Ok(located) => {
                if member.failures > QUIET {
                    let message = format!("its network namespace was found at {}", located.place);
                    notices.push(Notice { warning: false, ..warning(uid, "NamespaceFound", message) });
                }
                *member = Member { located: Some(located), ..Member::new(member.pod.clone()) };
                true
            }
            Err(error) => {
                member.retry = Some(Retry::after(member.retry));
                member.failures = member.failures.saturating_add(1);
                // Of a pod that is being deleted the processes go first.
                if member.failures >= QUIET && !member.pod.leaving {
                    let message = format!("its network namespace is not found, it is tried further: {error}");
                    notices.push(warning(uid, "NotCaptured", message));
                }
                let before = member.reason.replace(error.to_string());
                // The agent may go on once everything was looked for, and then hears what is not found, and why.
                member.failures == 1
                    || member.failures == QUIET
                    || member.failures > QUIET && before != member.reason
            }
        }
    }

    /// The plugin has told where a pod is. Returns whether the pod is a member.
    pub(super) fn place(&mut self, uid: &str, located: Located, container: String) -> bool {
        let Some(member) = self.0.get_mut(uid) else { return false };
        let is_same = member.is_proven()
            && member
                .located
                .as_ref()
                .is_some_and(|known| known.ident == located.ident && known.place == located.place);
        let located = if is_same { member.located.take() } else { Some(located) };
        let container = Some(container);
        *member = Member { located, container, ..Member::new(member.pod.clone()) };
        true
    }

    /// Lets go of the namespace of a sandbox that is no more; the pod stays a member.
    pub(super) fn sandbox_gone(&mut self, uid: &str, container: &str) -> bool {
        // One that was found otherwise may be another sandbox of the same pod; then it is found again.
        let named = |member: &&mut Member| member.container.as_deref().is_none_or(|known| known == container);
        match self.0.get_mut(uid).filter(named) {
            Some(member) if member.located.is_some() => {
                member.let_go();
                true
            }
            _ => false,
        }
    }

    /// Lets go of namespaces that are no more. Returns whether there were any.
    pub(super) fn look_after(&mut self) -> bool {
        let mut differ = false;
        for member in self.0.values_mut() {
            if member.located.as_ref().is_some_and(|located| !located.is_there()) {
                member.let_go();
                differ = true;
            }
        }
        differ
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.0.contains_key(uid)
    }

    /// Those whose namespace is known, and the others.
    pub(super) fn told(&self) -> (Vec<Pod>, Vec<Unlocated>) {
        let (mut pods, mut unlocated) = (Vec::with_capacity(self.0.len()), Vec::new());
        for (uid, Member { pod, located, failures, reason, .. }) in &self.0 {
            match located {
                Some(located) => pods.push(Pod {
                    uid: uid.clone(),
                    name: pod.name.clone(),
                    namespace: pod.namespace.clone(),
                    service_account: pod.service_account.clone(),
                    netns: located.place.clone(),
                    // And not as the API orders them now: a pod that only seems to have changed begins anew.
                    addresses: located.addresses.clone(),
                    strict: pod.strict,
                }),
                None => unlocated.push(Unlocated {
                    uid: uid.clone(),
                    name: pod.name.clone(),
                    namespace: pod.namespace.clone(),
                    addresses: pod.addresses.clone(),
                    strict: pod.strict,
                    // Of a pod that is being deleted the processes go first.
                    reason: reason.clone().filter(|_| *failures >= QUIET && !pod.leaving),
                }),
            }
        }
        (pods, unlocated)
    }
}

fn warning(uid: &str, reason: &'static str, message: String) -> Notice {
    Notice { uid: uid.to_owned(), warning: true, reason, message }
}
