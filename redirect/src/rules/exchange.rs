//! Sends netlink messages on a synchronous socket of the calling thread's namespace and waits for the kernel's answers.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::message::{self, ACK, Message};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// On an answer: attributes follow the error.
const ACK_HAS_ATTRIBUTES: u16 = 0x200;
const ERROR_TEXT: u16 = 1;
/// Error code and the header of the message it is about.
const ERROR_FIXED_PART: usize = 4 + 16;

/// The kernel answers within the system call; this is for a kernel that does not.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the kernel refused {subject}: {source}{text}")]
    Refused { subject: String, source: io::Error, text: String },
    #[error("the kernel did not answer a netlink request within {ANSWER_DEADLINE:?}")]
    NoAnswer,
    #[error("malformed netlink answer")]
    Malformed,
}

impl Error {
    /// What was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }

    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A netlink socket, which stays in the namespace where it was opened. Not used again after an error other than
/// [`Error::Refused`].
pub struct Exchange {
    /// Taken when this is dropped.
    socket: Option<Socket>,
    /// Closing the socket may take long.
    lingers: bool,
    sequence: u32,
}

impl Exchange {
    pub fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers carry the header of the refused message only, and say in words what was wrong with it.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        let seconds = i64::try_from(ANSWER_DEADLINE.as_secs()).expect("invariant: a small constant");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0)).map_err(io::Error::from)?;
        Ok(Self { socket: Some(socket), lingers: protocol == NETLINK_NETFILTER, sequence: 0 })
    }

    /// Sends all messages at once and checks the answer to each that asks for one.
    pub fn send(&mut self, messages: &[Message]) -> Result<(), Error> {
        let first = self.sequence + 1;
        let mut buffer = Vec::new();
        for message in messages {
            self.sequence += 1;
            message.encode(self.sequence, &mut buffer);
        }
        self.socket().send(&buffer, 0)?;
        let mut unanswered = messages.iter().filter(|message| message.flags & ACK != 0).count();
        while unanswered > 0 {
            let datagram = self.receive()?;
            for (kind, flags, sequence, body) in message::messages(&datagram) {
                if kind != NLMSG_ERROR {
                    continue;
                }
                // An error about a batch as a whole names the message that opened it, which asks for no answer.
                let about =
                    sequence.checked_sub(first).and_then(|at| messages.get(usize::try_from(at).ok()?));
                check(about.map_or("netlink request", |message| &message.subject), flags, body)?;
                unanswered = unanswered.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// The bodies of all messages with which the kernel answers a dump request.
    pub fn dump(&mut self, request: &Message) -> Result<Vec<Vec<u8>>, Error> {
        self.sequence += 1;
        let mut buffer = Vec::new();
        request.encode(self.sequence, &mut buffer);
        self.socket().send(&buffer, 0)?;
        let mut bodies = Vec::new();
        loop {
            let datagram = self.receive()?;
            for (kind, flags, _, body) in message::messages(&datagram) {
                match kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => check(&request.subject, flags, body)?,
                    _ => bodies.push(body.to_vec()),
                }
            }
        }
    }

    /// The body of the one message with which the kernel answers a request that is no dump.
    pub fn ask(&mut self, request: &Message) -> Result<Vec<u8>, Error> {
        self.sequence += 1;
        let mut buffer = Vec::new();
        request.encode(self.sequence, &mut buffer);
        self.socket().send(&buffer, 0)?;
        loop {
            let datagram = self.receive()?;
            for (kind, flags, sequence, body) in message::messages(&datagram) {
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_ERROR => check(&request.subject, flags, body)?,
                    _ => return Ok(body.to_vec()),
                }
            }
        }
    }

    fn socket(&self) -> &Socket {
        self.socket.as_ref().expect("invariant: it is there until this is dropped")
    }

    fn receive(&self) -> Result<Vec<u8>, Error> {
        let mut datagram = Vec::with_capacity(64 * 1024);
        match self.socket().recv(&mut datagram, 0) {
            Ok(_) => Ok(datagram),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::NoAnswer),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Exchange {
    /// A netfilter socket is closed by a thread of its own: the kernel first does away with what batches in the namespace have
    /// replaced, and waits for a grace period (nft_rcv_nl_event), some ten milliseconds in which a pod would not start. A
    /// thread that lived on could not do it: it would hold the namespace in which it was started.
    fn drop(&mut self) {
        let socket = self.socket.take();
        if self.lingers {
            // Without a thread it is closed here.
            let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(socket));
        }
    }
}

fn check(subject: &str, flags: u16, body: &[u8]) -> Result<(), Error> {
    let code = body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Error::Malformed)?;
    if code == 0 {
        return Ok(());
    }
    let text = (flags & ACK_HAS_ATTRIBUTES != 0)
        .then(|| body.get(ERROR_FIXED_PART..))
        .flatten()
        .and_then(|bytes| message::attributes(bytes).find(|(kind, _)| *kind == ERROR_TEXT))
        .map(|(_, text)| format!(" ({})", String::from_utf8_lossy(text).trim_end_matches('\0')));
    Err(Error::Refused {
        subject: subject.to_owned(),
        source: io::Error::from_raw_os_error(-code),
        text: text.unwrap_or_default(),
    })
}
