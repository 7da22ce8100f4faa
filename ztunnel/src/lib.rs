//! The node proxy: takes the TCP of every enrolled pod, carries it in HBONE tunnels and enforces L4 authorization.
//!
//! Layers, imports go down only: `app` > `admin` `pod` > `proxy` > `hbone` `route` `policy` > `identity` `state` >
//! `tls` `relay` > `net` > `io` > `telemetry` `config` `shutdown` > the model. `LIFECYCLE.md` tells the life of a
//! connection, a certificate and a pod.
//!
//! # Values that prove something
//!
//! They are made only where it was proven. Each that must not compile stands beside a twin that does and differs in the
//! forgery alone, so that the former cannot fail for a reason of its own.
//!
//! An identity is parsed, and a set of expected identities is never empty:
//! ```
//! let identity = ztunnel_model::Identity::new("td", "ns", "sa").unwrap();
//! let _ = ztunnel_model::IdentitySet::one(identity);
//! ```
//! ```compile_fail,E0599
//! let identity = ztunnel_model::Identity::default();
//! let _ = ztunnel_model::IdentitySet::one(identity);
//! ```
//! ```compile_fail,E0599
//! let _ = ztunnel_model::IdentitySet::default();
//! ```
//! A verified peer comes out of a handshake:
//! ```
//! fn verified(peer: ztunnel::tls::verify::VerifiedPeer) -> ztunnel::tls::verify::Peer {
//!     ztunnel::tls::verify::Peer::Verified(peer)
//! }
//! ```
//! ```compile_fail,E0451
//! fn verified(identity: ztunnel_model::Identity) -> ztunnel::tls::verify::Peer {
//!     ztunnel::tls::verify::Peer::Verified(ztunnel::tls::verify::VerifiedPeer { identity })
//! }
//! ```
//! and policy judges no identity that was not:
//! ```
//! fn judged(facts: &ztunnel::policy::Facts) -> Option<&ztunnel_model::Identity> {
//!     facts.peer.identity()
//! }
//! ```
//! ```compile_fail,E0308
//! fn judged(facts: &mut ztunnel::policy::Facts, identity: ztunnel_model::Identity) {
//!     facts.peer = identity;
//! }
//! ```
//! An authorized connection comes from the enforcer, and there is one of it:
//! ```
//! async fn wait(connection: ztunnel::policy::AuthorizedConnection) {
//!     let _ = connection.revoked().await;
//! }
//! ```
//! ```compile_fail,E0599
//! async fn wait(connection: ztunnel::policy::AuthorizedConnection) {
//!     let _ = connection.clone().revoked().await;
//! }
//! ```
//! ```compile_fail,E0624
//! let _ = ztunnel::policy::AuthorizedConnection::new(todo!());
//! ```
//! A private key is not copied, and an SVID is key, chain and identity that were found to agree:
//! ```
//! fn take(key: ztunnel::tls::svid::SecretKey) {
//!     let _ = key;
//! }
//! ```
//! ```compile_fail,E0599
//! fn take(key: ztunnel::tls::svid::SecretKey) {
//!     let _ = key.clone();
//! }
//! ```
//! ```
//! fn whose(svid: &ztunnel::tls::svid::Svid) -> &ztunnel_model::Identity {
//!     svid.identity()
//! }
//! ```
//! ```compile_fail,E0616
//! fn whose(svid: &ztunnel::tls::svid::Svid) -> &ztunnel_model::Identity {
//!     &svid.identity
//! }
//! ```
//! The capability to use an identity comes from the manager, and a target from the route:
//! ```
//! fn hold(svid: ztunnel::identity::PodSvid) -> ztunnel::identity::PodSvid {
//!     svid
//! }
//! ```
//! ```compile_fail,E0423
//! fn hold(identity: ztunnel_model::Identity) -> ztunnel::identity::PodSvid {
//!     ztunnel::identity::PodSvid(identity)
//! }
//! ```
//! ```
//! fn addr(target: ztunnel::route::inbound::Target) -> std::net::SocketAddr {
//!     target.addr()
//! }
//! ```
//! ```compile_fail,E0423
//! fn target(addr: std::net::SocketAddr) -> ztunnel::route::inbound::Target {
//!     ztunnel::route::inbound::Target(addr)
//! }
//! ```
//! The state has one writer, many readers, and what they read cannot be changed:
//! ```
//! let (mut writer, reader) = ztunnel::state::new();
//! writer.apply(ztunnel::state::Origin::Static, ztunnel::state::Batch::default());
//! let _ = reader.clone().snapshot();
//! ```
//! ```compile_fail,E0599
//! let (writer, _) = ztunnel::state::new();
//! let _ = writer.clone();
//! ```
//! ```compile_fail,E0599
//! let (_, reader) = ztunnel::state::new();
//! reader.apply(ztunnel::state::Origin::Static, ztunnel::state::Batch::default());
//! ```
//! ```compile_fail,E0594
//! let (_, reader) = ztunnel::state::new();
//! *reader.snapshot() = ztunnel::state::Snapshot::default();
//! ```

pub mod admin;
pub mod app;
pub mod config;
pub mod hbone;
pub mod identity;
pub mod io;
pub mod net;
pub mod pod;
pub mod policy;
pub mod proxy;
pub mod relay;
pub mod route;
pub mod shutdown;
pub mod state;
pub mod telemetry;
pub mod tls;
