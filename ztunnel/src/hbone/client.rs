//! The client role: a tunnel and the CONNECT requests in it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio_util::sync::CancellationToken;

use super::gather::gather;
use super::stream::Stream;
use super::{HANDSHAKE_DEADLINE, RESPONSE_DEADLINE, SEND_BUFFER, Settings, keepalive};
use crate::io::share::{Account, as_one_of};
use crate::tls;
use crate::tls::revocation::{self, Revoked};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("the HTTP/2 handshake took longer than {} s", HANDSHAKE_DEADLINE.as_secs())]
    HandshakeTimeout,
    #[error("HTTP/2: {0}")]
    Http2(Rc<h2::Error>),
    #[error("the peer offers no room for another stream")]
    NoRoom,
    #[error("no answer to the CONNECT within {} s", RESPONSE_DEADLINE.as_secs())]
    ResponseTimeout,
    #[error("http status: {0}")]
    Status(StatusCode),
    #[error("the peer's certificate is revoked: {0}")]
    Revoked(Revoked),
    #[error("cannot ask for \"{authority}\": {reason}")]
    Request { authority: String, reason: String },
}

impl Error {
    /// Whether it was the tunnel that took no more streams, and not the peer that refused this one.
    pub fn is_tunnel_gone(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    }

    /// Whether the stream was refused before the peer acted on it, so that asking elsewhere is safe (RFC 9113
    /// section 8.7).
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Http2(error) => {
                error.is_go_away() || error.is_io() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
            }
            Self::HandshakeTimeout | Self::NoRoom => true,
            Self::ResponseTimeout | Self::Status(_) | Self::Revoked(_) | Self::Request { .. } => false,
        }
    }
}

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        Self::Http2(Rc::new(error))
    }
}

/// An open tunnel. Streams hold it; HTTP/2 closes it, after flushing, when nobody does.
pub struct Tunnel {
    requests: SendRequest<Bytes>,
    load: Rc<Load>,
    valid_until: SystemTime,
}

/// How busy a tunnel is.
struct Load {
    /// Bytes in either direction.
    moved: Rc<Cell<u64>>,
    /// When that was looked at last, what it was, and whether it had been bulk.
    seen: Cell<(tokio::time::Instant, u64, bool)>,
    streams: Cell<usize>,
    closed: Cell<bool>,
    revoked: RefCell<Option<Revoked>>,
    idle_since: Cell<Option<tokio::time::Instant>>,
}

/// Bytes per second from which on a tunnel carries bulk: what small requests and answers do not come to.
const BULK: f64 = (32 << 20) as f64;
/// Over at least so long.
const WINDOW: Duration = Duration::from_millis(100);

/// What a CONNECT was answered with.
pub struct Connected {
    pub stream: Stream,
    pub hold: StreamHold,
}

/// Counts a stream of a tunnel for as long as it lives, and keeps the tunnel open.
pub struct StreamHold {
    tunnel: Rc<Tunnel>,
}

