//! What to tell one ztunnel next. Pure: no socket.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Entry, Roster, Workload};
use crate::retry::Retry;

/// What one ztunnel was told since it connected.
#[derive(Debug, Default)]
pub(super) struct Plan {
    told: BTreeMap<String, Told>,
    snapshot_sent: bool,
}

#[derive(Debug)]
struct Told {
    /// `None` for a pod that it was asked to keep.
    workload: Option<Arc<Workload>>,
    /// Set while its last answer was a refusal.
    refused: Option<Retry>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Add(String, Arc<Workload>),
    Keep(String),
    Del(String),
    SnapshotSent,
    /// For a change, at most until something refused is due.
    Wait(Option<Instant>),
}

impl Plan {
    /// `newest`: whether no other ztunnel connected later. The snapshot is told in any case.
    pub(super) fn next(&self, roster: &Roster, newest: bool) -> Step {
        let adds = newest || !self.snapshot_sent;
        let stale = |(uid, told): (&String, &Told)| match (roster.get(uid), &told.workload) {
            (None, _) => true,
            (Some(Entry::Captured(now)), Some(known)) => now != known && !(adds && moved(now, known)),
            _ => false,
        };
        if let Some((uid, _)) = self.told.iter().find(|&(uid, told)| stale((uid, told))) {
            return Step::Del(uid.clone());
        }
        if adds {
            let first = roster.iter().find_map(|(uid, entry)| self.offer(uid, entry, |told| told.is_none()));
            let again = || {
                let due = |told: Option<&Told>| told.is_some_and(Told::is_due);
                roster.iter().find_map(|(uid, entry)| self.offer(uid, entry, due))
            };
            if let Some(step) = first.or_else(again) {
                return step;
            }
        }
        if !self.snapshot_sent {
            return Step::SnapshotSent;
        }
        let due = |told: &Told| told.refused.map(|retry| retry.due());
        Step::Wait(self.told.values().filter_map(due).min().filter(|_| adds))
    }

    fn offer(&self, uid: &str, entry: &Entry, wanted: impl Fn(Option<&Told>) -> bool) -> Option<Step> {
        let told = self.told.get(uid);
        match entry {
            Entry::Captured(now) => {
                // A pod that was kept, or is in another namespace now, is as good as new.
                let news = told.is_some_and(|told| told.workload.as_ref() != Some(now));
                (news || wanted(told)).then(|| Step::Add(uid.to_owned(), now.clone()))
            }
            Entry::Pending => (told.is_none() && !self.snapshot_sent).then(|| Step::Keep(uid.to_owned())),
        }
    }

    pub(super) fn added(&mut self, uid: String, workload: Arc<Workload>) {
        self.told.insert(uid, Told { workload: Some(workload), refused: None });
    }

    /// The pause until the next attempt doubles with each refusal of the same pod.
    pub(super) fn refused(&mut self, uid: String, workload: Arc<Workload>) -> Retry {
        let before = self.told.get(&uid).and_then(|told| told.refused);
        let retry = Retry::after(before);
        self.told.insert(uid, Told { workload: Some(workload), refused: Some(retry) });
        retry
    }

    pub(super) fn kept(&mut self, uid: String) {
        self.told.insert(uid, Told { workload: None, refused: None });
    }

    pub(super) fn deleted(&mut self, uid: &str) {
        self.told.remove(uid);
    }

    pub(super) fn snapshot_sent(&mut self) {
        self.snapshot_sent = true;
    }
}

impl Told {
    fn is_due(&self) -> bool {
        self.refused.is_some_and(|retry| retry.is_due())
    }
}

