//! The data phase: TLS 1.3 records (RFC 8446 section 5) under the keys that a rustls handshake agreed on.
//!
//! rustls makes the handshake, derives every key and every update of one; the records of a running connection are
//! sealed and opened here, so that bytes are copied once where rustls' own buffers would copy them three times.
//! Nothing here touches a socket.
//!
//! What may come after the handshake (RFC 8446 section 4.6): data, alerts, KeyUpdate, and from a server tickets, which
//! are ignored because nothing is ever resumed.

mod apart;
mod cipher;
mod error;
mod incoming;
mod outgoing;

use rustls::ExtractedSecrets;
use rustls::kernel::KernelConnection;

pub use apart::Records;
use cipher::Cipher;
pub(super) use error::Error;
pub(super) use incoming::{Delivery, Incoming};
pub(super) use outgoing::Outgoing;

/// Type, version and length of a record.
const HEADER: usize = 5;
const TAG: usize = 16;
/// What sealing adds to the bytes of a record: header, type, tag.
const OVERHEAD: usize = HEADER + 1 + TAG;
/// RFC 8446 section 5.1.
const MOST_PLAINTEXT: usize = 16 * 1024;
/// RFC 8446 section 5.2: what a sealed record may add.
const MOST_EXPANSION: usize = 256;
/// AES-GCM keys wear out after 2^24.5 full records (RFC 8446 section 5.5); long before that they are replaced.
const RECORDS_PER_KEY: u64 = if cfg!(test) { 100 } else { 1 << 23 };
/// Records without data that a peer may send in a row.
const MOST_WITHOUT_DATA: u32 = 32;
/// A ticket with its extensions is a few hundred bytes.
const MOST_MESSAGE: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// Where the next keys come from.
trait Secrets: Send {
    fn next_transmit(&mut self) -> Result<ExtractedKeys, rustls::Error>;
    fn next_receive(&mut self) -> Result<ExtractedKeys, rustls::Error>;
}

type ExtractedKeys = (u64, rustls::ConnectionTrafficSecrets);

impl<D> Secrets for KernelConnection<D>
where
    Self: Send,
{
    fn next_transmit(&mut self) -> Result<ExtractedKeys, rustls::Error> {
        self.update_tx_secret()
    }

    fn next_receive(&mut self) -> Result<ExtractedKeys, rustls::Error> {
        self.update_rx_secret()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// The keys of one connection and what its records say about them.
pub(super) struct Session {
    role: Role,
    receive: Cipher,
    transmit: Cipher,
    secrets: Box<dyn Secrets>,
    /// The peer asked for new keys from us too.
    owes_update: bool,
    without_data: u32,
    /// A handshake message of which the rest has not come.
    message: Vec<u8>,
}

/// What a record that holds no data means for the stream.
#[derive(Debug, PartialEq, Eq)]
enum Control {
    Nothing,
    Closed,
}

impl Session {
    pub(super) fn new<D>(
        role: Role,
        keys: ExtractedSecrets,
        connection: KernelConnection<D>,
    ) -> Result<Self, rustls::Error>
    where
        KernelConnection<D>: Send + 'static,
    {
        Ok(Self {
            role,
            receive: Cipher::new(keys.rx)?,
            transmit: Cipher::new(keys.tx)?,
            secrets: Box::new(connection),
            owes_update: false,
            without_data: 0,
            message: Vec::new(),
        })
    }

    fn must_update(&self) -> bool {
        self.owes_update || self.transmit.sealed() >= RECORDS_PER_KEY
    }

    /// A record with data came, `length` bytes of it.
    fn data(&mut self, length: usize) -> Result<(), Error> {
        if !self.message.is_empty() {
            return Err(Error::Unexpected("data within a handshake message"));
        }
        if length == 0 {
            return self.nothing_came();
        }
        self.without_data = 0;
        Ok(())
    }

    fn nothing_came(&mut self) -> Result<(), Error> {
        self.without_data += 1;
        if self.without_data > MOST_WITHOUT_DATA {
            return Err(Error::Unexpected("too many records without data"));
        }
        Ok(())
    }

    /// A record came that holds no data.
    fn control(&mut self, content: Content, bytes: &[u8]) -> Result<Control, Error> {
        self.nothing_came()?;
        match content {
            Content::Alert => match *bytes {
                [_, 0] => Ok(Control::Closed),
                // user_canceled announces a close_notify.
                [_, 90] => Ok(Control::Nothing),
                [_, description] => Err(Error::Alert(description.into())),
                _ => Err(Error::Malformed("alert")),
            },
            Content::Handshake if bytes.is_empty() => Err(Error::Unexpected("empty handshake record")),
            Content::Handshake => self.handshake(bytes).map(|()| Control::Nothing),
            Content::Data => unreachable!("invariant: the caller keeps data to itself"),
        }
    }

    fn handshake(&mut self, bytes: &[u8]) -> Result<(), Error> {
        const TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        if self.message.len() + bytes.len() > MOST_MESSAGE {
            return Err(Error::Malformed("handshake message: too long"));
        }
        self.message.extend_from_slice(bytes);
        let message = std::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        while let [kind, a, b, c, after @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((body, next)) = after.split_at_checked(length) else { break };
            match (*kind, self.role) {
                (TICKET, Role::Client) => {}
                (KEY_UPDATE, _) if !next.is_empty() => {
                    return Err(Error::Unexpected("message behind a KeyUpdate"));
                }
                (KEY_UPDATE, _) => self.key_update(body)?,
                _ => return Err(Error::Unexpected("handshake message")),
            }
            rest = next;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn key_update(&mut self, body: &[u8]) -> Result<(), Error> {
        self.owes_update |= match body {
            [0] => false,
            [1] => true,
            [_] => return Err(Error::Illegal("KeyUpdate of another kind")),
            _ => return Err(Error::Malformed("KeyUpdate")),
        };
        let next = self.secrets.next_receive().map_err(Error::Keys)?;
        self.receive = Cipher::new(next).map_err(Error::Keys)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
