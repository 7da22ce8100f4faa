//! When to ask the CA for one identity's certificate. Pure: the caller brings the time and the jitter.
//!
//! Renewal comes at half life, up to a tenth of the lifetime earlier, so that pods enrolled together do not renew
//! together. Failures back off: about 1 s, doubled, at most 150 s (interop.md section 5.5). That bound alone would let a
//! short certificate end, or leave its pods without one long after the CA is back. So the bound shrinks with what is left:
//! a thirtieth of the remaining life, at least 1 s, which is 150 s until 75 minutes before the end and about 1 s in the
//! last half minute. After the end, when pods are refused, it is a sixtieth of the lifetime between 1 s and 10 s. While a
//! certificate is valid the next attempt is never later than its end.
//!
//! A wait counts from the beginning of the request that failed: one that hung until its deadline, because the CA is cut
//! off rather than down, has waited already. So near the end it is always about 1 s from one attempt to connect to the next.
//!
//! A CA that answers anybody is back for everybody: `hurry` then spreads what was put off over the next second.

use std::time::{Duration, SystemTime};

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(150);
const BACKOFF_FLOOR: Duration = Duration::from_millis(200);
/// The bound near the end of a certificate.
const BACKOFF_NEAR_END: Duration = Duration::from_secs(1);
const BACKOFF_AFTER_END: Duration = Duration::from_secs(10);
/// In which the requests that waited for the CA's return are spread.
const HURRY: Duration = Duration::from_secs(1);
const BACKOFF_JITTER: f64 = 0.2;

/// The life of a certificate as its two dates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    pub fn is_over(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

/// When the next request for one identity is due.
#[derive(Clone, Debug)]
pub struct Schedule {
    set_at: SystemTime,
    due: SystemTime,
    /// The beginning of the request that runs.
    began: Option<SystemTime>,
    failures: u32,
    current: Option<Validity>,
}

impl Schedule {
    /// A new identity is due at once.
    pub fn new(now: SystemTime) -> Self {
        Self { set_at: now, due: now, began: None, failures: 0, current: None }
    }

    /// How long until the next request; zero when it is due.
    pub fn wait(&self, now: SystemTime) -> Duration {
        match now.duration_since(self.set_at) {
            Ok(_) => self.due.duration_since(now).unwrap_or_default(),
            // The clock was set back past the moment of planning. The plan means nothing any more, and asking once too
            // often is cheaper than sleeping for as long as the clock jumped.
            Err(_) => Duration::ZERO,
        }
    }

    /// The moment planned for the next request.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// A request begins.
    pub fn started(&mut self, now: SystemTime) {
        self.began = Some(now);
    }

    /// A certificate came. `jitter` lies in 0..1.
    pub fn succeeded(&mut self, now: SystemTime, validity: Validity, jitter: f64) {
        let lifetime = validity.lifetime();
        let half_life = validity.not_before + lifetime / 2;
        let early = lifetime.mul_f64(0.1 * jitter.clamp(0.0, 1.0));
        // A CA that answers with a certificate past its half life must not be asked in a tight loop for a better one.
        let left = validity.not_after.duration_since(now).unwrap_or_default();
        let soonest = now + (lifetime / 20).min(left / 2).max(BACKOFF_FLOOR);
        let due = (half_life - early).max(soonest);
        *self = Self { set_at: now, due, began: None, failures: 0, current: Some(validity) };
    }

