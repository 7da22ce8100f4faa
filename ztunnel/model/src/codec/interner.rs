//! One copy of what many resources say: a decoder that is given an `Interner` makes records that share their texts,
//! identities, localities, gateways and service memberships.
//!
//! It forgets what no record uses any more: a pool is swept when it has doubled since the last sweep, so it never holds
//! more than twice what is in use (and a little), and sweeping costs a constant for each value that was added.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::proto::workload::PortList;
use crate::address::Network;
use crate::identity::{self, Identity};
use crate::service::GatewayAddress;
use crate::text::Text;
use crate::workload::{Locality, Memberships};

#[derive(Default)]
pub struct Interner {
    hasher: DefaultHashBuilder,
    texts: Pool<str>,
    identities: Pool<identity::Parts>,
    localities: Pool<Locality>,
    gateways: Pool<GatewayAddress>,
    names: Pool<[Text]>,
    memberships: Pool<Memberships>,
}

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Text {
        if text.is_empty() {
            return Text::default();
        }
        self.texts.get(self.hasher.hash_one(text), |held| held == text, || text.into()).into()
    }

    pub(super) fn network(&mut self, name: &str) -> Network {
        Network::from(self.text(name))
    }

    pub(super) fn identity(
        &mut self,
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Identity, identity::Error> {
        let parts = (trust_domain, namespace, service_account);
        let hash = self.hasher.hash_one(parts);
        if let Some(held) = self.identities.find(hash, |held| held.as_tuple() == parts) {
            return Ok(Identity::from(held));
        }
        let identity = Identity::new(trust_domain, namespace, service_account)?;
        self.identities.add(hash, identity.parts());
        Ok(identity)
    }

    pub(super) fn locality(&mut self, region: &str, zone: &str, subzone: &str) -> Arc<Locality> {
        let locality =
            Locality { region: self.text(region), zone: self.text(zone), subzone: self.text(subzone) };
        let hash = self.hasher.hash_one(&locality);
        if let Some(held) = self.localities.find(hash, |held| *held == locality) {
            return held;
        }
        let made = Arc::new(locality);
        self.localities.add(hash, made.clone());
        made
    }

    pub(super) fn gateway(&mut self, gateway: GatewayAddress) -> Arc<GatewayAddress> {
        let hash = self.hasher.hash_one(&gateway);
        if let Some(held) = self.gateways.find(hash, |held| *held == gateway) {
            return held;
        }
        let made = Arc::new(gateway);
        self.gateways.add(hash, made.clone());
        made
    }

    pub(super) fn names(&mut self, names: &[String]) -> Arc<[Text]> {
        if names.is_empty() {
            return Arc::default();
        }
        let names: Vec<Text> = names.iter().map(|name| self.text(name)).collect();
        self.names.get(self.hasher.hash_one(&names[..]), |held| *held == names[..], || names[..].into())
    }

    /// Makes memberships only if these are not held: they are what a workload says most words for, and what most
    /// workloads say as their neighbours do.
    pub(super) fn memberships<E>(
        &mut self,
        message: &BTreeMap<String, PortList>,
        make: impl FnOnce() -> Result<Memberships, E>,
    ) -> Result<Arc<Memberships>, E> {
        // The order of a map means nothing, so neither must the order of its hash.
        let entry = |(name, list): (&String, &PortList)| {
            let ports = list.ports.iter().map(|port| (port.service_port, port.target_port));
            ports.fold(self.hasher.hash_one(name), |hash, port| self.hasher.hash_one((hash, port)))
        };
        let hash = message.iter().map(entry).fold(0, u64::wrapping_add);
        if let Some(held) = self.memberships.find(hash, |held| says(held, message)) {
            return Ok(held);
        }
        let made = Arc::new(make()?);
        self.memberships.add(hash, made.clone());
        Ok(made)
    }
}

