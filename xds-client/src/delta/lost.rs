//! What goes wrong on a stream.

use std::time::Duration;

use tonic::{Code, Status};

use crate::backoff::End;
use crate::resource::TypeUrl;

/// Why there is no stream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    #[error("{0}")]
    NotConnected(String),
    #[error("the server ended the stream with {:?}: {}", .0.code(), .0.message())]
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
    #[error(
        "the server sent {resources} resources of type \"{type_url}\", which nobody subscribed to; acknowledged"
    )]
    UnknownType { type_url: TypeUrl, resources: usize },
    #[error("a response of type \"{0}\" came without a stream")]
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

    /// Go and Rust servers refuse a request for its size with different codes.
    pub(super) fn too_large(&self) -> bool {
        matches!(self, Self::Status(status) if matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange))
    }
}

fn list(types: &[TypeUrl]) -> String {
    types.iter().map(TypeUrl::as_str).collect::<Vec<_>>().join(", ")
}
