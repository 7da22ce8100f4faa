//! The server role: CONNECT requests that arrive in a tunnel.

use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::gather::{Gathering, gather};
use super::stream::Stream;
use super::{HANDSHAKE_DEADLINE, SEND_BUFFER, Settings, keepalive};
use crate::tls;
use crate::tls::revocation::{self, Revoked, Tracked};
use ztunnel_model::Authority;

/// Streams that a peer may have open in one tunnel.
const MOST_STREAMS: u32 = 200;
/// How long a peer may take to heed the GOAWAY that says that a certificate is over.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long the GOAWAY to a revoked peer may take to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the HTTP/2 handshake took longer than {} s", HANDSHAKE_DEADLINE.as_secs())]
    HandshakeTimeout,
    #[error("no HTTP/2 spoken: {0}")]
    Handshake(h2::Error),
    #[error("HTTP/2: {0}")]
    Connection(h2::Error),
    #[error("the peer's certificate is revoked: {0}")]
    Revoked(Revoked),
}

/// One request, not yet answered.
pub struct Incoming {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

/// What ends a tunnel, from outside and from within.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    pub drain: CancellationToken,
    pub stop: CancellationToken,
    /// Cancelled by the tunnel itself.
    pub revoked: CancellationToken,
}

/// Serves a tunnel until it ends; each request goes to `handle` in a task of its own. `drain` announces the end
/// (GOAWAY) and lets streams finish, and so does the end of either certificate: whoever wants another stream proves
/// again who it is. `stop` ends everything at once. When a CRL names the peer, `revoked` is cancelled for the streams, and
/// the tunnel is closed as soon as GOAWAY is written.
pub async fn serve<H, F>(
    tls: tls::Stream,
    settings: &Settings,
    signals: Signals,
    handle: H,
) -> Result<(), Error>
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + 'static,
{
    let (valid_until, tracked) = (tls.valid_until(), tls.tracked().cloned());
    let (io, flusher) = gather(tls);
    flusher.around(speak(io, (valid_until, tracked), settings, signals, handle)).await
}

async fn speak<H, F>(
    io: Gathering,
    (valid_until, tracked): (SystemTime, Option<Tracked>),
    settings: &Settings,
    Signals { drain, stop, revoked }: Signals,
    handle: H,
) -> Result<(), Error>
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + 'static,
{
    let valid_for = valid_until.duration_since(SystemTime::now()).unwrap_or_default();
    let handshake = h2::server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.frame_size)
        .max_header_list_size(64 * 1024)
        .max_concurrent_streams(MOST_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io);
    let mut connection = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake)
        .await
        .map_err(|_| Error::HandshakeTimeout)?
        .map_err(Error::Handshake)?;
    let pings = connection.ping_pong();
    let dead = async {
        match pings {
            Some(pings) => keepalive::until_dead(pings).await,
            None => std::future::pending().await,
        }
    };
    let over = tokio::time::sleep(valid_for);
    let condemned = revocation::revoked(tracked.as_ref());
    tokio::pin!(dead, over, condemned);
    let (mut draining, mut given_up) = (false, false);
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((_, mut respond))) if SystemTime::now() > valid_until + GOODBYE => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Some(Ok((request, respond))) => {
                    tokio::task::spawn_local(handle(Incoming { request, respond }));
                }
                Some(Err(error)) => return ended(error),
                None => return Ok(()),
            },
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut over, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut dead, if !given_up => {
                given_up = true;
                tracing::warn!("the tunnel's peer no longer answers; closing it");
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            found = &mut condemned => {
                revoked.cancel();
                connection.abrupt_shutdown(Reason::NO_ERROR);
                // What still arrives is read by nobody; only the GOAWAY and the streams' resets are waited for.
                let flushed = async { while let Some(Ok(_)) = connection.accept().await {} };
                let _ = tokio::time::timeout(LAST_WORDS, flushed).await;
                return Err(Error::Revoked(found));
            }
            () = stop.cancelled() => return Ok(()),
        }
    }
}

impl Incoming {
    pub fn method(&self) -> &Method {
        self.request.method()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// The authority as text, for logs.
    pub fn authority_text(&self) -> &str {
        self.request.uri().authority().map_or("", http::uri::Authority::as_str)
    }

    /// Where the request wants to go; `None` when the authority is missing or unusable.
    pub fn authority(&self) -> Option<Authority> {
        self.authority_text().parse().ok()
    }

    /// Answers with an error status and nothing else.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if let Err(error) = self.respond.send_response(response, true) {
            tracing::debug!(%error, "the refusal could not be sent");
        }
    }

    /// Answers 200: the application is connected.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Stream, h2::Error> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let transmit = self.respond.send_response(response, false)?;
        Ok(Stream::new(self.request.into_body(), transmit))
    }

    /// Resolves when the peer gives the stream up before it is answered.
    pub async fn abandoned(&mut self) {
        let _ = std::future::poll_fn(|context| self.respond.poll_reset(context)).await;
    }
}

/// A peer that just goes away is no error.
fn ended(error: h2::Error) -> Result<(), Error> {
    let quiet = error.is_io() || (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR));
    if quiet { Ok(()) } else { Err(Error::Connection(error)) }
}
