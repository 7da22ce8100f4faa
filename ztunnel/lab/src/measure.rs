//! Measurements of the proxies of a lab.

use std::io;
use std::net::SocketAddr;

use crate::{Lab, traffic};

/// Resident bytes that an idle connection takes at the client's node and at the server's, where an echo listens.
pub fn idle_connection(
    lab: &Lab,
    client: &str,
    server: &str,
    port: u16,
    count: usize,
) -> io::Result<[f64; 2]> {
    let to = SocketAddr::new(lab.pod(server).ipv4(), port);
    // The first connections also pay for the tunnel and for buffers that stay.
    let warm = traffic::idle(lab.pod(client), to, count / 10)?;
    let before = [resident(lab, client)?, resident(lab, server)?];
    let held = traffic::idle(lab.pod(client), to, count)?;
    let after = [resident(lab, client)?, resident(lab, server)?];
    drop((warm, held));
    Ok([0, 1].map(|end| (after[end] as f64 - before[end] as f64) / count as f64))
}

/// Of the proxy of a pod's node.
fn resident(lab: &Lab, pod: &str) -> io::Result<u64> {
    let node = lab.node(&lab.pod(pod).spec().node);
    let missing = || io::Error::other(format!("the proxy of {} does not run", node.name()));
    node.proxy().ok_or_else(missing)?.resident()
}
