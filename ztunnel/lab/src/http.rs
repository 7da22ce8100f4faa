//! The HTTP that the lab speaks: one request to a connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::namespace;
use crate::traffic::limit;

/// For the connection, and for each read and write.
const DEADLINE: Duration = Duration::from_secs(10);
/// Far above the dump of a proxy that knows a hundred thousand workloads.
const LONGEST: u64 = 1 << 30;

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// One request from where the caller is.
pub fn request(to: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    exchange(to, &text(method, path))
}

/// One request from inside a network namespace.
pub(crate) fn request_in(namespace: &str, to: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    let request = text(method, path);
    namespace::run(namespace, move || exchange(to, &request)).map_err(io::Error::other)?
}

fn text(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn exchange(to: SocketAddr, request: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    limit(&stream, DEADLINE)?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    Ok(Answer { status, body: body.to_owned() })
}
