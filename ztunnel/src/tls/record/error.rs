use rustls::AlertDescription;

/// Why the records of a peer end the connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("a TLS record does not decrypt")]
    Undecryptable,
    #[error("a TLS record of {0} bytes is longer than any may be")]
    TooLong(usize),
    #[error("unexpected in TLS: {0}")]
    Unexpected(&'static str),
    #[error("malformed in TLS: {0}")]
    Malformed(&'static str),
    #[error("not allowed in TLS: {0}")]
    Illegal(&'static str),
    #[error("the peer ended the connection with the TLS alert {0:?}")]
    Alert(AlertDescription),
    #[error("the TLS keys cannot be replaced: {0}")]
    Keys(rustls::Error),
}

impl Error {
    /// What the peer is told (RFC 8446 section 6.2); nothing, when it was the peer that told.
    pub(crate) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Undecryptable => Some(AlertDescription::BadRecordMac),
            Self::TooLong(_) => Some(AlertDescription::RecordOverflow),
            Self::Unexpected(_) => Some(AlertDescription::UnexpectedMessage),
            Self::Illegal(_) => Some(AlertDescription::IllegalParameter),
            Self::Malformed(_) => Some(AlertDescription::DecodeError),
            Self::Keys(_) => Some(AlertDescription::InternalError),
            Self::Alert(_) => None,
        }
    }
}
