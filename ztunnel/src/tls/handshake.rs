//! Drives a handshake of rustls over a socket, up to the first record of the data phase and not a byte further.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::{Incoming, Role, Session};
use super::stream::{Agreed, Stream};
use super::svid::Svid;
use super::verify::{self, Refused, VerifiedPeer};

/// Type, version and length of a record.
const HEADER: usize = 5;
const READ: usize = 4 * 1024;
/// A certificate chain with room to spare; rustls bounds each message to 64 KiB.
const MOST_UNREAD: usize = 128 * 1024;

/// A certificate is good to the end of the second that it names, which is how webpki judges it too.
const LAST_SECOND: Duration = Duration::from_millis(999);

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum Failed {
    Io(io::Error),
    /// rustls gave up; what the verifier found, if it was the verifier.
    Tls(Box<rustls::Error>, Option<Box<Refused>>),
    Peer(Box<Refused>),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Either role of a rustls connection.
pub(super) trait Side {
    type Data;
    const ROLE: Role;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error>;
}

macro_rules! side {
    ($connection:ty, $data:ty, $role:expr) => {
        impl Side for $connection {
            type Data = $data;
            const ROLE: Role = $role;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(incoming)
            }

            fn common(&self) -> &CommonState {
                self
            }

            fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<$data>), rustls::Error> {
                self.dangerous_into_kernel_connection()
            }
        }
    };
}

side!(UnbufferedClientConnection, rustls::client::ClientConnectionData, Role::Client);
side!(UnbufferedServerConnection, rustls::server::ServerConnectionData, Role::Server);

enum Step {
    Again,
    Send,
    Receive,
    Done,
}

/// Bytes of the peer: rustls is offered one record more only when it has asked for one, so that nothing of the data
/// phase reaches it. What rustls keeps of a message in parts it rewrites in place, so a header is read only once, before
/// its record is whole.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    /// Rustls has seen all before this.
    start: usize,
    /// Of the record on offer, as far as its header tells; `start` when none is.
    end: usize,
    header_read: bool,
}

impl Unread {
    /// How many bytes rustls may see.
    fn shown(&self) -> usize {
        self.end.min(self.bytes.len())
    }

    /// Offers one record more, or waits for more bytes.
    async fn advance(&mut self, tcp: &mut TcpStream) -> Result<(), Failed> {
        if self.end <= self.bytes.len() {
            self.start = self.end;
        }
        if self.start < self.bytes.len() && self.start == self.end {
            self.end += HEADER;
            self.header_read = false;
        } else {
            self.receive(tcp).await?;
        }
        let header = self.bytes[self.start.min(self.bytes.len())..].first_chunk();
        if let Some([_, _, _, high, low]) = header
            && self.end > self.start
            && !self.header_read
        {
            self.end += usize::from(u16::from_be_bytes([*high, *low]));
            self.header_read = true;
        }
        Ok(())
    }

    async fn receive(&mut self, tcp: &mut TcpStream) -> Result<(), Failed> {
        if self.bytes.len() > MOST_UNREAD {
            return Err(Failed::Io(io::Error::new(io::ErrorKind::InvalidData, "the handshake is too long")));
        }
        self.bytes.reserve(READ);
        match tcp.read_buf(&mut self.bytes).await? {
            0 => Err(closed()),
            _ => Ok(()),
        }
    }

    /// Rustls is done with this many bytes.
    fn discard(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.start = self.start.saturating_sub(count);
        self.end = self.end.saturating_sub(count);
    }
}

/// Runs the handshake as `own`; a socket whose handshake failed is given back.
pub(super) async fn run<S: Side>(
    mut side: S,
    tcp: TcpStream,
    own: &Svid,
) -> Result<(Stream, VerifiedPeer), (Failed, TcpStream)>
where
    KernelConnection<S::Data>: Send + 'static,
{
    let mut tcp = tcp;
    match drive(&mut side, &mut tcp).await {
        Ok(rest) => match finish(side, rest, own) {
            Ok(Finished { session, incoming, agreed, peer }) => {
                Ok((Stream::new(tcp, session, incoming, agreed), peer))
            }
            Err(failed) => Err((failed, tcp)),
        },
        Err(failed) => Err((failed, tcp)),
    }
}

struct Finished {
    session: Session,
    incoming: Incoming,
    agreed: Agreed,
    peer: VerifiedPeer,
}

fn finish<S: Side>(side: S, rest: Vec<u8>, own: &Svid) -> Result<Finished, Failed>
where
    KernelConnection<S::Data>: Send + 'static,
{
    let peer = VerifiedPeer::of(side.common()).map_err(|refused| Failed::Peer(Box::new(refused)))?;
    let not_after =
        VerifiedPeer::not_after(side.common()).map_err(|refused| Failed::Peer(Box::new(refused)))?;
    let tracked = own.track(side.common().peer_certificates().unwrap_or_default());
    let alpn = side.common().alpn_protocol().map(<[u8]>::to_vec);
    let session = side.into_keys().and_then(|(keys, connection)| Session::new(S::ROLE, keys, connection));
    let session = session.map_err(|error| Failed::Tls(Box::new(error), None))?;
    let valid_until = own.not_after().min(not_after) + LAST_SECOND;
    let agreed = Agreed { alpn, valid_until, tracked, own_root: Arc::clone(own.root()) };
    Ok(Finished { session, incoming: Incoming::new(rest), agreed, peer })
}

/// Returns what came behind the handshake.
async fn drive<S: Side>(side: &mut S, tcp: &mut TcpStream) -> Result<Vec<u8>, Failed> {
    let mut unread = Unread::default();
    let mut outgoing = Vec::new();
    loop {
        let shown = unread.shown();
        verify::forget_finding();
        let UnbufferedStatus { discard, state, .. } = side.process(&mut unread.bytes[..shown]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut outgoing);
                Ok(Step::Again)
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Ok(Step::Send)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Receive),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(closed()),
            Ok(_) => Err(Failed::Tls(Box::new(rustls::Error::HandshakeNotComplete), None)),
            Err(error) => Err(Failed::Tls(Box::new(error), verify::finding().map(Box::new))),
        };
        unread.discard(discard);
        match step {
            Ok(Step::Again) => {}
            Ok(Step::Send) => {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
            }
            // A server may write before the client has proved who it is; nobody here does.
            Ok(Step::Done) if !side.common().is_handshaking() => return Ok(unread.bytes),
            Ok(Step::Done | Step::Receive) => unread.advance(tcp).await?,
            Err(failed) => {
                tell(side, tcp, outgoing);
                return Err(failed);
            }
        }
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) {
    let written = outgoing.len();
    // The first try tells how much room it needs.
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        outgoing.resize(written + needed.required_size, 0);
        data.encode(&mut outgoing[written..]).expect("invariant: the room is what was asked for");
    }
}

/// Sends the alert that says why, if the socket takes it at once.
fn tell<S: Side>(side: &mut S, tcp: &TcpStream, mut outgoing: Vec<u8>) {
    while side.common().wants_write() {
        let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(data)), .. } = side.process(&mut [])
        else {
            break;
        };
        encode(data, &mut outgoing);
    }
    let _ = tcp.try_write(&outgoing);
}

fn closed() -> Failed {
    Failed::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed the connection in the handshake",
    ))
}
