//! The pace of repairs of one pod. Time is given, not read.

use std::time::Duration;

use tokio::time::Instant;

/// Repairs that follow an earlier one within this time are of the same dispute.
const CALM: Duration = Duration::from_secs(30);
/// Repairs of one dispute until it is called one.
const PATIENCE: u32 = 10;
/// After these the pauses begin.
const AT_ONCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What to do about a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Repair,
    /// Somebody undoes what is repaired; said once in a dispute, and repaired further.
    RepairContested,
    Wait,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Contest {
    repairs: u32,
    last: Option<Instant>,
}

impl Contest {
    /// Asked before a repair; an answer that is not [`Pace::Wait`] counts as one.
    pub(crate) fn pace(&mut self, now: Instant) -> Pace {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_none_or(|since| since >= CALM) {
            self.repairs = 0;
        }
        if since.is_some_and(|since| since < self.pause()) {
            return Pace::Wait;
        }
        self.repairs = self.repairs.saturating_add(1);
        self.last = Some(now);
        if self.repairs == PATIENCE + 1 { Pace::RepairContested } else { Pace::Repair }
    }

    pub(crate) fn is_contested(&self, now: Instant) -> bool {
        let fresh = self.last.is_some_and(|last| now.saturating_duration_since(last) < CALM);
        fresh && self.repairs > PATIENCE
    }

    fn pause(&self) -> Duration {
        match self.repairs.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(further) => FIRST_PAUSE.saturating_mul(1 << further.min(8)).min(LAST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_slow_down_and_are_called_contested_once() {
        let (mut contest, start) = (Contest::default(), Instant::now());
        let mut now = start;
        let mut contested = 0;
        for repair in 0..20 {
            let asked = now;
            let pace = loop {
                match contest.pace(now) {
                    Pace::Wait => now += Duration::from_millis(10),
                    pace => break pace,
                }
            };
            assert!(now - asked <= LAST_PAUSE, "repair {repair} waited {:?}", now - asked);
            contested += u32::from(pace == Pace::RepairContested);
            assert_eq!(contest.is_contested(now), repair >= 10);
        }
        assert_eq!(contested, 1);
        assert!(now - start > Duration::from_secs(5), "it slowed down");
        assert!(!contest.is_contested(now + CALM));
        assert_eq!(contest.pace(now + CALM), Pace::Repair);
    }
}