    /// The request failed. `jitter` lies in 0..1. Tells how long until the next one.
    pub fn failed(&mut self, now: SystemTime, jitter: f64) -> Duration {
        let cap = self.cap(now);
        let doubled = BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let spread = 1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * jitter.clamp(0.0, 1.0);
        let began = self.began.take().unwrap_or(now);
        let spent = now.duration_since(began).unwrap_or_default();
        let delay = doubled.min(cap).mul_f64(spread).min(cap);
        let delay = delay.saturating_sub(spent).max(BACKOFF_FLOOR.mul_f64(spread));
        self.failures = self.failures.saturating_add(1);
        let until_end = self.current.and_then(|validity| validity.not_after.duration_since(now).ok());
        let delay = match until_end {
            Some(left) if left > Duration::ZERO => delay.min(left),
            _ => delay,
        };
        self.set_at = now;
        self.due = now + delay;
        delay
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Brings a request that was put off forward. `jitter` lies in 0..1.
    pub fn hurry(&mut self, now: SystemTime, jitter: f64) {
        let soon = now + HURRY.mul_f64(jitter.clamp(0.0, 1.0));
        if soon < self.due {
            (self.set_at, self.due) = (now, soon);
        }
    }

    fn cap(&self, now: SystemTime) -> Duration {
        let Some(validity) = self.current else { return BACKOFF_CAP };
        match validity.not_after.duration_since(now) {
            Ok(left) if !left.is_zero() => (left / 30).clamp(BACKOFF_NEAR_END, BACKOFF_CAP),
            _ => (validity.lifetime() / 60).clamp(BACKOFF_NEAR_END, BACKOFF_AFTER_END),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn validity(not_before: SystemTime, lifetime: Duration) -> Validity {
        Validity { not_before, not_after: not_before + lifetime }
    }

    #[test]
    fn a_new_identity_is_due_at_once() {
        assert_eq!(Schedule::new(start()).wait(start()), Duration::ZERO);
    }

    #[test]
    fn renewal_is_at_half_life_or_up_to_a_tenth_earlier() {
        let mut schedule = Schedule::new(start());
        schedule.succeeded(start(), validity(start(), 24 * HOUR), 0.0);
        assert_eq!(schedule.wait(start()), 12 * HOUR);
        schedule.succeeded(start(), validity(start(), 24 * HOUR), 1.0);
        assert_eq!(schedule.wait(start()).as_secs(), (24 * HOUR).as_secs() * 4 / 10);
        assert_eq!(schedule.wait(start() + 13 * HOUR), Duration::ZERO);
    }

    #[test]
    fn a_certificate_past_its_half_life_does_not_make_a_tight_loop() {
        let mut schedule = Schedule::new(start());
        schedule.succeeded(start(), validity(start() - 20 * HOUR, 24 * HOUR), 0.0);
        assert_eq!(schedule.wait(start()), 24 * HOUR / 20);
        schedule.succeeded(start(), validity(start() - 24 * HOUR, 24 * HOUR), 0.0);
        assert_eq!(schedule.wait(start()), BACKOFF_FLOOR);
    }

    #[test]
    fn failures_double_the_wait_up_to_the_cap_within_the_jitter() {
        for (jitter, factor) in [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)] {
            let mut schedule = Schedule::new(start());
            let mut now = start();
            for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0, 150.0] {
                let wait = schedule.failed(now, jitter);
                let expected = f64::min(expected * factor, 150.0);
                assert!((wait.as_secs_f64() - expected).abs() < 0.001, "{wait:?} is not about {expected} s");
                assert_eq!(schedule.wait(now), wait);
                now += wait;
                assert_eq!(schedule.wait(now), Duration::ZERO);
            }
        }
        let mut schedule = Schedule::new(start());
        for _ in 0..100 {
            assert!(schedule.failed(start(), 1.0) <= BACKOFF_CAP);
        }
    }

    #[test]
    fn success_resets_the_back_off() {
        let mut schedule = Schedule::new(start());
        for _ in 0..5 {
            schedule.failed(start(), 0.5);
        }
        schedule.succeeded(start(), validity(start(), 24 * HOUR), 0.5);
        assert_eq!(schedule.failures(), 0);
        assert_eq!(schedule.failed(start() + 12 * HOUR, 0.5), BACKOFF_FIRST);
    }

    #[test]
    fn a_short_certificate_is_tried_every_second_before_and_after_its_end() {
        let lifetime = Duration::from_secs(60);
        let mut schedule = Schedule::new(start());
        schedule.succeeded(start(), validity(start(), lifetime), 0.0);
        let mut now = start() + schedule.wait(start());
        let mut attempts = 0;
        while now < start() + lifetime {
            let wait = schedule.failed(now, 0.5);
            assert!(wait <= BACKOFF_NEAR_END, "{wait:?} is too long for {lifetime:?}");
            now += wait;
            attempts += 1;
        }
        assert!(attempts >= 25, "only {attempts} attempts before the end");
        for _ in 0..100 {
            let wait = schedule.failed(now, 1.0);
            assert!(
                wait <= BACKOFF_NEAR_END,
                "{wait:?}: its pods are refused, so it is not waited longer than before"
            );
            now += wait;
        }
    }

    #[test]
    fn a_long_certificate_is_tried_more_often_as_its_end_comes_near() {
        let mut schedule = Schedule::new(start());
        schedule.succeeded(start(), validity(start(), 24 * HOUR), 0.0);
        let mut bound = |left: Duration| {
            (0..20).map(|_| schedule.failed(start() + 24 * HOUR - left, 1.0)).max().unwrap_or_default()
        };
        assert_eq!(bound(12 * HOUR), BACKOFF_CAP);
        assert_eq!(bound(HOUR / 2), Duration::from_secs(60));
        assert_eq!(bound(Duration::from_secs(30)), BACKOFF_NEAR_END);
        assert_eq!(bound(Duration::ZERO), BACKOFF_AFTER_END);
    }

    #[test]
    fn a_request_that_hung_has_waited_already() {
        let (second, hung) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut schedule = Schedule::new(start());
        let mut wait = |spent: Duration, jitter: f64| {
            schedule.started(start());
            schedule.failed(start() + spent, jitter)
        };
        assert_eq!(wait(second / 4, 0.5), BACKOFF_FIRST - second / 4);
        assert_eq!(wait(hung, 0.5), BACKOFF_FLOOR, "there is always a pause");
        assert_ne!(wait(2 * hung, 0.0), wait(10 * hung, 1.0), "and not the same for all");
        for _ in 0..9 {
            wait(hung, 0.5);
        }
        assert_eq!(wait(hung, 0.5), BACKOFF_CAP - hung);
        assert_eq!(schedule.failed(start(), 0.5), BACKOFF_CAP, "each request counts by itself");
    }

    #[test]
    fn hurry_brings_forward_and_never_puts_off() {
        let mut schedule = Schedule::new(start());
        for _ in 0..9 {
            schedule.failed(start(), 0.5);
        }
        schedule.hurry(start(), 0.5);
        assert_eq!(schedule.wait(start()), HURRY / 2);
        schedule.hurry(start(), 1.0);
        assert_eq!(schedule.wait(start()), HURRY / 2);
    }

    #[test]
    fn the_next_attempt_is_never_later_than_the_end_of_a_valid_certificate() {
        let mut schedule = Schedule::new(start());
        schedule.succeeded(start(), validity(start(), HOUR), 0.0);
        for _ in 0..9 {
            schedule.failed(start() + HOUR / 2, 0.5);
        }
        let end = start() + HOUR;
        let left = Duration::from_millis(700);
        assert_eq!(schedule.failed(end - left, 0.5), left);
        assert!(schedule.failed(end, 0.5) > left, "at its end the certificate no longer counts");
    }

    #[test]
    fn a_clock_set_back_does_not_put_the_request_off() {
        let mut schedule = Schedule::new(start());
        schedule.failed(start(), 0.5);
        assert_eq!(schedule.wait(start() - HOUR), Duration::ZERO);
    }
}
