//! How many certificates were issued, and how many requests refused for which reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a request was refused, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    TokenMissing,
    TokenUnknown,
    TokenExpired,
    /// The token is of an account that no proxy runs as.
    TokenNoProxy,
    /// Who says whose a token is cannot be asked.
    TokenUnchecked,
    /// The node runs no pod of the identity.
    NotOnNode,
    Revoked,
    /// The call or its CSR cannot be read.
    Malformed,
    Signature,
    Key,
    Names,
    /// The call asks for another identity than the CSR.
    Mismatch,
    Validity,
    /// The CA's own fault.
    Internal,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::TokenMissing,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenNoProxy,
        Self::TokenUnchecked,
        Self::NotOnNode,
        Self::Revoked,
        Self::Malformed,
        Self::Signature,
        Self::Key,
        Self::Names,
        Self::Mismatch,
        Self::Validity,
        Self::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired => "token_expired",
            Self::TokenNoProxy => "token_no_proxy",
            Self::TokenUnchecked => "token_unchecked",
            Self::NotOnNode => "not_on_node",
            Self::Revoked => "revoked",
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Key => "key",
            Self::Names => "names",
            Self::Mismatch => "mismatch",
            Self::Validity => "validity",
            Self::Internal => "internal",
        }
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    issued: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    rotations: AtomicU64,
    unusable: AtomicU64,
}

impl Counters {
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    /// Sets of signing material that were taken into use since the start.
    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    /// Looks at files (signing material, revocations) that were unusable.
    pub fn unusable(&self) -> u64 {
        self.unusable.load(Ordering::Relaxed)
    }

    pub(super) fn count_issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_rotation(&self) {
        self.rotations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_unusable(&self) {
        self.unusable.fetch_add(1, Ordering::Relaxed);
    }
}
