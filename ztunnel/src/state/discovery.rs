//! The xDS feed: decodes the resources of an update, applies what is good, and names what is not. A resource that is
//! refused stays as it was before.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use xds_client::client::Sink;
use xds_client::{Decoded, Rejection, ResourceName, Update};
use ztunnel_model::codec::{self, Address, Interner};
use ztunnel_model::policy::Policy;

use super::{Batch, Changes, Origin, Writer};

/// Workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// Applies updates to the state and hands on what they changed. The first state is published when all of it is there.
pub struct Feed<F> {
    writer: Rc<RefCell<Writer>>,
    changed: F,
    synced: bool,
    interner: Interner,
}

impl<F: FnMut(Changes)> Feed<F> {
    /// The writer is shared with whoever else feeds on this thread.
    pub fn new(writer: Rc<RefCell<Writer>>, changed: F) -> Self {
        Self { writer, changed, synced: false, interner: Interner::default() }
    }
}

impl<F: FnMut(Changes)> Sink for Feed<F> {
    fn apply(&mut self, update: &mut Update) -> Vec<Rejection> {
        let (batch, rejected) = match update.type_url().as_str() {
            ADDRESS => addresses(update, &mut self.interner),
            AUTHORIZATION => policies(update),
            // Nobody subscribes to another.
            other => {
                tracing::warn!(type_url = other, "an update of an unknown type is not used");
                return Vec::new();
            }
        };
        let mut writer = self.writer.borrow_mut();
        let changes = match self.synced {
            true => writer.apply(Origin::Discovery, batch),
            false => writer.prepare(Origin::Discovery, batch),
        };
        drop(writer);
        (self.changed)(changes);
        rejected
    }

    fn synced(&mut self) {
        self.synced = true;
        let missing = self.writer.borrow_mut().publish();
        (self.changed)(Changes { missing, ..Changes::default() });
    }
}

fn addresses(update: &mut Update, interner: &mut Interner) -> (Batch, Vec<Rejection>) {
    let removed = removed(update);
    let (good, mut rejected) = update.decode(|_, body| Address::decode_sharing(body, interner));
    let addresses = named(good, &removed, &mut rejected, |address| match address {
        Address::Workload(workload) => workload.uid.to_string(),
        Address::Service(service) => service.key.to_string(),
    });
    (Batch { addresses, removed_addresses: removed.into_iter().collect(), ..Batch::default() }, rejected)
}

fn policies(update: &mut Update) -> (Batch, Vec<Rejection>) {
    let removed = removed(update);
    let (good, mut rejected) = update.decode(|_, body| codec::policy::decode(body));
    let policies = named(good, &removed, &mut rejected, |policy: &Policy| policy.key.to_string());
    (Batch { policies, removed_policies: removed.into_iter().collect(), ..Batch::default() }, rejected)
}

fn removed(update: &Update) -> HashSet<String> {
    update.removed().iter().map(|name| name.as_str().to_owned()).collect()
}

/// Those that are what their name says. Under another name the server could not take it back again. What the same
/// update removes is gone after it.
fn named<T>(
    good: Vec<Decoded<T>>,
    removed: &HashSet<String>,
    rejected: &mut Vec<Rejection>,
    key: impl Fn(&T) -> String,
) -> Vec<T> {
    let mut values = Vec::with_capacity(good.len());
    for Decoded { name, value } in good {
        let own = key(&value);
        if own != *name.as_str() {
            rejected.push(misnamed(name, &own));
        } else if !removed.contains(&own) {
            values.push(value);
        }
    }
    values
}

fn misnamed(name: ResourceName, own: &str) -> Rejection {
    Rejection::new(name, format!("the resource calls itself \"{own}\""))
}
