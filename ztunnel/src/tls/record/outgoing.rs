//! Ciphertext on its way out.

use std::io::IoSlice;

use super::cipher::Cipher;
use super::{Content, Error, HEADER, MOST_PLAINTEXT, OVERHEAD, Session};
use crate::io::spare::Buffer;

/// Kept free behind the data, for a KeyUpdate and a last alert.
const RESERVE: usize = 3 * (OVERHEAD + 8);

/// From here on it is sent before more is sealed.
const MUCH: usize = 64 * 1024;

/// What was sealed and not yet sent; holds a buffer only while there is something.
#[derive(Default)]
pub(in crate::tls) struct Outgoing {
    held: Option<Held>,
}

struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Outgoing {
    pub(in crate::tls) fn unsent(&self) -> &[u8] {
        self.held.as_ref().map_or(&[], |held| &held.buffer[held.start..held.end])
    }

    pub(in crate::tls) fn is_filling(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.end >= MUCH)
    }

    pub(in crate::tls) fn sent(&mut self, count: usize) {
        if let Some(held) = &mut self.held {
            held.start += count;
            if held.start == held.end {
                self.held = None;
            }
        }
    }

    /// Seals as much of `pieces` as there is room for; returns how many bytes. Small pieces share a record; a large one
    /// starts its own and is not copied first.
    pub(in crate::tls) fn seal(
        &mut self,
        session: &mut Session,
        pieces: &[IoSlice<'_>],
    ) -> Result<usize, Error> {
        let held = self.held();
        if session.must_update() {
            held.update_keys(session)?;
        }
        let cipher = &mut session.transmit;
        let (mut staged, mut taken) = (0, 0);
        let mut pieces = pieces.iter().map(|piece| &**piece).filter(|piece| !piece.is_empty()).peekable();
        while let Some(piece) = pieces.next() {
            if staged > 0 && !held.fits(staged + piece.len()) {
                held.seal_staged(cipher, &mut staged);
            }
            let shared = staged > 0 || pieces.peek().is_some_and(|next| held.fits(piece.len() + next.len()));
            if shared && held.fits(staged + piece.len()) {
                held.stage(piece, &mut staged);
                taken += piece.len();
                continue;
            }
            let sealed = held.seal_all(cipher, piece);
            taken += sealed;
            if sealed < piece.len() {
                break;
            }
        }
        held.seal_staged(cipher, &mut staged);
        if held.end == 0 {
            self.held = None;
        }
        Ok(taken)
    }

    /// Sends the KeyUpdate that the peer asked for, without waiting for data to go with it.
    pub(in crate::tls) fn answer_update(&mut self, session: &mut Session) -> Result<(), Error> {
        // One answers any number of requests (RFC 8446 section 4.6.3), so what is unsent goes first.
        if session.owes_update && self.held.is_none() {
            self.held().update_keys(session)?;
        }
        Ok(())
    }

    /// The last record: close_notify, or the alert that says what the peer did wrong.
    pub(in crate::tls) fn alert(&mut self, session: &mut Session, alert: rustls::AlertDescription) {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if alert == rustls::AlertDescription::CloseNotify { WARNING } else { FATAL };
        self.held().append(&mut session.transmit, Content::Alert, &[level, alert.into()]);
    }

    fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_with(|| Held { buffer: Buffer::take(), start: 0, end: 0 })
    }
}

impl Held {
    fn room(&self) -> usize {
        self.buffer.len().saturating_sub(RESERVE + OVERHEAD + self.end)
    }

    /// Whether this many bytes fit into one record.
    fn fits(&self, count: usize) -> bool {
        count <= self.room().min(MOST_PLAINTEXT)
    }

    fn stage(&mut self, piece: &[u8], staged: &mut usize) {
        let at = self.end + HEADER + *staged;
        self.buffer[at..at + piece.len()].copy_from_slice(piece);
        *staged += piece.len();
    }

    fn seal_staged(&mut self, cipher: &mut Cipher, staged: &mut usize) {
        let length = std::mem::take(staged);
        if length > 0 {
            self.end += cipher.seal_in_place(Content::Data, length, &mut self.buffer[self.end..]);
        }
    }

    fn seal_all(&mut self, cipher: &mut Cipher, piece: &[u8]) -> usize {
        let mut rest = piece;
        while !rest.is_empty() && self.room() > 0 {
            let (record, after) = rest.split_at(rest.len().min(MOST_PLAINTEXT).min(self.room()));
            self.append(cipher, Content::Data, record);
            rest = after;
        }
        piece.len() - rest.len()
    }

    fn append(&mut self, cipher: &mut Cipher, content: Content, bytes: &[u8]) {
        self.end += cipher.seal(content, bytes, &mut self.buffer[self.end..]);
    }

    fn update_keys(&mut self, session: &mut Session) -> Result<(), Error> {
        // KeyUpdate, one byte long, update_not_requested (RFC 8446 section 4.6.3).
        self.append(&mut session.transmit, Content::Handshake, &[24, 0, 0, 1, 0]);
        session.transmit = session.secrets.next_transmit().and_then(Cipher::new).map_err(Error::Keys)?;
        session.owes_update = false;
        Ok(())
    }
}
