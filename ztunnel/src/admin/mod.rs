//! The HTTP/1.1 endpoints of the process (interop.md sections 11.1, 11.5 and 11.6): admin on the loopback, metrics, and
//! readiness. All run on the control thread.
//!
//! Owns paths, methods, status codes and texts. Must not know what is behind the configuration dump: `app` hands over
//! one function per key.

mod dump;
mod logging;
mod pages;
mod readiness;
mod server;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::shutdown::Drain;
use crate::telemetry::{Levels, Metrics};

pub use dump::{Dump, version};
pub use readiness::{Pending, Readiness};

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} for {purpose}: {source}; is another proxy running here?")]
pub struct Error {
    purpose: &'static str,
    addr: SocketAddr,
    source: io::Error,
}

/// The bound listeners. Binding comes first and alone, so that a busy port ends the start.
#[derive(Debug)]
pub struct Listeners {
    admin: Vec<TcpListener>,
    metrics: TcpListener,
    readiness: TcpListener,
}

/// What the endpoints show and change.
#[derive(Clone)]
pub struct Sources {
    pub dump: Arc<Dump>,
    pub metrics: Arc<Metrics>,
    pub levels: Levels,
    pub readiness: Readiness,
    pub drain: Drain,
}

impl Listeners {
    /// Must be called inside the control thread's runtime.
    pub async fn bind(config: &config::Admin) -> Result<Self, Error> {
        let any: IpAddr =
            if config.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let first = bind("admin", (Ipv4Addr::LOCALHOST, config.admin_port).into()).await?;
        // The second one takes the port that the first got, which matters when any port was asked for.
        let port = first.local_addr().map_or(config.admin_port, |addr| addr.port());
        let mut admin = vec![first];
        if config.ipv6_loopback {
            admin.push(bind("admin", (Ipv6Addr::LOCALHOST, port).into()).await?);
        }
        Ok(Self {
            admin,
            metrics: bind("metrics", (any, config.stats_port).into()).await?,
            readiness: bind("readiness", (any, config.readiness_port).into()).await?,
        })
    }

    /// Addresses of admin (one or two), metrics and readiness.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let last = [&self.metrics, &self.readiness];
        self.admin.iter().chain(last).map(TcpListener::local_addr).collect()
    }

    /// Serves until `stop`; then requests in progress have a moment to get their answer.
    pub async fn serve(self, sources: Sources, stop: CancellationToken) {
        let admin = {
            let (dump, levels, drain) = (sources.dump, sources.levels, sources.drain);
            move |request| pages::admin(request, Arc::clone(&dump), levels.clone(), drain.clone())
        };
        let admins =
            self.admin.into_iter().map(|listener| server::serve(listener, admin.clone(), stop.clone()));
        let metrics = {
            let metrics = sources.metrics;
            move |request| pages::metrics(request, Arc::clone(&metrics))
        };
        let readiness = {
            let readiness = sources.readiness;
            move |request| pages::readiness(request, readiness.clone())
        };
        tokio::join!(
            futures::future::join_all(admins),
            server::serve(self.metrics, metrics, stop.clone()),
            server::serve(self.readiness, readiness, stop.clone()),
        );
    }
}

async fn bind(purpose: &'static str, addr: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(addr).await.map_err(|source| Error { purpose, addr, source })
}

#[cfg(test)]
mod tests;
