//! Which scenarios are run, for how long and how often.

use std::time::Duration;

use clap::ValueEnum;
use ztunnel_lab::bulk::Direction::{Down, Up};

use crate::bed::Place::{Far, Near};
use crate::scenario::Scenario;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// A minute: whether what SPECIFICATION.md promises holds at all
    Smoke,
    /// Some minutes: the figures that are compared first
    Quick,
    /// All that there is
    Full,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// Of one scenario.
    pub fn time(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(1),
            Self::Quick => Duration::from_secs(2),
            Self::Full => Duration::from_secs(4),
        }
    }

    pub fn scenarios(self) -> Vec<Scenario> {
        let bulk = |streams, direction| Scenario::Bulk { streams, direction, place: Far };
        let requests = |connections| Scenario::Requests { connections, place: Far };
        let smoke = vec![
            bulk(8, Up),
            Scenario::PingPong { place: Far },
            requests(32),
            Scenario::Connections { at_once: 32 },
        ];
        let mut quick = vec![bulk(1, Up), bulk(1, Down)];
        quick.extend(smoke.iter().copied());
        quick.extend([
            Scenario::Bulk { streams: 1, direction: Up, place: Near },
            Scenario::Idle { connections: 2000 },
            Scenario::StalledReader,
            Scenario::ElephantAndMouse,
        ]);
        match self {
            Self::Smoke => smoke,
            Self::Quick => quick,
            Self::Full => {
                let mut full = quick;
                full.extend([bulk(8, Down), bulk(64, Up), bulk(64, Down)]);
                full.extend([1, 8, 128, 512].map(requests));
                full.extend([2000.0, 8000.0].map(|rate| Scenario::Paced { connections: 32, rate }));
                full.extend([
                    Scenario::Connections { at_once: 1 },
                    Scenario::Bulk { streams: 8, direction: Up, place: Near },
                    Scenario::PingPong { place: Near },
                    Scenario::Requests { connections: 32, place: Near },
                    // Both ends are in this process, whose descriptors end at 20,000 where nobody says otherwise.
                    Scenario::Idle { connections: 8_000 },
                ]);
                full
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suite_has_what_the_shorter_one_has_and_nothing_twice() {
        let suites = [Suite::Smoke, Suite::Quick, Suite::Full].map(Suite::scenarios);
        for pair in suites.windows(2) {
            assert!(pair[0].iter().all(|one| pair[1].contains(one)));
        }
        let mut names: Vec<String> = suites[2].iter().map(ToString::to_string).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
