//! A TCP connection whose bytes move by operations of this thread's ring.

use std::cell::OnceCell;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop;

use super::group::{self, Group};
use super::large::Large;
use super::operation::{self, Operation};
use crate::io::buffer::Read;
use crate::io::turn;

/// Closed when it is dropped and nothing is in flight any more; what is, is cancelled then.
pub struct Socket(Rc<TcpStream>);

impl Socket {
    /// Takes it out of epoll, which would wake the worker a second time for everything that arrives.
    pub fn new(stream: tokio::net::TcpStream) -> io::Result<Self> {
        stream.into_std().map(|stream| Self(Rc::new(stream)))
    }

    /// For its options.
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if Rc::strong_count(&self.0) > 1 && super::is_running() {
            operation::cancel_all(self.0.clone());
        }
    }
}

/// What reads from a socket; one at a time. Between two calls of `poll_receive`, what is in flight stays there.
#[derive(Default)]
pub struct Receiver {
    pending: Option<Pending>,
    /// The last piece was as large as they come.
    bulk: bool,
}

enum Pending {
    Small(Operation<(Rc<TcpStream>, Rc<Group>)>),
    Large(Operation<(Rc<TcpStream>, Large)>),
}

impl Receiver {
    /// What the socket has; nothing at all means the end of the stream. `offer` may take as much of it as it likes.
    pub fn poll_receive(
        &mut self,
        socket: &Socket,
        context: &mut Context<'_>,
        offer: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<Read>> {
        let budget = ready!(coop::poll_proceed(context));
        loop {
            let (count, read) = match self.pending.as_mut() {
                None => {
                    self.pending = Some(begin(socket, self.bulk)?);
                    continue;
                }
                Some(Pending::Small(receiving)) => {
                    let (completion, (_, group)) = ready!(Pin::new(receiving).poll(context));
                    self.pending = None;
                    let count = match again(completion.result) {
                        Ok(Some(count)) => count,
                        failed => {
                            completion.buffer.into_iter().for_each(|id| group.give_back(id));
                            failed?;
                            continue;
                        }
                    };
                    // Little may be all that there is; a full buffer hardly ever is.
                    self.bulk = count == group::SIZE;
                    let read = |bytes: &[u8]| Read::copied(bytes, offer);
                    let Some(id) = completion.buffer else { return Poll::Ready(Ok(read(&[]))) };
                    let read = group.read(id, count, read);
                    group.give_back(id);
                    (count, read)
                }
                Some(Pending::Large(receiving)) => {
                    let (completion, (_, large)) = ready!(Pin::new(receiving).poll(context));
                    self.pending = None;
                    let Some(count) = again(completion.result)? else { continue };
                    self.bulk = count > group::SIZE;
                    (count, large.received(count, offer))
                }
            };
            budget.made_progress();
            turn::spend(count);
            return Poll::Ready(Ok(read));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(Pending::Small(receiving)) = self.pending.take() {
            group::abandon(receiving);
        }
    }
}

fn begin(socket: &Socket, bulk: bool) -> io::Result<Pending> {
    let stream = socket.0.clone();
    if bulk && let Some(large) = Large::take() {
        return Ok(Pending::Large(operation::receive_large(stream, large)));
    }
    let group = group::current().ok_or_else(|| io::Error::other("the ring of this worker has ended"))?;
    Ok(Pending::Small(operation::receive_small(stream, group)))
}

/// None when it is to be tried again: all small buffers were in use, and are not by the time the ring comes to the next try.
fn again(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => Ok(None),
        result => result.map(Some),
    }
}

/// Returns once the socket took all of it.
pub async fn send(socket: &Socket, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let (completion, (_, rest)) = operation::send(socket.0.clone(), bytes).await;
        bytes = rest;
        match again(completion.result)? {
            Some(0) => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes.advance(count.unwrap_or(0)),
        }
    }
    Ok(())
}

/// Watches for an error of a socket that is not read from, by epoll: a poll of the ring tells of the end of the stream whether or not
/// it was asked to, and there has been one already.
#[derive(Default)]
pub struct Errors(OnceCell<AsyncFd<Rc<TcpStream>>>);

impl Errors {
    pub async fn wait(&self, socket: &Socket) -> io::Result<()> {
        let watched = match self.0.get() {
            Some(watched) => watched,
            None => {
                let watched = watch(socket.0.clone())?;
                self.0.get_or_init(|| watched)
            }
        };
        watched.ready(Interest::ERROR).await.map(drop)
    }
}

#[expect(unsafe_code, reason = "the interface asks for a promise about the descriptor")]
fn watch(stream: Rc<TcpStream>) -> io::Result<AsyncFd<Rc<TcpStream>>> {
    // SAFETY: it owns the stream, which has one descriptor from its beginning to its end and closes it then.
    Ok(unsafe { AsyncFd::register_with_interest(stream, Interest::ERROR) }?)
}
