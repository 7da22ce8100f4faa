//! The node proxy: takes the TCP of every enrolled pod, carries it in HBONE tunnels and enforces L4 authorization.
//!
//! Layers, imports go down only: `app` > `admin` `pod` > `proxy` > `hbone` `route` `policy` > `identity` `state` >
//! `tls` `relay` > `net` > `io` > `telemetry` `config` `shutdown` > the model. `LIFECYCLE.md` tells the life of a
//! connection, a certificate and a pod.
//!
//! # Values that prove something
//!
//! They are made only where it was proven, so none of this compiles.
//!
//! A verified peer comes out of a handshake:
//! ```compile_fail,E0451
//! let identity = ztunnel_model::Identity::new("td", "ns", "sa").unwrap();
//! let _ = ztunnel::tls::verify::VerifiedPeer { identity };
//! ```
//! An authorized connection comes from the enforcer, and there is one of it:
//! ```compile_fail,E0624
//! let _ = ztunnel::policy::AuthorizedConnection::new(todo!());
//! ```
//! ```compile_fail,E0599
//! fn copy(connection: ztunnel::policy::AuthorizedConnection) {
//!     let _ = connection.clone();
//! }
//! ```
//! A private key is not copied, a state has one writer:
//! ```compile_fail,E0599
//! fn copy(key: ztunnel::tls::svid::SecretKey) {
//!     let _ = key.clone();
//! }
//! ```
//! ```compile_fail,E0599
//! fn copy(writer: ztunnel::state::Writer) {
//!     let _ = writer.clone();
//! }
//! ```
//! The capability to use an identity comes from the manager, a target from the route, and a set of expected identities
//! is never empty:
//! ```compile_fail,E0423
//! let _ = ztunnel::identity::PodSvid(todo!());
//! ```
//! ```compile_fail,E0603
//! let _ = ztunnel::route::inbound::Target("10.0.0.1:15006".parse().unwrap());
//! ```
//! ```compile_fail,E0599
//! let _ = ztunnel_model::IdentitySet::default();
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
