//! One direction's key.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::{Content, Error, HEADER, OVERHEAD, TAG};

pub(super) struct Cipher {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Cipher {
    pub(super) fn new((sequence, secrets): super::ExtractedKeys) -> Result<Self, rustls::Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(rustls::Error::General("the mesh speaks AES-GCM alone".to_owned())),
        };
        let unusable = || rustls::Error::General("a key of the wrong length".to_owned());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
        let iv = iv.as_ref().try_into().map_err(|_| unusable())?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Records under this key so far.
    pub(super) fn sealed(&self) -> u64 {
        self.sequence
    }

    /// RFC 8446 section 5.3: the sequence number, each used once, XOR the IV.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= part;
        }
        // Keys are replaced after RECORDS_PER_KEY records; a peer that never does would need 2^64.
        self.sequence = self.sequence.checked_add(1).expect("invariant: no key lives for 2^64 records");
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `plain` as one record into the front of `out`; returns its length.
    pub(super) fn seal(&mut self, content: Content, plain: &[u8], out: &mut [u8]) -> usize {
        let (header, body, end) = frame(plain.len(), out);
        let nonce = self.nonce();
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plain, body, &[content as u8], end)
            .expect("invariant: the slices have the lengths that AES-GCM asks for");
        plain.len() + OVERHEAD
    }

    /// Seals the `length` bytes that already stand behind the place of the header.
    pub(super) fn seal_in_place(&mut self, content: Content, length: usize, out: &mut [u8]) -> usize {
        let (header, body, end) = frame(length, out);
        let nonce = self.nonce();
        self.key
            .seal_in_place_scatter(nonce, Aad::from(header), body, &[content as u8], end)
            .expect("invariant: the slices have the lengths that AES-GCM asks for");
        length + OVERHEAD
    }

    /// Opens the record `header` and `sealed` into `plain`, which is as long as the ciphertext without its tag. Returns
    /// what it holds and how many bytes of it.
    pub(super) fn open_into(
        &mut self,
        header: &[u8],
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(Content, usize), Error> {
        let (ciphertext, tag) = sealed.split_at(plain.len());
        let nonce = self.nonce();
        self.key
            .open_separate_gather(nonce, Aad::from(header), ciphertext, tag, plain)
            .map_err(|_| Error::Undecryptable)?;
        content(plain)
    }

    /// The same in place.
    pub(super) fn open_in_place(
        &mut self,
        header: &[u8],
        sealed: &mut [u8],
    ) -> Result<(Content, usize), Error> {
        let nonce = self.nonce();
        let plain =
            self.key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| Error::Undecryptable)?;
        content(plain)
    }
}

/// Writes the header of a record of `length` bytes; returns it, the place of the bytes, and that of type and tag.
fn frame(length: usize, out: &mut [u8]) -> ([u8; HEADER], &mut [u8], &mut [u8]) {
    let sealed = length + 1 + TAG;
    let header = [Content::Data as u8, 3, 3, (sealed >> 8) as u8, sealed as u8];
    out[..HEADER].copy_from_slice(&header);
    let (body, end) = out[HEADER..HEADER + sealed].split_at_mut(length);
    (header, body, end)
}

/// RFC 8446 section 5.4: zeroes at the end are padding, the last other byte is the type.
pub(super) fn content(plain: &[u8]) -> Result<(Content, usize), Error> {
    // Padding included (RFC 8446 section 5.4).
    if plain.len() > super::MOST_PLAINTEXT + 1 {
        return Err(Error::TooLong(plain.len()));
    }
    let at = plain.iter().rposition(|&byte| byte != 0).ok_or(Error::Unexpected("record without a type"))?;
    let content = match plain[at] {
        21 => Content::Alert,
        22 => Content::Handshake,
        23 => Content::Data,
        _ => return Err(Error::Unexpected("record of an unknown type")),
    };
    Ok((content, at))
}
