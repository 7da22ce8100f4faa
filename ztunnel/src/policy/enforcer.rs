//! The register of live inbound connections of one pod on one worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::sync::Notify;
use ztunnel_model::Workload;
use ztunnel_model::policy::{Connection, Decision, decide, dry_run};

use super::authorized::AuthorizedConnection;
use crate::state::{Reader, Snapshot};
use crate::telemetry::events;
use crate::tls::verify::Peer;

/// What a decision is made from.
#[derive(Clone, Debug)]
pub struct Facts {
    pub peer: Peer,
    pub source: SocketAddr,
    /// The application's address and real port.
    pub destination: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("{0}")]
    Policy(Decision),
    #[error("policy {0} applies to this workload but is not known yet")]
    MissingPolicy(String),
}

/// Finds the pod's own record in a snapshot.
pub type OwnWorkload = Box<dyn Fn(&Snapshot) -> Option<Arc<Workload>>>;

pub struct Enforcer {
    reader: Reader,
    own_workload: OwnWorkload,
    at_info: bool,
    live: RefCell<HashMap<u64, Rc<Live>>>,
    next: Cell<u64>,
    /// What the last re-check of all was made with.
    checked: RefCell<Option<(u64, Option<Arc<Workload>>)>>,
}

/// A registered connection; leaves the register when dropped.
pub(super) struct Registered {
    pub(super) live: Rc<Live>,
    key: u64,
    enforcer: Weak<Enforcer>,
}

pub(super) struct Live {
    pub(super) facts: Facts,
    workload: RefCell<Arc<Workload>>,
    pub(super) revoked: Notify,
    pub(super) denied: RefCell<Option<Denied>>,
}

impl Enforcer {
    /// `at_info` lifts the log of decisions from debug to info (AUTHZ_POLICY_INFO_LOGGING).
    pub fn new(reader: Reader, own_workload: OwnWorkload, at_info: bool) -> Rc<Self> {
        Rc::new(Self {
            reader,
            own_workload,
            at_info,
            live: RefCell::default(),
            next: Cell::new(0),
            checked: RefCell::default(),
        })
    }

    /// Registers, then decides with a snapshot read after that: no change can slip between the two.
    pub fn authorize(
        self: &Rc<Self>,
        facts: Facts,
        workload: Arc<Workload>,
    ) -> Result<AuthorizedConnection, Denied> {
        let registered = self.register(facts, workload);
        let snapshot = self.reader.snapshot();
        if let Some(workload) = (self.own_workload)(&snapshot) {
            *registered.live.workload.borrow_mut() = workload;
        }
        let workload = registered.live.workload.borrow().clone();
        let known = |(generation, own): &(u64, Option<Arc<Workload>>)| {
            *generation == snapshot.policy_generation()
                && own.as_ref().is_some_and(|own| Arc::ptr_eq(own, &workload))
        };
        // Else a state that comes back to what was checked last would pass over this connection.
        if !self.checked.borrow().as_ref().is_some_and(known) {
            self.checked.replace(None);
        }
        let decision = judge(&snapshot, &workload, &registered.live.facts);
        self.log(&snapshot, &workload, &registered.live.facts, &decision);
        decision.map(|_| AuthorizedConnection::new(registered))
    }

    /// Follows the state for ever: each publication re-decides every live connection.
    pub async fn watch(self: Rc<Self>) {
        let mut reader = self.reader.clone();
        while reader.changed().await {
            self.recheck(&reader.snapshot());
        }
    }

    fn recheck(&self, snapshot: &Snapshot) {
        let own = (self.own_workload)(snapshot);
        // Most publications are about other workloads: the same record and the same policies decide alike. `authorize`
        // forgets what was checked when it decides by anything else.
        let with = Some((snapshot.policy_generation(), own.clone()));
        if self.checked.replace(with.clone()) == with {
            return;
        }
        for live in self.live.borrow().values() {
            if let Some(workload) = &own {
                *live.workload.borrow_mut() = workload.clone();
            }
            let decision = judge(snapshot, &live.workload.borrow(), &live.facts);
            if let Err(denied) = decision {
                live.denied.replace(Some(denied));
                live.revoked.notify_one();
            }
        }
    }

    fn register(self: &Rc<Self>, facts: Facts, workload: Arc<Workload>) -> Registered {
        let key = self.next.replace(self.next.get() + 1);
        let live = Rc::new(Live {
            facts,
            workload: RefCell::new(workload),
            revoked: Notify::new(),
            denied: RefCell::new(None),
        });
        self.live.borrow_mut().insert(key, live.clone());
        Registered { live, key, enforcer: Rc::downgrade(self) }
    }

