//! The proof that a connection may reach the application.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;

use super::enforcer::{Denied, Registered};
use crate::net::dial;
use crate::net::socket::Options;

/// A connection that policy allows, for as long as `revoked` is pending. Made by the enforcer only; not `Clone`.
pub struct AuthorizedConnection {
    registered: Registered,
}

impl AuthorizedConnection {
    pub(super) fn new(registered: Registered) -> Self {
        Self { registered }
    }

    /// Dials the application that this connection was authorized for. `source` is the address that the application
    /// sees; a pod that calls itself keeps its own.
    pub async fn connect_app(
        &self,
        socket: OwnedFd,
        original_source: bool,
        within: Duration,
        options: &Options,
    ) -> Result<TcpStream, dial::Error> {
        let facts = &self.registered.live.facts;
        dial::dial(socket, self.source(original_source), facts.destination, within, options).await
    }

    /// Resolves when a change of policies or workloads denies the connection.
    pub fn revoked(&self) -> impl Future<Output = Denied> {
        let live = &*self.registered.live;
        async move {
            loop {
                let revoked = live.revoked.notified();
                if let Some(denied) = live.denied.borrow().clone() {
                    return denied;
                }
                revoked.await;
            }
        }
    }

    fn source(&self, original_source: bool) -> Option<IpAddr> {
        let facts = &self.registered.live.facts;
        let foreign = facts.source.ip() != facts.destination.ip();
        let same_family = facts.source.is_ipv4() == facts.destination.is_ipv4();
        (original_source && foreign && same_family).then(|| facts.source.ip())
    }
}
