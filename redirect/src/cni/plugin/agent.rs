//! Asks the agent, without a runtime: one blocking exchange under one deadline.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::cni::wire::{Answer, MAX_PACKET, Question};

/// For an agent that lives to say that it took the question.
const PRESENCE: Duration = Duration::from_secs(2);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Refused(String),
}

/// How it shows that the agent is away.
#[derive(Debug, thiserror::Error)]
pub(super) enum Away {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Late,
    #[error("it ended before it answered")]
    Ended,
    #[error("its answer is not valid: {0}")]
    Undecodable(#[from] serde_json::Error),
}

pub(super) fn ask(path: &Path, question: &Question, deadline: Instant) -> Result<Outcome, Away> {
    let present = deadline.min(Instant::now() + PRESENCE);
    let mut socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    // Connecting to an agent that no longer accepts waits as sending does.
    socket.set_write_timeout(Some(left(present)?))?;
    socket.connect(&SockAddr::unix(path)?).map_err(late)?;
    socket.set_write_timeout(Some(left(present)?))?;
    socket.send(&serde_json::to_vec(question)?).map_err(late)?;
    let mut until = present;
    loop {
        socket.set_read_timeout(Some(left(until)?))?;
        match receive(&mut socket)? {
            Answer::Taken => until = deadline,
            Answer::Done => return Ok(Outcome::Done),
            Answer::Refused { reason } => return Ok(Outcome::Refused(reason)),
        }
    }
}

fn receive(socket: &mut Socket) -> Result<Answer, Away> {
    let mut packet = vec![0; MAX_PACKET];
    let length = socket.read(&mut packet).map_err(late)?;
    if length == 0 {
        return Err(Away::Ended);
    }
    Ok(serde_json::from_slice(&packet[..length])?)
}

/// A socket takes no timeout of zero.
fn left(deadline: Instant) -> Result<Duration, Away> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Away::Late) } else { Ok(left.max(Duration::from_micros(1))) }
}

fn late(error: io::Error) -> Away {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Away::Late,
        _ => Away::Io(error),
    }
}
