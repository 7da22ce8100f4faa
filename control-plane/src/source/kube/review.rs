//! Who shows a token, by the API server's TokenReview: the node on which a proxy runs.
//!
//! Any pod can have a token of its own service account for our audience, and says nothing of the node's other pods with it.
//! So a token is a node's only if its service account is one of those that proxies run as; which node that is, the API
//! server says: in the token's own claim, or, where it is older than that, by the pod to which the token is bound.
//!
//! Answers are held to for a short time, the bad ones too, by the hash of the token: a proxy asks for a certificate for
//! each of its identities. Who shows a token that is being asked about waits for that answer. When too many wait, the
//! next is told so at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::call::{Api, Resource, Trouble};
use crate::ca::authenticate::{Authenticate, Proven, Refused};
use crate::object::Name;

const REVIEWS: Resource = Resource::new("authentication.k8s.io", "tokenreviews");
const PODS: Resource = Resource::new("", "pods");

/// Of the whole, waiting included.
const DEADLINE: Duration = Duration::from_secs(5);
/// A token that was revoked, or whose pod was deleted, is no longer good after so long.
const GOOD: Duration = Duration::from_secs(30);
const BAD: Duration = Duration::from_secs(5);
/// While the API server is away, each token is asked about so often and not once for each call.
const UNKNOWN: Duration = Duration::from_secs(1);
/// How many tokens are held to.
const REMEMBERED: usize = 4096;
/// How many reviews are asked for at a time, and how many calls may wait for one.
const AT_A_TIME: usize = 16;
const WAITING: usize = 512;
/// No token is so long.
const LONGEST: usize = 16 * 1024;
/// Clocks of a cluster differ a little; what is over for longer need not be asked about.
const SKEW: Duration = Duration::from_secs(60);

/// In seconds of the epoch: no clock gets there, and no sum of times overflows.
const FAR_FUTURE: u64 = 1 << 40;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server whose a token is.
pub struct Reviewer {
    api: Api,
    audience: String,
    /// The service accounts that proxies run as.
    accounts: Vec<Name>,
    remembered: Lock<HashMap<[u8; 32], Slot>>,
    reviews: Semaphore,
    waiting: Semaphore,
}

/// What is known of a token; locked while it is asked about.
type Slot = Arc<Mutex<Option<Known>>>;

struct Known {
    until: Instant,
    answer: Result<Proven, Refused>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: HashMap<String, Vec<String>>,
}

impl User {
    fn extra(&self, key: &str) -> Option<&str> {
        match self.extra.get(key).map(Vec::as_slice) {
            Some([one]) if !one.is_empty() => Some(one),
            _ => None,
        }
    }
}

impl Reviewer {
    /// `accounts` are those that proxies run as.
    pub fn new(api: Api, audience: String, accounts: Vec<Name>) -> Self {
        let (reviews, waiting) = (Semaphore::new(AT_A_TIME), Semaphore::new(WAITING));
        Self { api, audience, accounts, remembered: Lock::default(), reviews, waiting }
    }

