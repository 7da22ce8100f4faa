//! Bytes between the application and the far side, whatever the far side is: half-close, reset, counts, flow control.
//!
//! Two directions run independently; each ends by itself with a FIN that is carried on, and the relay ends when both
//! did. A reset on one side becomes a reset on the other (interop.md section 2.7 folds it into a clean end; a peer
//! that does so still reads ours as an end). Nothing is buffered while a direction is idle: the next read happens
//! only after the far side took the last bytes, and credit is given back only after the application did.
//!
//! Must not know HTTP/2 or TLS: the far side is whatever implements `Receive` and `Transmit`.

mod connection;
mod splice;
pub mod tcp;
pub mod uring;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::io::buffer::Read;
pub use connection::Connection;

/// Why a direction ended early.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection was reset from outside: RST or RST_STREAM. An ordinary way to end.
    #[error("reset by {0}")]
    Reset(Side),
    #[error("{side}: {source}")]
    Io { side: Side, source: io::Error },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Application,
    Far,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Application => "the application",
            Self::Far => "the peer",
        })
    }
}

/// Writing to a connection that the other end closed is answered by RST (RFC 9293 section 3.10.7.1), which shows up
/// as EPIPE or ECONNRESET.
fn broken(error: io::Error, side: Side) -> Broken {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Broken::Reset(side)
        }
        _ => Broken::Io { side, source: error },
    }
}

/// Where bytes come from.
pub trait Receive {
    /// The next bytes; `None` is a clean end. They may be offered to where they go first, so that they need not be kept for a
    /// `transmit`.
    fn receive(&mut self, to: &impl Transmit) -> impl Future<Output = Result<Option<Read>, Broken>>;

    /// The other side took this many bytes: credit for them may be given back.
    fn taken(&mut self, count: usize);
}

/// Where bytes go.
pub trait Transmit {
    /// Takes what it can without waiting and without keeping it. What goes wrong shows in the next `transmit`.
    fn offer(&self, bytes: &[u8]) -> usize;

    /// What the kernel can move bytes into by itself, and which side it is.
    fn socket(&self) -> Option<(&TcpStream, Side)> {
        None
    }

    /// Returns once the bytes are on their way; the next are not read before.
    fn transmit(&self, bytes: Bytes) -> impl Future<Output = Result<(), Broken>>;

    /// Ends the direction cleanly: FIN or END_STREAM.
    fn finish(&self) -> impl Future<Output = Result<(), Broken>>;

    /// Resolves when this side was reset. For while nothing is sent to it and nothing more is read from it.
    fn reset(&self) -> impl Future<Output = Broken>;

    /// Ends the connection abruptly: RST or RST_STREAM.
    fn abort(&self);
}

/// Relays until both directions ended or one broke. `on_up` and `on_down` count bytes from and to the application
/// after they were handed on.
pub fn relay<AR, AT, FR, FT>(
    app: (AR, AT),
    far: (FR, FT),
    on_up: impl Fn(usize),
    on_down: impl Fn(usize),
) -> impl Future<Output = Result<(), Broken>>
where
    AR: Receive,
    AT: Transmit,
    FR: Receive,
    FT: Transmit,
{
    let (mut app_receive, app_transmit) = app;
    let (mut far_receive, far_transmit) = far;
    // Not an async fn, nor is `carry`: that keeps its arguments twice, for as long as the connection lives.
    async move {
        let (app_ended, far_ended) = (Ended::default(), Ended::default());
        let result = futures::future::try_join(
            carry(&mut app_receive, &far_transmit, &on_up, (&app_ended, &far_ended)),
            carry(&mut far_receive, &app_transmit, &on_down, (&far_ended, &app_ended)),
        )
        .await;
        match result {
            Ok(((), ())) => Ok(()),
            Err(broken) => {
                app_transmit.abort();
                far_transmit.abort();
                match broken {
                    Broken::Reset(_) => Ok(()),
                    Broken::Io { .. } => Err(broken),
                }
            }
        }
    }
}

/// Whether a side said that it sends nothing more. The other direction alone waits for it.
#[derive(Default)]
struct Ended {
    said: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl Ended {
    fn say(&self) {
        self.said.set(true);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.said.get() {
            return Poll::Ready(());
        }
        let known = self.waiting.take().filter(|known| known.will_wake(context.waker()));
        self.waiting.set(Some(known.unwrap_or_else(|| context.waker().clone())));
        Poll::Pending
    }
}

/// `ended` is about the two sides, `from` first. Who has ended is no longer read, so that its reset would go
/// unseen for as long as the other is silent; it is watched for instead.
fn carry<R: Receive, T: Transmit>(
    from: &mut R,
    to: &T,
    count: &impl Fn(usize),
    ended: (&Ended, &Ended),
) -> impl Future<Output = Result<(), Broken>> {
    let (from_ended, to_ended) = ended;
    async move {
        loop {
            // Not named: what is kept while something is awaited, each connection has memory for.
            let Some(Read { taken, rest }) = (tokio::select! {
                biased;
                received = from.receive(to) => received?,
                // Boxed: few connections have a side that ended long before the other, and the others need no memory for it.
                broken = async { poll_fn(|context| to_ended.poll(context)).await; Box::pin(to.reset()).await } => return Err(broken),
            }) else {
                break;
            };
            let length = taken + rest.len();
            to.transmit(rest).await?;
            from.taken(length);
            count(length);
        }
        from_ended.say();
        to.finish().await
    }
}

#[cfg(test)]
mod tests;
