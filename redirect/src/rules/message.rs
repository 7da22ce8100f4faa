//! Encodes netlink messages: a header, a family header, attributes (linux/netlink.h).

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;

pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;
pub const DUMP: u16 = 0x300;

/// One message, without its sequence number.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it asks for, in words that an error message can use.
    pub subject: String,
    pub kind: u16,
    pub flags: u16,
    body: Vec<u8>,
}

impl Message {
    pub fn new(subject: impl Into<String>, kind: u16, flags: u16, family_header: &[u8]) -> Self {
        Self { subject: subject.into(), kind, flags: flags | REQUEST, body: family_header.to_vec() }
    }

    pub fn with(mut self, attributes: &Attributes) -> Self {
        self.body.extend_from_slice(&attributes.0);
        self
    }

    pub fn encode(&self, sequence: u32, buffer: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).expect("invariant: our messages are small");
        buffer.extend_from_slice(&length.to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&self.flags.to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&self.body);
        pad(buffer);
    }
}

/// Attributes in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length =
            u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("invariant: our attributes are small");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
        self
    }

    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    /// As nfnetlink has its numbers.
    pub fn big_endian(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// As rtnetlink has its numbers.
    pub fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Attributes of a received message, as (kind without flags, value). Ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Messages of one received datagram, as (kind, flags, sequence number, body). Ends at the first malformed one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(word(0)).ok()?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((half(4), half(6), word(8), body))
    })
}

/// A number of an attribute in network byte order, as nfnetlink has them.
pub fn big_endian(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Text of an attribute, up to its end.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn pad(buffer: &mut Vec<u8>) {
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_encodes() {
        let inner = Attributes::new().text(1, "ab");
        let sent = Attributes::new().big_endian(7, 0x111).nested(2, &inner);
        let mut buffer = Vec::new();
        Message::new("x", 9, ACK, &[1, 2, 3, 4]).with(&sent).encode(5, &mut buffer);
        Message::new("y", 10, 0, &[]).encode(6, &mut buffer);
        let found: Vec<_> = messages(&buffer).collect();
        assert_eq!((found[0].0, found[0].1, found[0].2), (9, ACK | REQUEST, 5));
        assert_eq!((found[1].0, found[1].2, found[1].3.len()), (10, 6, 0));
        let found: Vec<_> = attributes(&found[0].3[4..]).collect();
        assert_eq!(found[0], (7, &[0, 0, 1, 0x11][..]));
        assert_eq!(attributes(found[1].1).next(), Some((1, &b"ab\0"[..])));
    }

    #[test]
    fn truncated_input_ends_the_iteration() {
        let mut buffer = Vec::new();
        Message::new("x", 9, 0, &[]).with(&Attributes::new().text(1, "abcdef")).encode(1, &mut buffer);
        assert_eq!(messages(&buffer[..buffer.len() - 1]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0, 9]).count(), 0);
    }
}
