//! What the pods' captures come to, in numbers.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) captures: u64,
    /// By class of error.
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// By kind of damage.
    pub(crate) repairs: BTreeMap<&'static str, u64>,
    pub(crate) audits: u64,
    pub(crate) audit_time: Duration,
    /// Times that chains of others were found in the way.
    pub(crate) foreign: u64,
}
