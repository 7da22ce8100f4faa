//! Bulk transfers, to measure throughput with.
//!
//! The load is that of `iperf3` before its version 3.16, so that figures compare with those that others publish: one
//! thread at each end serves all streams in turn, in blocks of 128 KiB, with the system's own socket buffers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;
use crate::traffic::{DEADLINE, QUIET};
use crate::wait::ready;

const BLOCK: usize = 128 * 1024;
/// Streams that a server has at once; more of them wait.
const MOST: usize = 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the server.
    Up = b'u' as isize,
    /// From the server to the client.
    Down = b'd' as isize,
}

/// When a transfer ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Elapsed(Duration),
    /// Bytes of all streams together.
    Bytes(u64),
}

/// Serves bulk transfers on a port until it is `QUIET`.
pub fn serve(at: &Namespace, port: u16) -> io::Result<JoinHandle<()>> {
    let listener = at.listen(port)?;
    listener.set_nonblocking(true)?;
    Ok(std::thread::spawn(move || {
        let (mut served, mut block) = (Vec::new(), vec![0; BLOCK]);
        while step(&listener, &mut served, &mut block).is_ok() {}
    }))
}

/// One transfer on `streams` connections at once; bytes per second in all, as the receiver counts them.
pub fn transfer(
    from: &Namespace,
    to: SocketAddr,
    streams: usize,
    direction: Direction,
    until: Until,
) -> io::Result<f64> {
    let mut open = Vec::new();
    for _ in 0..streams {
        let mut stream = from.connect(to, DEADLINE)?;
        stream.write_all(&[direction as u8])?;
        stream.set_nonblocking(true)?;
        open.push(stream);
    }
    let (flags, started) =
        (if direction == Direction::Up { PollFlags::POLLOUT } else { PollFlags::POLLIN }, Instant::now());
    let done = |moved: u64| match until {
        Until::Elapsed(time) => started.elapsed() >= time,
        Until::Bytes(bytes) => moved >= bytes,
    };
    let (mut moved, mut block) = (0_u64, vec![b'x'; BLOCK]);
    while !done(moved) {
        for index in ready(open.iter().map(|stream| (stream, flags)), DEADLINE)? {
            let result = match direction {
                Direction::Up => open[index].write(&block),
                Direction::Down => open[index].read(&mut block),
            };
            match result {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => moved += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    if direction == Direction::Up && arrived(open)? != moved {
        return Err(io::Error::other("not all bytes arrived"));
    }
    Ok(moved as f64 / started.elapsed().as_secs_f64())
}

/// Ends the streams of an upload; what their server counted.
fn arrived(streams: Vec<TcpStream>) -> io::Result<u64> {
    for stream in &streams {
        stream.shutdown(Shutdown::Write)?;
    }
    let mut sum = 0;
    for mut stream in streams {
        stream.set_nonblocking(false)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        sum += u64::from_be_bytes(count);
    }
    Ok(sum)
}

struct Served {
    stream: TcpStream,
    state: State,
}

enum State {
    /// The first byte says which way.
    New,
    Receiving(u64),
    Sending,
}

/// Waits once and serves whatever is ready.
fn step(listener: &TcpListener, served: &mut Vec<Served>, block: &mut [u8]) -> io::Result<()> {
    let sockets = served.iter().map(|served| match served.state {
        State::Sending => (served.stream.as_fd(), PollFlags::POLLOUT),
        State::New | State::Receiving(_) => (served.stream.as_fd(), PollFlags::POLLIN),
    });
    let room = served.len() < MOST;
    let sockets = sockets.chain(room.then(|| (listener.as_fd(), PollFlags::POLLIN)));
    let ready = ready(sockets, QUIET)?;
    let listening = served.len();
    // From the back, so that what ended can be taken out.
    for index in ready.into_iter().rev() {
        if index == listening {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                served.push(Served { stream, state: State::New });
            }
        } else if !matches!(served[index].turn(block), Ok(true)) {
            served.remove(index);
        }
    }
    Ok(())
}

impl Served {
    /// One block; whether there is more to do.
    fn turn(&mut self, block: &mut [u8]) -> io::Result<bool> {
        let moved = match self.state {
            State::New => self.stream.read(&mut block[..1]),
            State::Receiving(_) => self.stream.read(block),
            State::Sending => self.stream.write(block),
        };
        match (moved, &mut self.state) {
            (Err(error), _) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            (Err(error), _) => Err(error),
            (Ok(0), State::Receiving(count)) => self.stream.write_all(&count.to_be_bytes()).map(|()| false),
            (Ok(0), _) => Ok(false),
            (Ok(_), State::New) => {
                self.state = if block[0] == b'd' { State::Sending } else { State::Receiving(0) };
                Ok(true)
            }
            (Ok(count), State::Receiving(sum)) => {
                *sum += count as u64;
                Ok(true)
            }
            (Ok(_), State::Sending) => Ok(true),
        }
    }
}
