//! Programs that talk: an echo, transfers with a check of every byte, round trips, idle connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::node::PodHandle;
use crate::wait::ready;

/// How long a load tool waits for a connection or for the next byte.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long a server waits for the next connection or byte before it ends.
pub const QUIET: Duration = Duration::from_secs(600);
const CHUNK: usize = 256 * 1024;

/// Serves a protocol on a port of a pod, each connection on a thread of its own, until it is `QUIET`.
pub fn serve(
    pod: &PodHandle,
    port: u16,
    handle: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static,
) -> io::Result<()> {
    let listener: TcpListener = pod.listen(port)?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = accept(&listener, QUIET) {
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    Ok(())
}

/// The next connection; waits for it, and later for each of its bytes, as long as `deadline`.
pub fn accept(listener: &TcpListener, deadline: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    ready([(listener, PollFlags::POLLIN)].into_iter(), deadline)?;
    let (stream, peer) = listener.accept()?;
    limit(&stream, deadline)?;
    Ok((stream, peer))
}

/// Bounds every read and write.
pub(crate) fn limit(stream: &TcpStream, deadline: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))
}

/// Sends back what comes, until the end.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..count])?;
    }
}

/// Takes all that comes and answers with its length and checksum.
pub fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let (mut length, mut sum) = (0_u64, Checksum::default());
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        length += count as u64;
        sum.add(&buffer[..count]);
    }
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&sum.value().to_be_bytes())
}

/// A checksum that depends on every byte and its place, whatever the pieces (RFC 1950 section 8, in 64 bits).
#[derive(Default)]
pub struct Checksum {
    first: u32,
    second: u32,
}

impl Checksum {
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.first = self.first.wrapping_add(u32::from(byte) + 1);
            self.second = self.second.wrapping_add(self.first);
        }
    }

    pub fn value(&self) -> u64 {
        u64::from(self.first) << 32 | u64::from(self.second)
    }
}

/// Bytes that repeat with a period that no buffer size divides.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Sends `total` bytes to a `sink` and checks that all arrived in order.
pub fn upload(pod: &PodHandle, to: SocketAddr, total: usize) -> io::Result<()> {
    let chunk = pattern(CHUNK - CHUNK % 251);
    let mut expected = Checksum::default();
    let answer = push(pod, to, total, &chunk, |part| expected.add(part))?;
    let (length, sum) = answer.split_at(8);
    if length != (total as u64).to_be_bytes() || sum != expected.value().to_be_bytes() {
        return Err(io::Error::other("the bytes that arrived are not those that were sent"));
    }
    Ok(())
}

/// Sends `total` bytes out of `chunk` again and again, ends the direction, and reads the answer.
fn push(
    pod: &PodHandle,
    to: SocketAddr,
    total: usize,
    chunk: &[u8],
    mut sent: impl FnMut(&[u8]),
) -> io::Result<[u8; 16]> {
    let mut stream = pod.connect(to, DEADLINE)?;
    let mut left = total;
    while left > 0 {
        let part = &chunk[..left.min(chunk.len())];
        stream.write_all(part)?;
        sent(part);
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Percentiles of round-trip times.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub median: Duration,
    pub p99: Duration,
}

/// Round trips of one byte on one connection to an echo.
pub fn round_trips(pod: &PodHandle, to: SocketAddr, count: usize) -> io::Result<Latency> {
    let mut stream = pod.connect(to, DEADLINE)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count + count / 10 {
        let started = Instant::now();
        echoes(&mut stream)?;
        times.push(started.elapsed());
    }
    // The first tenth warms up.
    let mut times = times.split_off(count / 10);
    times.sort_unstable();
    Ok(Latency { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] })
}

/// One byte to an echo and back.
pub fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// One request to an echo: the whole text comes back.
pub fn request(pod: &PodHandle, to: SocketAddr, text: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = pod.connect(to, DEADLINE)?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply)
}

/// Connections to an echo that were used once and are idle now.
pub fn idle(pod: &PodHandle, to: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = pod.connect(to, DEADLINE)?;
        echoes(&mut stream)?;
        streams.push(stream);
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_without_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let short = Duration::from_millis(10);
        let nobody = accept(&listener, short).expect_err("nobody comes");
        assert_eq!(nobody.kind(), io::ErrorKind::TimedOut);
        let mut client =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("it is accepted");
        limit(&client, short).expect("a timeout above zero");
        let (mut silent, _) = accept(&listener, short).expect("somebody came");
        assert!(silent.read(&mut [0]).is_err(), "nothing is sent");
        let chunk = vec![0; CHUNK];
        while client.write(&chunk).is_ok() {}
    }
}
