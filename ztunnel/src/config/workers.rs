//! How many workers the proxy has: at start, and whenever the CPUs that it may use become more or fewer (a limit is changed
//! in place, CPUs are taken off line). The rule is the last paragraph of interop.md section 1.3.

use super::quantity::Workers;

/// What the operator wrote, and what was there at start.
#[derive(Clone, Debug)]
pub struct WorkerRule {
    pub(super) threads: Option<Workers>,
    pub(super) concurrency: Option<u16>,
    /// ZTUNNEL_CPU_LIMIT: what the operator wants to be taken for the host's CPUs.
    pub(super) cpu_limit: Option<usize>,
    /// What the pod's resources were at start; the environment does not follow them.
    pub(super) resource_limit: Option<usize>,
    pub(super) resource_request: Option<usize>,
    /// CPUs that this process could use at start, quota included.
    pub(super) cpus: usize,
    /// CPUs that the host may come to have, whoever may use them.
    pub(super) on_host: usize,
}

impl WorkerRule {
    pub fn at_start(&self) -> usize {
        self.count(self.cpus)
    }

    /// As many as `count` gives for any number of CPUs that this host may come to have.
    pub fn most(&self) -> usize {
        (1..=self.on_host).map(|cpus| self.count(cpus)).fold(self.at_start(), usize::max)
    }

    /// With so many CPUs now.
    pub fn count(&self, now: usize) -> usize {
        let resource_limit = match self.resource_limit {
            Some(_) if now != self.cpus => Some(now),
            at_start => at_start,
        };
        let available = if now == self.cpus {
            self.cpu_limit.unwrap_or(now)
        } else {
            self.cpu_limit.map_or(now, |limit| limit.min(now))
        };
        let cpus = resource_limit.unwrap_or(available).max(1);
        let percent = |share: usize| (cpus * share).div_ceil(100).max(1);
        let request = self.resource_request.unwrap_or(0);
        match (self.threads, self.concurrency) {
            (Some(Workers::Count(count)), _) => count,
            (Some(Workers::AllCpus), _) | (None, Some(0)) => cpus,
            (Some(Workers::Percent(share)), _) => percent(share as usize),
            (None, Some(count)) => usize::from(count),
            (None, None) => match resource_limit {
                Some(limit) => limit.max(request),
                None => percent(25).max(request).max(2),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: WorkerRule = WorkerRule {
        threads: None,
        concurrency: None,
        cpu_limit: None,
        resource_limit: None,
        resource_request: None,
        cpus: 16,
        on_host: 64,
    };

    #[test]
    fn follows_the_cpus() {
        assert_eq!([16, 4, 64].map(|cpus| RULE.count(cpus)), [4, 2, 16]);
        assert_eq!(RULE.most(), 16);
        let limited = WorkerRule { resource_limit: Some(2), cpus: 2, ..RULE };
        assert_eq!([2, 6, 1].map(|cpus| limited.count(cpus)), [2, 6, 1]);
        // Of a limit that no quota enforces nothing is known but that it was 3 at start.
        let unenforced = WorkerRule { resource_limit: Some(3), ..RULE };
        assert_eq!(unenforced.at_start(), 3);
        assert_eq!(unenforced.count(15), 15);
        assert_eq!(WorkerRule { on_host: 16, ..unenforced }.most(), 15);
    }

    #[test]
    fn a_number_stays_and_a_limit_of_the_operator_is_not_exceeded() {
        let fixed = WorkerRule { threads: Some(Workers::Count(3)), ..RULE };
        assert_eq!([16, 2, 64].map(|cpus| fixed.count(cpus)), [3, 3, 3]);
        let all = WorkerRule { threads: Some(Workers::AllCpus), cpu_limit: Some(8), ..RULE };
        assert_eq!([16, 4, 64].map(|cpus| all.count(cpus)), [8, 4, 8]);
    }
}
