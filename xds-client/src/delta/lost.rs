//! What goes wrong on a stream.

use std::time::Duration;

use tonic::{Code, Status};

use crate::backoff::End;
use crate::resource::TypeUrl;

const LONGEST_TEXT: usize = 512;

/// Why there is no stream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    #[error("{0}")]
    NotConnected(String),
    #[error("the server ended the stream with {:?}: {}", .0.code(), foreign(.0.message()))]
    Status(Box<Status>),
    #[error("the server closed the stream")]
    Closed,
    #[error("the server answered nothing for {} in {} s", list(.types), .waited.as_secs())]
    Silent { types: Vec<TypeUrl>, waited: Duration },
    #[error("the server did not read its requests for {} s", .waited.as_secs())]
    Stuck { waited: Duration },
}

/// A response that the consumer gets nothing of.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unexpected {
    #[error("the server sent {resources} resources of type \"{}\", which nobody subscribed to; acknowledged", foreign(.type_url.as_str()))]
    UnknownType { type_url: TypeUrl, resources: usize },
    #[error("a response of type \"{}\" came without a stream", foreign(.0.as_str()))]
    NoStream(TypeUrl),
}

impl Lost {
    /// Whether this happens to every stream at some time.
    pub fn end(&self) -> End {
        match self {
            Self::Closed => End::Ordinary,
            Self::Status(status) => End::of(status),
            Self::NotConnected(_) | Self::Silent { .. } | Self::Stuck { .. } => End::Failure,
        }
    }

    /// Whether a request was refused for its size. The code alone does not tell: istiod says ResourceExhausted as well
    /// when it is asked too often.
    pub(super) fn too_large(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let says = |text| status.message().contains(text);
        match status.code() {
            // Go, Rust.
            Code::ResourceExhausted => says("larger than max"),
            Code::OutOfRange => says("too large"),
            _ => false,
        }
    }
}

fn list(types: &[TypeUrl]) -> String {
    types.iter().map(TypeUrl::as_str).collect::<Vec<_>>().join(", ")
}

/// A text of the server's for a log line of ours.
fn foreign(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_TEXT)].escape_debug().to_string()
}