/// The same pod in another namespace; a ztunnel takes that by Add alone, but nothing else that changes.
fn moved(now: &Workload, known: &Workload) -> bool {
    now.ident != known.ident
        && (&now.name, &now.namespace, &now.service_account)
            == (&known.name, &known.namespace, &known.service_account)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::netns::Ident;

    fn workload(account: &str, inode: u64) -> Arc<Workload> {
        Arc::new(Workload {
            name: "p".into(),
            namespace: "n".into(),
            service_account: account.into(),
            netns: PathBuf::from("/x").into(),
            ident: Ident { device: 4, inode },
        })
    }

    fn roster(entries: &[(&str, Entry)]) -> Roster {
        entries.iter().map(|(uid, entry)| ((*uid).to_owned(), entry.clone())).collect()
    }

    fn captured(account: &str, inode: u64) -> Entry {
        Entry::Captured(workload(account, inode))
    }

    #[test]
    fn a_snapshot_names_each_pod_then_ends() {
        let mut plan = Plan::default();
        let roster = roster(&[("a", captured("s", 1)), ("b", Entry::Pending)]);
        assert_eq!(plan.next(&roster, true), Step::Add("a".into(), workload("s", 1)));
        plan.refused("a".into(), workload("s", 1));
        assert_eq!(plan.next(&roster, true), Step::Keep("b".into()), "a refusal holds nothing up");
        plan.kept("b".into());
        assert_eq!(plan.next(&roster, false), Step::SnapshotSent);
        plan.snapshot_sent();
        assert!(matches!(plan.next(&roster, true), Step::Wait(Some(_))));
        assert_eq!(plan.next(&roster, false), Step::Wait(None), "it is another's turn to be offered it");
    }

    #[test]
    fn only_the_newest_hears_of_new_pods_and_all_of_those_that_left() {
        let mut plan = Plan::default();
        plan.added("a".into(), workload("s", 1));
        plan.snapshot_sent();
        let both = roster(&[("a", captured("s", 1)), ("b", captured("s", 2))]);
        assert_eq!(plan.next(&both, false), Step::Wait(None));
        assert_eq!(plan.next(&both, true), Step::Add("b".into(), workload("s", 2)));
        assert_eq!(plan.next(&roster(&[]), false), Step::Del("a".into()));
        let pending = roster(&[("a", Entry::Pending)]);
        assert_eq!(
            plan.next(&pending, true),
            Step::Wait(None),
            "a pod that is not captured now is still wanted"
        );
    }

    #[test]
    fn a_pod_that_moves_is_added_and_one_that_changes_is_new() {
        let mut plan = Plan::default();
        plan.added("a".into(), workload("s", 1));
        plan.snapshot_sent();
        let moved = roster(&[("a", captured("s", 2))]);
        assert_eq!(plan.next(&moved, true), Step::Add("a".into(), workload("s", 2)));
        assert_eq!(
            plan.next(&moved, false),
            Step::Del("a".into()),
            "its namespace is gone for the old one too"
        );
        assert_eq!(plan.next(&roster(&[("a", captured("t", 1))]), true), Step::Del("a".into()));
        plan.kept("a".into());
        assert_eq!(plan.next(&moved, true), Step::Add("a".into(), workload("s", 2)));
    }

    #[test]
    fn what_is_refused_waits_longer_each_time_and_behind_what_is_new() {
        let mut plan = Plan::default();
        plan.snapshot_sent();
        let one = roster(&[("a", captured("s", 1))]);
        let mut last = Duration::ZERO;
        for round in 0..4 {
            let retry = plan.refused("a".into(), workload("s", 1));
            let wait = retry.wait();
            assert!(wait > last, "round {round}: {wait:?} after {last:?}");
            last = wait;
            assert_eq!(plan.next(&one, true), Step::Wait(Some(retry.due())));
        }
        plan.told.get_mut("a").expect("it was told").refused = Some(Retry::now());
        assert_eq!(plan.next(&one, true), Step::Add("a".into(), workload("s", 1)));
        let two = roster(&[("a", captured("s", 1)), ("b", captured("s", 2))]);
        assert_eq!(plan.next(&two, true), Step::Add("b".into(), workload("s", 2)));
        plan.added("a".into(), workload("s", 1));
        assert_eq!(plan.next(&one, true), Step::Wait(None));
    }
}
