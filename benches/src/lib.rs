//! Measurements; what they have in common is the mesh, the sockets and the peers that they are made with.

pub mod mesh;
pub mod peers;
pub mod sockets;
