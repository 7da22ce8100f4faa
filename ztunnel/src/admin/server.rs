//! A small HTTP/1.1 server: bounded in connections, in the size of a request's head, and in every wait.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::pages::Answer;

/// Connections of one listener at a time; further ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 64;
/// For each request's head; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
const HEAD_SIZE: usize = 8 * 1024;
/// A client that reads slower than this loses its connection; the longest drain fits.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// What requests in progress get at the end of the process.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// After accept failed for want of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` and the answers in progress are written.
pub(super) async fn serve<P, F>(listener: TcpListener, pages: P, stop: CancellationToken)
where
    P: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let place =
                Arc::clone(&places).acquire_owned().await.expect("invariant: the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = connection(stream, pages.clone(), stop.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(LAST_ANSWERS, connections.wait()).await.is_err() {
        debug!(left = connections.len(), "admin connections cut");
    }
}

async fn connection<P, F>(stream: TcpStream, pages: P, stop: CancellationToken)
where
    P: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = pages(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ending = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ending => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_ANSWERS, connection).await {
                Ok(result) => result,
                Err(_) => return debug!("admin connection cut"),
            }
        }
    };
    if let Err(error) = result {
        debug!(%error, "admin connection ended");
    }
}