impl Tunnel {
    /// HTTP/2 over an established TLS stream. `stop` ends it at once.
    pub(super) async fn open(
        tls: tls::Stream,
        settings: &Settings,
        account: &Rc<Account>,
        stop: CancellationToken,
    ) -> Result<Rc<Self>, Error> {
        let valid_until = tls.valid_until();
        let tracked = tls.tracked().cloned();
        let (io, flusher) = gather(tls);
        let moved = io.moved();
        let handshake = h2::client::Builder::new()
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(settings.frame_size)
            .max_header_list_size(16 * 1024)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(settings.max_streams)
            .enable_push(false)
            .handshake(io);
        let (requests, mut connection) = tokio::time::timeout(HANDSHAKE_DEADLINE, flusher.around(handshake))
            .await
            .map_err(|_| Error::HandshakeTimeout)??;
        let load = Rc::new(Load {
            moved,
            seen: Cell::new((tokio::time::Instant::now(), 0, false)),
            streams: Cell::new(0),
            closed: Cell::new(false),
            revoked: RefCell::new(None),
            idle_since: Cell::new(None),
        });
        let ended = load.clone();
        let speak = async move {
            let pings = connection.ping_pong();
            let dead = async {
                match pings {
                    Some(pings) => keepalive::until_dead(pings).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = &mut connection => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "tunnel ended");
                    }
                }
                () = dead => tracing::warn!("the tunnel's peer no longer answers; closing it"),
                revoked = revocation::revoked(tracked.as_ref()) => {
                    tracing::warn!(error = %revoked, "the tunnel's peer is revoked; closing it");
                    // Said before the streams learn of the end.
                    *ended.revoked.borrow_mut() = Some(revoked);
                }
                () = stop.cancelled() => {}
            }
            ended.closed.set(true);
        };
        tokio::task::spawn_local(as_one_of(account, async move { flusher.around(speak).await }));
        Ok(Rc::new(Self { requests, load, valid_until }))
    }

    /// Whether another stream may be opened now: below our own bound and the peer's live one, and while both
    /// certificates are good, so that each new stream stands on an identity that was proved within its validity.
    pub(super) fn has_room(&self, max_streams: usize) -> bool {
        // After GOAWAY the tunnel lives on for its streams, and takes no other.
        let mut requests = self.requests.clone();
        if matches!(requests.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_))) {
            self.load.closed.set(true);
        }
        let limit = max_streams.min(self.requests.current_max_send_streams());
        !self.is_closed() && self.load.streams.get() < limit && self.is_valid()
    }

    /// A tunnel that is over in this sense still carries the streams that it has.
    pub(super) fn is_valid(&self) -> bool {
        SystemTime::now() <= self.valid_until
    }

    pub(super) fn is_closed(&self) -> bool {
        self.load.closed.get()
    }

    /// Whether a stream of it moves so much that another one would wait behind that: in one TCP connection bytes have one order.
    pub(super) fn is_bulk(&self) -> bool {
        let (since, before, bulk) = self.load.seen.get();
        let (now, moved) = (tokio::time::Instant::now(), self.load.moved.get());
        if now - since < WINDOW {
            return bulk;
        }
        let bulk = (moved - before) as f64 / (now - since).as_secs_f64() >= BULK;
        self.load.seen.set((now, moved, bulk));
        bulk
    }

    pub(super) fn streams(&self) -> usize {
        self.load.streams.get()
    }

    /// How long the tunnel has had no stream.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        self.load.idle_since.get().map(|since| since.elapsed())
    }

    /// Counts a stream in; room must have been asked for before, without waiting between.
    pub(super) fn hold(self: &Rc<Self>) -> StreamHold {
        self.load.streams.set(self.load.streams.get() + 1);
        self.load.idle_since.set(None);
        StreamHold { tunnel: self.clone() }
    }
}

impl StreamHold {
    #[cfg(test)]
    pub(super) fn moved(&self, bytes: u64) {
        self.tunnel.load.moved.set(self.tunnel.load.moved.get() + bytes);
    }

    #[cfg(test)]
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.tunnel, &other.tunnel)
    }

    #[cfg(test)]
    pub(super) fn is_valid(&self) -> bool {
        self.tunnel.is_valid()
    }

    /// Why the tunnel was closed under its streams, if it was for the peer's certificate.
    pub fn revoked(&self) -> Option<Revoked> {
        self.tunnel.load.revoked.borrow().clone()
    }

    /// Sends the CONNECT and waits for its answer.
    pub async fn connect(self, authority: &str, headers: HeaderMap) -> Result<Connected, Error> {
        let request = request(authority, headers)?;
        let exchange = async {
            let mut requests = self.tunnel.requests.clone().ready().await?;
            let (response, send) = requests.send_request(request, false)?;
            Ok::<_, h2::Error>((response.await?, send))
        };
        let answered = tokio::time::timeout(RESPONSE_DEADLINE, exchange).await;
        let (response, send) = match answered {
            Err(_) => return Err(Error::ResponseTimeout),
            Ok(Err(error)) => {
                if error.is_go_away() || error.is_io() {
                    self.tunnel.load.closed.set(true);
                }
                return Err(self.revoked().map_or_else(|| error.into(), Error::Revoked));
            }
            Ok(Ok(answer)) => answer,
        };
        if response.status() != StatusCode::OK {
            return Err(Error::Status(response.status()));
        }
        Ok(Connected { stream: Stream::new(response.into_body(), send), hold: self })
    }
}

impl Drop for StreamHold {
    fn drop(&mut self) {
        let load = &self.tunnel.load;
        load.streams.set(load.streams.get() - 1);
        if load.streams.get() == 0 {
            load.idle_since.set(Some(tokio::time::Instant::now()));
        }
    }
}

fn request(authority: &str, headers: HeaderMap) -> Result<Request<()>, Error> {
    let fail = |reason: String| Error::Request { authority: authority.to_owned(), reason };
    let uri = Uri::builder().authority(authority).build().map_err(|error| fail(error.to_string()))?;
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .body(())
        .map_err(|error| fail(error.to_string()))?;
    *request.headers_mut() = headers;
    Ok(request)
}
