//! Ciphertext on its way in.

use tokio::io::ReadBuf;

use super::{Content, Control, Error, HEADER, MOST_EXPANSION, MOST_PLAINTEXT, Session, TAG};
use crate::io::spare::Buffer;

/// What was read and not yet delivered.
#[derive(Default)]
pub(in crate::tls) struct Incoming {
    held: Option<Held>,
    /// The start of a record whose rest has not come; what an idle connection holds, if anything.
    parked: Vec<u8>,
}

struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
    /// Of the record at `start`: decrypted in place, and where the next one begins.
    plain: Option<Plain>,
}

struct Plain {
    from: usize,
    to: usize,
    next: usize,
}

/// How a delivery ended.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tls) enum Delivery {
    /// The reader's buffer is full, or all that came is in it.
    Done,
    /// The peer said that nothing more will come.
    Closed,
}

impl Incoming {
    /// Starts with what a handshake read beyond its own end.
    pub(in crate::tls) fn new(rest: Vec<u8>) -> Self {
        Self { held: None, parked: rest }
    }

    /// Where the next bytes of the socket go; never empty. Whole records must have been delivered before.
    pub(in crate::tls) fn space(&mut self) -> &mut [u8] {
        let held = self.held.get_or_insert_with(|| {
            let mut buffer = Buffer::take();
            let end = self.parked.len();
            buffer[..end].copy_from_slice(&self.parked);
            self.parked = Vec::new();
            Held { buffer, start: 0, end, plain: None }
        });
        // Less than one record is left, and the buffer holds many.
        if held.start > 0 {
            held.buffer.copy_within(held.start..held.end, 0);
            held.end -= held.start;
            held.start = 0;
        }
        &mut held.buffer[held.end..]
    }

    /// This many bytes came into `space`.
    pub(in crate::tls) fn filled(&mut self, count: usize) {
        if let Some(held) = &mut self.held {
            held.end += count;
        }
    }

    /// Gives the buffer back while nothing comes.
    pub(in crate::tls) fn park(&mut self) {
        if let Some(held) = self.held.take_if(|held| held.plain.is_none()) {
            self.parked = held.buffer[held.start..held.end].to_vec();
        }
    }

    #[cfg(test)]
    pub(in crate::tls) fn is_empty(&self) -> bool {
        self.held.is_none() && self.parked.is_empty()
    }

    /// Decrypts into `buf` for as long as there is room and a whole record.
    pub(in crate::tls) fn deliver(
        &mut self,
        session: &mut Session,
        buf: &mut ReadBuf<'_>,
    ) -> Result<Delivery, Error> {
        if self.held.is_none() && !self.parked.is_empty() {
            self.space();
        }
        let Some(held) = &mut self.held else { return Ok(Delivery::Done) };
        while buf.remaining() > 0 {
            if let Some(plain) = &mut held.plain {
                let count = buf.remaining().min(plain.to - plain.from);
                buf.put_slice(&held.buffer[plain.from..plain.from + count]);
                plain.from += count;
                if plain.from == plain.to {
                    held.start = plain.next;
                    held.plain = None;
                }
                continue;
            }
            match held.open(session, buf)? {
                Some(Control::Closed) => return Ok(Delivery::Closed),
                Some(Control::Nothing) => {}
                None => break,
            }
        }
        Ok(Delivery::Done)
    }
}

impl Held {
    /// Opens the record at `start`; `None` when it is not whole.
    fn open(&mut self, session: &mut Session, buf: &mut ReadBuf<'_>) -> Result<Option<Control>, Error> {
        let Some((&header, rest)) = self.buffer[self.start..self.end].split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = sealed_length(header)?;
        if rest.len() < length {
            return Ok(None);
        }
        let body = self.start + HEADER;
        let next = body + length;
        let inner = length - TAG;
        if buf.remaining() >= inner {
            let plain = buf.initialize_unfilled_to(inner);
            let (content, count) = session.receive.open_into(&header, &self.buffer[body..next], plain)?;
            self.start = next;
            if content == Content::Data {
                buf.advance(count);
                return session.data(count).map(|()| Some(Control::Nothing));
            }
            return session.control(content, &plain[..count]).map(Some);
        }
        let (content, count) = session.receive.open_in_place(&header, &mut self.buffer[body..next])?;
        if content == Content::Data {
            session.data(count)?;
            self.plain = Some(Plain { from: body, to: body + count, next });
            return Ok(Some(Control::Nothing));
        }
        self.start = next;
        session.control(content, &self.buffer[body..body + count]).map(Some)
    }
}

/// The length of what follows the header of a record.
fn sealed_length(header: [u8; HEADER]) -> Result<usize, Error> {
    let [kind, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind != Content::Data as u8 {
        return Err(Error::Unexpected("record that is not encrypted"));
    }
    if length > MOST_PLAINTEXT + MOST_EXPANSION {
        return Err(Error::TooLong(length));
    }
    if length <= TAG {
        return Err(Error::Undecryptable);
    }
    Ok(length)
}
