//! How much memory connections may take: what the operator wrote, or else a share of what the process may have.

use serde::Serialize;

/// Of 100: what is left is for what comes at once, before accepting slows down.
const OF_LIMIT: u64 = 85;

/// In bytes; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryRule {
    /// MEMORY_BUDGET
    pub(super) process: Option<u64>,
    /// POD_MEMORY_BUDGET
    pub(super) pod: Option<u64>,
}

impl MemoryRule {
    /// The budgets of the process and of each pod, where the process may have `limit` bytes.
    pub fn budgets(&self, limit: Option<u64>) -> (Option<u64>, Option<u64>) {
        let bound = |written: Option<u64>, default| match written {
            Some(bytes) => (bytes > 0).then_some(bytes),
            None => default,
        };
        let process = bound(self.process, limit.map(|limit| limit / 100 * OF_LIMIT));
        (process, bound(self.pod, process.map(|process| process / 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_limit_unless_written() {
        let rule = |process, pod| MemoryRule { process, pod };
        assert_eq!(rule(None, None).budgets(None), (None, None));
        assert_eq!(rule(None, None).budgets(Some(1000)), (Some(850), Some(425)));
        assert_eq!(rule(Some(0), None).budgets(Some(1000)), (None, None));
        assert_eq!(rule(Some(400), None).budgets(Some(1000)), (Some(400), Some(200)));
        assert_eq!(rule(None, Some(0)).budgets(Some(1000)), (Some(850), None));
        assert_eq!(rule(None, Some(7)).budgets(None), (None, Some(7)));
    }
}