/// Whether memberships are what a message says, word for word.
fn says(held: &Memberships, message: &BTreeMap<String, PortList>) -> bool {
    let same = |(name, list): (&String, &PortList)| {
        let Some((namespace, hostname)) = name.split_once('/') else { return false };
        let ports = list.ports.iter().map(|port| (port.service_port, port.target_port));
        let known = held.iter().find(|(key, _)| key.hostname == hostname && key.namespace == namespace);
        known.is_some_and(|(_, held)| {
            held.iter().map(|port| (port.service_port.into(), port.target_port.into())).eq(ports)
        })
    };
    held.len() == message.len() && message.iter().all(same)
}

struct Pool<T: ?Sized> {
    held: HashTable<(u64, Arc<T>)>,
    sweep_at: usize,
}

/// A pool this small is not worth a sweep.
const SMALL: usize = 1024;

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashTable::new(), sweep_at: SMALL }
    }
}

impl<T: ?Sized> Pool<T> {
    fn find(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.held.find(hash, |(_, held)| is(held)).map(|(_, held)| held.clone())
    }

    fn add(&mut self, hash: u64, value: Arc<T>) {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|(_, held)| Arc::strong_count(held) > 1);
            self.held.shrink_to_fit(|(hash, _)| *hash);
            self.sweep_at = SMALL.max(2 * self.held.len());
        }
        self.held.insert_unique(hash, (hash, value), |(hash, _)| *hash);
    }

    fn get(&mut self, hash: u64, is: impl Fn(&T) -> bool, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        self.find(hash, is).unwrap_or_else(|| {
            let value = make();
            self.add(hash, value.clone());
            value
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut interner = Interner::default();
        let (a, b) = (interner.text("shop"), interner.text("shop"));
        assert_eq!(a.as_ptr(), b.as_ptr());
        let one = interner.identity("td", "shop", "cart").expect("valid parts");
        let two = interner.identity("td", "shop", "cart").expect("valid parts");
        assert!(Arc::ptr_eq(&one.parts(), &two.parts()));
        assert!(interner.identity("td", "", "cart").is_err());
        let names = ["a/b".to_owned()];
        assert!(Arc::ptr_eq(&interner.names(&names), &interner.names(&names)));
        assert!(Arc::ptr_eq(&interner.locality("r", "z", ""), &interner.locality("r", "z", "")));
        assert!(!Arc::ptr_eq(&interner.locality("r", "z", ""), &interner.locality("r", "", "z")));
    }

    #[test]
    fn memberships_are_one_only_when_every_word_is() {
        let mut interner = Interner::default();
        let mut read = |names: &[(&str, u32)]| {
            let list = |target_port| PortList {
                ports: vec![crate::codec::proto::workload::Port {
                    service_port: 80,
                    target_port,
                    ..Default::default()
                }],
            };
            let message = names.iter().map(|(name, port)| ((*name).to_owned(), list(*port))).collect();
            let make = || super::super::workload::services(&message);
            interner.memberships(&message, make).expect("valid memberships")
        };
        let first = read(&[("n/a", 1), ("n/b", 2)]);
        assert!(Arc::ptr_eq(&first, &read(&[("n/b", 2), ("n/a", 1)])));
        for other in [&[("n/a", 2), ("n/b", 1)][..], &[("n/a", 1)], &[("n/a", 1), ("m/b", 2)], &[]] {
            let other = read(other);
            assert!(!Arc::ptr_eq(&first, &other) && first != other);
        }
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let mut interner = Interner::default();
        let used: Vec<Text> = (0..100).map(|index| interner.text(&format!("used-{index}"))).collect();
        for index in 0..100_000 {
            interner.text(&format!("passing-{index}"));
        }
        assert!(interner.texts.held.len() <= 2 * SMALL, "{} texts are held", interner.texts.held.len());
        assert_eq!(interner.text("used-7").as_ptr(), used[7].as_ptr(), "what is in use stays");
    }
}
