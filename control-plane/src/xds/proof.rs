//! What a caller has shown, and for how long it counts: a stream is open for weeks, a token is good for hours.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::server::{Authenticate, Caller};
use crate::ca::authenticate::{self, Proven, bearer};

/// Clocks of a cluster differ a little, and a proxy fetches its next token before the last one ends.
const GRACE: Duration = Duration::from_secs(60);
/// While a token cannot be checked.
const PAUSE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(10);

/// The token with which a stream was opened.
#[derive(Clone)]
pub struct Proof {
    token: Zeroizing<String>,
    expires: Option<SystemTime>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Whoever knows whose a token is lets the bearer in.
#[tonic::async_trait]
impl<T: authenticate::Authenticate + 'static> Authenticate for T {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let missing = || Status::unauthenticated("the call carries no bearer token");
        let token = bearer(metadata).ok_or_else(missing)?;
        let Proven { node, expires } = self.node(token).await?;
        let name: Arc<str> = node.into();
        let proof = Proof { token: Zeroizing::new(token.to_owned()), expires };
        Ok(Caller { node: Some(Arc::clone(&name)), name, proof: Some(proof) })
    }

    async fn check(&self, caller: &Caller) -> Result<(), Status> {
        let Some(proof) = &caller.proof else { return Ok(()) };
        let proven = self.node(&proof.token).await?;
        match &caller.node {
            Some(node) if proven.node == **node => Ok(()),
            _ => Err(Status::unauthenticated(format!("the token is now {}'s", proven.node))),
        }
    }
}

/// Ends when what the caller has shown counts no more, and says why. Not being able to check it is no reason.
pub(super) async fn lost(authenticate: Arc<dyn Authenticate>, caller: Caller, every: Duration) -> Status {
    let Some(proof) = &caller.proof else { return std::future::pending().await };
    // Not all streams at once, although they may have come at once.
    let spread = |pause: Duration| pause.mul_f64(rand::random_range(0.8..=1.0));
    let mut pause = spread(every);
    loop {
        let left =
            proof.expires.map(|end| (end + GRACE).duration_since(SystemTime::now()).unwrap_or_default());
        sleep(left.map_or(pause, |left| left.min(pause))).await;
        if proof.expires.is_some_and(|end| end + GRACE <= SystemTime::now()) {
            return Status::unauthenticated(
                "the token with which the stream was opened is over; come with a new one",
            );
        }
        let checked = timeout(DEADLINE, authenticate.check(&caller)).await;
        pause = spread(match checked {
            Ok(Ok(())) => every,
            Ok(Err(status)) if status.code() != Code::Unavailable => return status,
            _ => every.min(PAUSE),
        });
    }
}
