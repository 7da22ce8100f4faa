//! SPIFFE identities as the mesh uses them (interop.md section 2.1: `spiffe://TD/ns/NS/sa/SA`, exactly five pieces).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One workload identity. Always parsed or built from its three parts, never empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Parts {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a SPIFFE identity: {reason} (expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT)"
)]
pub struct Error {
    text: String,
    reason: &'static str,
}

impl Identity {
    /// Builds an identity from its parts; each must be non-empty and free of `/`.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, Error> {
        for (part, reason) in [
            (trust_domain, "the trust domain is empty or holds a '/'"),
            (namespace, "the namespace is empty or holds a '/'"),
            (service_account, "the service account is empty or holds a '/'"),
        ] {
            if part.is_empty() || part.contains('/') {
                let text = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}");
                return Err(Error { text, reason });
            }
        }
        Ok(Self(Arc::new(Parts {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })))
    }

    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }

    pub(crate) fn parts(&self) -> Arc<Parts> {
        self.0.clone()
    }

    /// The principal that policies match: the identity without `spiffe://` (interop.md section 9.3).
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }
}

impl Parts {
    pub(crate) fn as_tuple(&self) -> (&str, &str, &str) {
        (&self.trust_domain, &self.namespace, &self.service_account)
    }
}

impl From<Arc<Parts>> for Identity {
    fn from(parts: Arc<Parts>) -> Self {
        Self(parts)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |reason| Error { text: text.to_owned(), reason };
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| fail("it does not start with spiffe://"))?;
        let pieces: Vec<&str> = rest.split('/').collect();
        match pieces[..] {
            [trust_domain, "ns", namespace, "sa", service_account] => {
                Self::new(trust_domain, namespace, service_account).map_err(|error| fail(error.reason))
            }
            _ => Err(fail("it does not have exactly these five pieces")),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identities that a peer may have: at least one, sorted, without repetition, so that equal sets are equal keys. Nearly all
/// hold one, which takes no allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentitySet {
    first: Identity,
    others: Option<Arc<[Identity]>>,
}

impl IdentitySet {
    /// The set of one identity.
    pub fn one(identity: Identity) -> Self {
        Self { first: identity, others: None }
    }

    /// `None` when there is no identity: an empty set can never verify anybody.
    #[expect(clippy::should_implement_trait, reason = "the trait cannot say that there may be no set")]
    pub fn from_iter(identities: impl IntoIterator<Item = Identity>) -> Option<Self> {
        let mut list: Vec<Identity> = identities.into_iter().collect();
        list.sort();
        list.dedup();
        let mut list = list.into_iter();
        let (first, others) = (list.next()?, list.as_slice());
        Some(Self { others: (!others.is_empty()).then(|| others.into()), first })
    }

    pub fn contains(&self, identity: &Identity) -> bool {
        self.iter().any(|known| known == identity)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        std::iter::once(&self.first).chain(self.others.iter().flat_map(|others| others.iter()))
    }
}

impl fmt::Display for IdentitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, identity) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            fmt::Display::fmt(identity, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_exactly_the_five_pieces() {
        let identity: Identity =
            "spiffe://cluster.local/ns/shop/sa/cart".parse().expect("a well-formed identity");
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/cart");
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        for bad in [
            "",
            "cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa",
            "spiffe://cluster.local/ns/shop/sa/cart/x",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe://cluster.local/sa/cart/ns/shop",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad} must be refused");
        }
    }

    #[test]
    fn sets_are_never_empty_and_compare_by_content() {
        assert!(IdentitySet::from_iter([]).is_none());
        let a = Identity::new("td", "a", "a").expect("parts are valid");
        let b = Identity::new("td", "b", "b").expect("parts are valid");
        assert_eq!(IdentitySet::from_iter([a.clone(), b.clone()]), IdentitySet::from_iter([b, a.clone(), a]));
    }
}
