//! One agent to a node, and no moment without one: a new agent asks the one that serves to make way.
//!
//! ```text
//! old                                   new
//! serving ◀── Succeed, by the socket ── starts, finds the socket taken
//! begins anew, standing by              takes the locks, serves; proxies connect here and hand their listeners back
//! serving again once the new one ends   …
//! ```
//!
//! Rules stay in every pod meanwhile, and the proxies hold the listeners. The old agent lets go of everything by beginning anew
//! as a process: no task or descriptor of it is left. It stands by for as long as the new one lives, so that a new version
//! that does not live long costs nothing.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, sleep, timeout};

use crate::broker::wire::Connection;
use crate::broker::wire::proto::{self, to_agent};

/// In the environment of an agent that was succeeded.
pub const STANDBY: &str = "REDIRECT_STANDBY";

/// For the other agent to make way.
const WAY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// Between looks whether the successor has ended.
const STAND: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("lock of {path}: {source}", path = .path.display())]
    Lock { path: std::path::PathBuf, source: io::Error },
    #[error("the agent that serves {path} does not make way within {WAY:?}: {reason}; end it first", path = .path.display())]
    Stays { path: std::path::PathBuf, reason: String },
}

/// Waits until no other agent serves the socket; one that does is asked to make way.
pub async fn take_over(socket: &Path) -> Result<(), Error> {
    if is_free(socket)? {
        return Ok(());
    }
    tracing::info!(socket = %socket.display(), "another agent serves; it is asked to make way");
    let until = Instant::now() + WAY;
    let mut reason = "it holds the lock".to_owned();
    while Instant::now() < until {
        // It may have ended, or not listen yet.
        match timeout(WAY, ask(socket)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => break,
        }
        if is_free(socket)? {
            return Ok(());
        }
        sleep(LOOK).await;
    }
    Err(Error::Stays { path: socket.to_owned(), reason })
}

/// Waits for the end of the successor.
pub async fn stand_by(socket: &Path) -> Result<(), Error> {
    tracing::info!(socket = %socket.display(), "another agent has taken over; standing by");
    loop {
        // The successor takes the lock in the meantime.
        sleep(STAND.mul_f64(rand::rng().random_range(0.8..1.2))).await;
        if is_free(socket)? {
            return Ok(());
        }
    }
}

fn is_free(socket: &Path) -> Result<bool, Error> {
    let fail = |source| Error::Lock { path: socket.to_owned(), source };
    let lock = File::create(socket.with_extension("lock")).map_err(fail)?;
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(fail(source)),
    }
}

/// Says it, and waits for the end of the conversation.
async fn ask(socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let stream = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    stream.set_nonblocking(true)?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let connection = Connection::new(stream.into())?;
    let message = to_agent::Message::Succeed(proto::Succeed {});
    connection.send(&proto::ToAgent { message: Some(message) }, &[]).await?;
    while connection.receive::<proto::ToProxy>().await?.is_some() {}
    Ok(())
}
