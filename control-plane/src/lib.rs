//! The control plane of a mesh that has no other: the certificate authority behind `ztunnel-controller`.
//!
//! It owns the CA key, which never lives in a process that parses pod traffic; `ztunnel` does not link this crate. It must
//! not know the data path: it meets proxies only over the wire.

pub mod ca;