    /// The answer of before, or a new one.
    async fn look_up(&self, token: &str, expires: Option<SystemTime>) -> Result<Proven, Refused> {
        let slot = self.slot(token)?;
        let mut known = slot.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.until > Instant::now()) {
            return known.answer.clone();
        }
        let _place = self.reviews.acquire().await.expect("invariant: it is never closed");
        let answer = self.review(token).await.map(|node| Proven { node, expires });
        let long = match &answer {
            Ok(_) => GOOD,
            Err(Refused::Unavailable { reason }) => {
                tracing::warn!(%reason, "a token cannot be checked");
                UNKNOWN
            }
            Err(_) => BAD,
        };
        *known = Some(Known { until: Instant::now() + long, answer: answer.clone() });
        answer
    }

    async fn review(&self, token: &str) -> Result<String, Refused> {
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self.audience]},
        });
        let mut review = self.api.create(REVIEWS, "", &asked).await.map_err(unavailable)?;
        let unreadable = |what: String| Refused::Unavailable { reason: format!("TokenReview: {what}") };
        let status = review["status"].take();
        if !status.is_object() {
            return Err(unreadable("its status is no object".to_owned()));
        }
        let status = Status::deserialize(status).map_err(|error| unreadable(error.to_string()))?;
        if !status.authenticated {
            let error: String = status.error.chars().take(300).collect();
            tracing::warn!(?error, audience = self.audience, "the API server does not know a token");
            return Err(Refused::Unknown);
        }
        // An API server that does not know of audiences names none.
        if !status.audiences.contains(&self.audience) {
            return Err(Refused::Unknown);
        }
        let account = status.user.username.strip_prefix("system:serviceaccount:");
        let account = account.and_then(|rest| rest.split_once(':'));
        let trusted = account.and_then(|(namespace, name)| {
            self.accounts.iter().find(|one| *one.namespace == *namespace && *one.name == *name)
        });
        let Some(account) = trusted else {
            let account = status.user.username.chars().take(300).collect();
            return Err(Refused::NoProxy { account });
        };
        match status.user.extra(NODE_NAME) {
            Some(node) => Ok(node.to_owned()),
            None => self.node_of(account, &status.user).await,
        }
    }

    /// The node of the pod to which the token is bound.
    async fn node_of(&self, account: &Name, user: &User) -> Result<String, Refused> {
        let (Some(name), Some(uid)) = (user.extra(POD_NAME), user.extra(POD_UID)) else {
            tracing::warn!(%account, "a token is bound to no pod; proxies need a projected token");
            return Err(Refused::Unknown);
        };
        let pod = self.api.get(PODS, &Name::new(&*account.namespace, name)).await;
        let pod = match pod {
            Err(Trouble::Absent(_)) => return Err(Refused::Unknown),
            pod => pod.map_err(unavailable)?,
        };
        let same = pod["metadata"]["uid"] == uid && pod["spec"]["serviceAccountName"] == *account.name;
        let node = pod["spec"]["nodeName"].as_str().filter(|node| same && !node.is_empty());
        node.map(str::to_owned).ok_or(Refused::Unknown)
    }

    fn slot(&self, token: &str) -> Result<Slot, Refused> {
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let hash = *hash.as_ref().first_chunk().expect("invariant: SHA-256 gives 32 bytes");
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = remembered.get(&hash) {
            return Ok(Arc::clone(slot));
        }
        if remembered.len() >= REMEMBERED {
            make_room(&mut remembered);
        }
        if remembered.len() >= REMEMBERED {
            return Err(Refused::Unavailable { reason: "too many different tokens are shown".to_owned() });
        }
        Ok(Arc::clone(remembered.entry(hash).or_default()))
    }
}

#[tonic::async_trait]
impl Authenticate for Reviewer {
    async fn node(&self, token: &str) -> Result<Proven, Refused> {
        if token.is_empty() || token.len() > LONGEST {
            return Err(Refused::Unknown);
        }
        let expires = expiry(token);
        let over = expires.and_then(|end| SystemTime::now().duration_since(end + SKEW).ok());
        if let Some(ago) = over {
            return Err(Refused::Expired { node: None, ago_s: (ago + SKEW).as_secs() });
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(Refused::Unavailable { reason: format!("{WAITING} calls wait for the API server") });
        };
        let late = |_| Refused::Unavailable { reason: format!("no answer within {DEADLINE:?}") };
        timeout(DEADLINE, self.look_up(token, expires)).await.map_err(late)?
    }
}

/// What is over goes; if that is not enough, of a flood of tokens only the good ones stay.
fn make_room(remembered: &mut HashMap<[u8; 32], Slot>) {
    let now = Instant::now();
    let keep = |slot: &Slot, worth: fn(&Known, Instant) -> bool| match slot.try_lock() {
        Ok(known) => Arc::strong_count(slot) > 1 || known.as_ref().is_some_and(|known| worth(known, now)),
        // It is being asked about.
        Err(_) => true,
    };
    remembered.retain(|_, slot| keep(slot, |known, now| known.until > now));
    if remembered.len() >= REMEMBERED {
        remembered.retain(|_, slot| keep(slot, |known, _| known.answer.is_ok()));
    }
}

fn unavailable(trouble: Trouble) -> Refused {
    Refused::Unavailable { reason: trouble.to_string() }
}

/// When a token says that it is over. Whether it says so rightly, the API server knows.
fn expiry(token: &str) -> Option<SystemTime> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let seconds = claims["exp"].as_u64().filter(|seconds| *seconds < FAR_FUTURE)?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
