//! The model of a server, as strict as istiod: a key that it has subscribed already is not answered again, an answer
//! carries no subscription, and in one message unsubscribing comes last.

use super::*;
use prost_types::Any;

#[derive(Default)]
pub(super) struct Server {
    resources: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Name to version and whether the client cannot use it: the view that tests compare.
    view: BTreeMap<String, BTreeMap<String, (String, bool)>>,
    streams: Option<BTreeMap<String, Watch>>,
    /// Nonces sent on this stream, and whether each is to be refused (known once it was delivered).
    unanswered: VecDeque<(String, Option<bool>)>,
    count: u64,
    /// Usable resources sent.
    pub(super) sent_good: usize,
}

struct Entry {
    version: String,
    alias: String,
    bad: bool,
}

/// One type on one stream.
struct Watch {
    wildcard: bool,
    /// What the client asked for, and what was sent to it.
    keys: BTreeSet<String>,
    explicit: BTreeSet<String>,
    /// Asked since the last push: to be answered in any case.
    asked: BTreeSet<String>,
    /// What the client holds, as far as it said or was sent it.
    known: BTreeMap<String, String>,
    owes: bool,
    /// Nothing was said yet.
    first: bool,
}

pub(super) fn is_bad(resource: &proto::Resource) -> bool {
    resource.resource.as_ref().is_none_or(|body| body.value == b"bad")
}

impl Server {
    pub(super) fn connected(&mut self) {
        self.streams = Some(BTreeMap::new());
        self.unanswered.clear();
    }

    pub(super) fn disconnected(&mut self) {
        self.streams = None;
        self.unanswered.clear();
    }

    pub(super) fn put(&mut self, type_url: &str, name: &str, alias: &str, bad: bool) {
        self.count += 1;
        let version = self.count.to_string();
        self.view.entry(type_url.to_owned()).or_default().insert(name.to_owned(), (version.clone(), bad));
        let entry = Entry { version, alias: alias.to_owned(), bad };
        self.resources.entry(type_url.to_owned()).or_default().insert(name.to_owned(), entry);
    }

    pub(super) fn remove(&mut self, type_url: &str, name: &str) {
        self.view.entry(type_url.to_owned()).or_default().remove(name);
        self.resources.entry(type_url.to_owned()).or_default().remove(name);
    }

    pub(super) fn there(&self, type_url: &str) -> &BTreeMap<String, (String, bool)> {
        static NOTHING: BTreeMap<String, (String, bool)> = BTreeMap::new();
        self.view.get(type_url).unwrap_or(&NOTHING)
    }

    /// Whether a usable and whether an unusable resource has this name or alias.
    pub(super) fn knows(&self, type_url: &str, key: &str) -> (bool, bool) {
        let matching = || {
            let all = self.resources.get(type_url).into_iter().flatten();
            all.filter(|(name, entry)| *name == key || entry.alias == key).map(|(_, entry)| entry.bad)
        };
        (matching().any(|bad| !bad), matching().any(|bad| bad))
    }

    pub(super) fn any_bad(&self, type_url: &str) -> bool {
        self.there(type_url).values().any(|(_, bad)| *bad)
    }

    pub(super) fn all_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    pub(super) fn expect_answer(&mut self, nonce: &str, refused: bool) {
        let sent = self.unanswered.iter_mut().find(|(sent, _)| sent == nonce).expect("it was sent");
        sent.1 = Some(refused);
    }

    pub(super) fn read(&mut self, request: DeltaDiscoveryRequest) {
        let streams = self.streams.as_mut().expect("a stream");
        let subscribe: BTreeSet<_> = request.resource_names_subscribe.into_iter().collect();
        let Some(watch) = streams.get_mut(&request.type_url) else {
            assert!(request.node.is_some() && request.response_nonce.is_empty());
            let wildcard = subscribe.is_empty();
            let gone: BTreeSet<_> = request.resource_names_unsubscribe.into_iter().collect();
            let known: BTreeMap<_, _> = request.initial_resource_versions.into_iter().collect();
            let keys: BTreeSet<_> = subscribe.difference(&gone).cloned().collect();
            assert!(wildcard || known.keys().all(|name| keys.contains(name)), "what is held stays wanted");
            // What is held is not to be answered; whether it changed is found out when pushing.
            let held = |key: &String| known.contains_key(key);
            let asked = keys.iter().filter(|key| !held(key)).cloned().collect();
            let watch =
                Watch { wildcard, explicit: keys.clone(), keys, asked, known, owes: true, first: true };
            streams.insert(request.type_url, watch);
            return;
        };
        assert!(request.node.is_none() && request.initial_resource_versions.is_empty());
        if subscribe.is_empty() && request.resource_names_unsubscribe.is_empty() {
            let (nonce, refused) = self.unanswered.pop_front().expect("an answer to something");
            assert_eq!((request.response_nonce, Some(request.error_detail.is_some())), (nonce, refused));
            return;
        }
        assert!(request.response_nonce.is_empty() && !watch.wildcard);
        for key in subscribe {
            assert!(watch.explicit.insert(key.clone()), "{key} is subscribed and would not be answered");
            watch.keys.insert(key.clone());
            watch.asked.insert(key);
        }
        for key in request.resource_names_unsubscribe {
            watch.explicit.remove(&key);
            watch.keys.remove(&key);
            watch.asked.remove(&key);
            watch.known.remove(&key);
        }
        watch.owes = true;
    }

    /// What the client does not know yet, if there is anything to say.
    pub(super) fn push(&mut self, type_url: &str) -> Option<DeltaDiscoveryResponse> {
        let watch = self.streams.as_mut()?.get_mut(type_url)?;
        let there = self.resources.entry(type_url.to_owned()).or_default();
        let mut response = DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..Default::default() };
        for (name, entry) in there.iter() {
            let wanted = watch.wildcard || watch.keys.contains(name) || watch.keys.contains(&entry.alias);
            let known = watch.known.get(name) == Some(&entry.version);
            // What is asked for later is sent even if it went out before: it may have been refused.
            let asked = watch.asked.contains(name) || watch.asked.contains(&entry.alias);
            if !wanted || (known && (watch.first || !asked)) {
                continue;
            }
            watch.known.insert(name.clone(), entry.version.clone());
            watch.keys.insert(name.clone());
            self.sent_good += usize::from(!entry.bad);
            let value = if entry.bad { b"bad".to_vec() } else { Vec::new() };
            response.resources.push(proto::Resource {
                name: name.clone(),
                version: entry.version.clone(),
                aliases: vec![entry.alias.clone()],
                resource: Some(Any { type_url: type_url.to_owned(), value }),
                ..Default::default()
            });
        }
        let exists =
            |key: &String| there.contains_key(key) || there.values().any(|entry| entry.alias == *key);
        let gone: Vec<_> = watch.known.keys().filter(|name| !there.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| drop(watch.known.remove(name)));
        let nothing = watch.asked.iter().filter(|key| !exists(key)).cloned();
        response.removed_resources =
            gone.into_iter().chain(nothing).collect::<BTreeSet<_>>().into_iter().collect();
        watch.asked.clear();
        watch.first = false;
        let owed = std::mem::take(&mut watch.owes);
        if response.resources.is_empty() && response.removed_resources.is_empty() && !owed {
            return None;
        }
        self.count += 1;
        response.nonce = format!("n{}", self.count);
        self.unanswered.push_back((response.nonce.clone(), None));
        Some(response)
    }
}