    fn log(
        &self,
        snapshot: &Snapshot,
        workload: &Workload,
        facts: &Facts,
        decision: &Result<Decision, Denied>,
    ) {
        let level_off = !self.at_info && !tracing::enabled!(tracing::Level::DEBUG);
        if level_off {
            return;
        }
        let (src, dst, identity) = (facts.source, facts.destination, facts.peer.identity());
        for outcome in dry_run(snapshot.policies_for(workload), &facts.connection()) {
            events::DryRun { src, dst, identity, outcome: &outcome }.emit(self.at_info);
        }
        let decision: &dyn fmt::Display = match decision {
            Ok(decision) => decision,
            Err(denied) => denied,
        };
        events::PolicyDecision { src, dst, identity, decision }.emit(self.at_info);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(enforcer) = self.enforcer.upgrade() {
            enforcer.live.borrow_mut().remove(&self.key);
        }
    }
}

impl Facts {
    fn connection(&self) -> Connection<'_> {
        Connection { identity: self.peer.identity(), source: self.source, destination: self.destination }
    }
}

fn judge(snapshot: &Snapshot, workload: &Workload, facts: &Facts) -> Result<Decision, Denied> {
    if let Some(name) = snapshot.missing_policy(workload) {
        return Err(Denied::MissingPolicy(name.to_owned()));
    }
    let decision = decide(snapshot.policies_for(workload), &facts.connection());
    if decision.is_allowed() { Ok(decision) } else { Err(Denied::Policy(decision)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::tls::verify::Unproven;
    use futures::FutureExt;
    use ztunnel_model::codec::static_config::{StaticConfig, parse};

    fn mesh(policies: &str, named: &str) -> StaticConfig {
        let text = format!(
            "workloads:
- {{uid: w, name: w, namespace: shop, workloadIps: [10.0.0.2], services: {{}}, authorizationPolicies: [{named}]}}
policies: {policies}
"
        );
        parse(&text, "test.yaml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    const DENY_ALL: &str = "
- {name: strict, namespace: shop, scope: WorkloadSelector, action: Deny, dryRun: false, rules: [[[{notPrincipals: [{Presence: []}]}]]]}";

    fn enforcer() -> (state::Writer, Rc<Enforcer>) {
        let (mut writer, reader) = state::new();
        writer.replace_static(&mesh("[]", ""));
        let own: OwnWorkload = Box::new(|snapshot| snapshot.workload(&"w".into()).cloned());
        (writer, Enforcer::new(reader, own, false))
    }

    fn authorize(enforcer: &Rc<Enforcer>) -> Result<AuthorizedConnection, Denied> {
        let facts = Facts {
            peer: Peer::Plaintext(Unproven::OutsideTunnel),
            source: "10.0.0.1:1000".parse().expect("an address"),
            destination: "10.0.0.2:80".parse().expect("an address"),
        };
        let workload = enforcer.reader.snapshot().workload(&"w".into()).expect("the workload").clone();
        enforcer.authorize(facts, workload)
    }

    #[tokio::test]
    async fn a_policy_that_is_newly_attached_revokes_a_live_connection() {
        let (mut writer, enforcer) = enforcer();
        let connection = authorize(&enforcer).expect("nothing denies it");
        writer.replace_static(&mesh(DENY_ALL, "shop/strict"));
        enforcer.recheck(&enforcer.reader.snapshot());
        let revoked = connection.revoked().now_or_never();
        assert!(matches!(revoked, Some(Denied::Policy(Decision::DeniedBy(_)))));
        drop(connection);
        assert!(enforcer.live.borrow().is_empty(), "a connection that ended leaves the register");
    }

    #[tokio::test]
    async fn a_state_that_comes_back_is_checked_against_who_came_in_between() {
        let (mut writer, enforcer) = enforcer();
        writer.replace_static(&mesh(DENY_ALL, "shop/strict"));
        enforcer.recheck(&enforcer.reader.snapshot());
        writer.replace_static(&mesh(DENY_ALL, ""));
        let connection = authorize(&enforcer).expect("the policy is not attached");
        writer.replace_static(&mesh(DENY_ALL, "shop/strict"));
        enforcer.recheck(&enforcer.reader.snapshot());
        assert!(matches!(connection.revoked().now_or_never(), Some(Denied::Policy(_))));
    }

    #[tokio::test]
    async fn a_named_policy_that_has_not_arrived_refuses() {
        let (mut writer, enforcer) = enforcer();
        writer.replace_static(&mesh("[]", "shop/strict"));
        assert!(
            matches!(authorize(&enforcer).err(), Some(Denied::MissingPolicy(name)) if name == "shop/strict")
        );
        writer.replace_static(&mesh(DENY_ALL, ""));
        assert!(authorize(&enforcer).is_ok(), "a selector policy that is not attached does not apply");
    }
}
