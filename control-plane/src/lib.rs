//! The control plane of a mesh that has no other, behind `ztunnel-controller`: the index that makes resources out of the
//! objects of a source, the xDS server that sends them, and the certificate authority.
//!
//! It owns the CA key, which never lives in a process that parses pod traffic; `ztunnel` does not link this crate. It must
//! not know the data path: it meets proxies only over the wire.

pub mod ca;
pub mod index;
pub mod mesh;
pub mod object;
pub mod resource;
pub mod server;
pub mod source;
pub mod status;
pub mod xds;
