//! Connections that were used once and then do nothing.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use ztunnel_lab::namespace::Namespace;

use super::{bounded, runtime};

/// Opened so many at a time.
const AT_ONCE: usize = 32;

/// Holds `count` connections to an echo while `work` runs.
pub fn hold<T>(from: &Namespace, to: SocketAddr, count: usize, work: impl FnOnce() -> T) -> io::Result<T> {
    let (opened, open) = std::sync::mpsc::channel();
    let (release, released) = oneshot::channel::<()>();
    let from = from.clone();
    let holder = std::thread::spawn(move || {
        from.run(move || {
            runtime()?.block_on(async move {
                let held = connections(to, count).await;
                let outcome = held.as_ref().map(drop).map_err(|error| io::Error::other(error.to_string()));
                let told = opened.send(outcome);
                if told.is_ok() {
                    // An error is the same as an end.
                    let _ = released.await;
                }
                held.map(drop)
            })
        })
    });
    let gone = || io::Error::other("the holder of the connections is gone");
    let outcome = open.recv().map_err(|_| gone()).and_then(|opened| opened);
    let done = outcome.map(|()| work());
    drop(release);
    let ended = holder.join().map_err(|_| gone())?;
    done.and_then(|done| ended.map(|()| done))
}

async fn connections(to: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE.min(count - held.len()) {
            opening.spawn(bounded(async move {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(b"x").await?;
                stream.read_exact(&mut [0]).await?;
                Ok(stream)
            }));
        }
        while let Some(opened) = opening.join_next().await {
            held.push(opened.map_err(io::Error::other)??);
        }
    }
    Ok(held)
}
