//! What xDS talks about: types, names, versions, resources and the changes of one response. Bodies are opaque bytes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::proto;

/// The type of a resource, such as `type.googleapis.com/istio.workload.Address`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeUrl(Arc<str>);

/// Names one response on one stream; its answer carries it back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nonce(Box<str>);

/// The name of a resource, or an alias of one, or the key of a demand: they share one space.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName(Box<str>);

/// What the server calls one state of a resource. Equal versions that came together share one allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

/// One resource that was added or changed.
#[derive(Debug)]
pub struct Resource {
    pub(crate) name: ResourceName,
    pub(crate) version: Version,
    pub(crate) aliases: Box<[ResourceName]>,
    pub(crate) body: Vec<u8>,
}

/// The changes of one response. They take effect in this order: what was added or changed, then what was removed.
#[derive(Debug)]
pub struct Update {
    pub(crate) type_url: TypeUrl,
    pub(crate) changed: Vec<Resource>,
    pub(crate) removed: Vec<ResourceName>,
}

/// One resource, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    pub name: ResourceName,
    pub value: T,
}

/// A resource that was not applied, and why, in words for the server's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub name: ResourceName,
    pub reason: String,
}

impl Resource {
    pub fn name(&self) -> &ResourceName {
        &self.name
    }

    pub fn version(&self) -> &Version {
        &self.version
    }

    pub fn aliases(&self) -> &[ResourceName] {
        &self.aliases
    }

    /// The encoded message; empty once taken.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }
}

impl Update {
    pub fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    pub fn changed(&self) -> &[Resource] {
        &self.changed
    }

    /// For a consumer that takes the bodies out one by one.
    pub fn changed_mut(&mut self) -> impl Iterator<Item = &mut Resource> {
        self.changed.iter_mut()
    }

    /// Names, and for an on-demand type also keys under which the server knows nothing.
    pub fn removed(&self) -> &[ResourceName] {
        &self.removed
    }

    /// Takes the bodies out and decodes each: the good ones, and a rejection for every other. A body is freed as soon as
    /// it is decoded.
    pub fn decode<T, E: fmt::Display>(
        &mut self,
        mut decode: impl FnMut(&ResourceName, &[u8]) -> Result<T, E>,
    ) -> (Vec<Decoded<T>>, Vec<Rejection>) {
        let mut good = Vec::with_capacity(self.changed.len());
        let mut bad = Vec::new();
        for resource in &mut self.changed {
            let body = resource.take_body();
            match decode(&resource.name, &body) {
                Ok(value) => good.push(Decoded { name: resource.name.clone(), value }),
                Err(error) => bad.push(Rejection::new(resource.name.clone(), error)),
            }
        }
        (good, bad)
    }
}

impl Rejection {
    pub fn new(name: impl Into<ResourceName>, reason: impl fmt::Display) -> Self {
        Self { name: name.into(), reason: reason.to_string() }
    }
}

/// The resources that can be handed on, and a rejection for each that cannot: one without a name, without a body, or
/// whose body is of another type than the response (the peer does not look; a body of another type would decode into
/// nonsense, as protobuf mostly accepts it).
pub(crate) fn sort_out(type_url: &TypeUrl, sent: Vec<proto::Resource>) -> (Vec<Resource>, Vec<Rejection>) {
    let mut versions = SharedVersions::default();
    let mut good = Vec::with_capacity(sent.len());
    let mut bad = Vec::new();
    for (index, resource) in sent.into_iter().enumerate() {
        if resource.name.is_empty() {
            bad.push(Rejection::new(format!("<resource {index}>"), "the resource has no name"));
            continue;
        }
        let name = ResourceName::from(resource.name);
        match resource.resource {
            None => bad.push(Rejection::new(name, "the resource has no body")),
            Some(body) if body.type_url != type_url.as_str() => {
                let reason =
                    format!("the body is a \"{}\" in a response of type \"{type_url}\"", body.type_url);
                bad.push(Rejection::new(name, reason));
            }
            Some(body) => good.push(Resource {
                version: versions.share(&resource.version),
                aliases: resource.aliases.into_iter().map(ResourceName::from).collect(),
                body: body.value,
                name,
            }),
        }
    }
    (good, bad)
}

/// Neighbouring resources mostly carry the version of the push that they came with.
#[derive(Default)]
struct SharedVersions(Option<Version>);

impl SharedVersions {
    fn share(&mut self, text: &str) -> Version {
        match &self.0 {
            Some(last) if last.as_str() == text => last.clone(),
            _ => self.0.insert(Version(text.into())).clone(),
        }
    }
}

impl TypeUrl {
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }
}

macro_rules! text {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }
    };
}

text!(TypeUrl);
text!(Nonce);
text!(ResourceName);
text!(Version);

macro_rules! debug_as_text {
    ($($name:ident)*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        })*
    };
}

debug_as_text!(TypeUrl ResourceName Version);

impl Borrow<str> for ResourceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn sent(name: &str, type_url: Option<&str>) -> proto::Resource {
        proto::Resource {
            name: name.to_owned(),
            version: "7".to_owned(),
            resource: type_url.map(|url| Any { type_url: url.to_owned(), value: vec![1] }),
            ..Default::default()
        }
    }

    #[test]
    fn what_cannot_be_handed_on_is_named() {
        let mine = TypeUrl::new("type/mine");
        let (good, bad) = sort_out(
            &mine,
            vec![sent("a", Some("type/mine")), sent("b", None), sent("c", Some("type/else")), sent("", None)],
        );
        assert_eq!(good.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a"]);
        let bad: Vec<_> = bad.iter().map(|it| format!("{}: {}", it.name, it.reason)).collect();
        assert_eq!(
            bad,
            [
                "b: the resource has no body",
                "c: the body is a \"type/else\" in a response of type \"type/mine\"",
                "<resource 3>: the resource has no name",
            ]
        );
    }

    #[test]
    fn equal_versions_share_one_allocation() {
        let mine = TypeUrl::new("t");
        let (good, _) = sort_out(&mine, vec![sent("a", Some("t")), sent("b", Some("t"))]);
        assert!(Arc::ptr_eq(&good[0].version.0, &good[1].version.0));
    }

    #[test]
    fn decoding_sorts_good_from_bad() {
        let mine = TypeUrl::new("t");
        let (changed, _) = sort_out(&mine, vec![sent("a", Some("t")), sent("b", Some("t"))]);
        let mut update = Update { type_url: mine, changed, removed: Vec::new() };
        let (good, bad) =
            update.decode(|name, body| if name == "b" { Err("it is a b") } else { Ok(body.len()) });
        assert_eq!(good, [Decoded { name: "a".into(), value: 1 }]);
        assert_eq!(bad, [Rejection::new("b", "it is a b")]);
        assert!(update.changed()[0].body().is_empty(), "the bytes are freed");
    }
}
