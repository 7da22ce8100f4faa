//! W3C trace context of one connection (Trace Context, section 3.2): made at the source, carried in the CONNECT, logged
//! at both ends. Nothing is sampled or exported.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    span: u64,
    flags: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct NotATrace;

impl Trace {
    /// A new trace, not sampled.
    pub fn random() -> Self {
        let mut random = rand::rng();
        Self { id: random.random_range(1..=u128::MAX), span: random.random_range(1..=u64::MAX), flags: 0 }
    }

    /// What both ends of a connection have in common in their logs.
    pub fn id(self) -> impl fmt::Display {
        struct Id(u128);
        impl fmt::Display for Id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        Id(self.id)
    }
}

/// As a `traceparent` header.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.span, self.flags)
    }
}

impl FromStr for Trace {
    type Err = NotATrace;

    fn from_str(text: &str) -> Result<Self, NotATrace> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        let digits = |byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f');
        if lengths != [2, 32, 16, 2] || !text.starts_with("00") || !text.bytes().all(digits) {
            return Err(NotATrace);
        }
        let id = u128::from_str_radix(&text[3..35], 16).map_err(|_| NotATrace)?;
        let span = u64::from_str_radix(&text[36..52], 16).map_err(|_| NotATrace)?;
        let flags = u8::from_str_radix(&text[53..], 16).map_err(|_| NotATrace)?;
        if id == 0 || span == 0 { Err(NotATrace) } else { Ok(Self { id, span, flags }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let trace = Trace::random();
        assert_eq!(trace.to_string().parse(), Ok(trace));
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read: Trace = example.parse().expect("the example of the specification");
        assert_eq!(read.to_string(), example);
        assert_eq!(read.id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        for wrong in [
            "",
            "00-xyz",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ü",
        ] {
            assert_eq!(wrong.parse::<Trace>(), Err(NotATrace), "{wrong}");
        }
    }
}
