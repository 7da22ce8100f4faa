//! What the tour found.

use serde::Serialize;

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub promise: &'static str,
    pub holds: bool,
    pub seen: String,
    /// Whether it is about speed, and so about this machine too.
    pub measured: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
    pub seconds: f64,
    #[serde(skip)]
    aloud: bool,
}

impl Report {
    pub(super) fn new(aloud: bool) -> Self {
        Self { checks: Vec::new(), seconds: 0.0, aloud }
    }

    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: texts and numbers are JSON")
    }

    pub(super) fn say(&self, text: &str) {
        if self.aloud {
            println!("{text}");
        }
    }

    pub(super) fn check(&mut self, promise: &'static str, holds: bool, seen: String) {
        self.say(&format!("  {} {promise}: {seen}", if holds { "ok  " } else { "FAIL" }));
        self.checks.push(Check { promise, holds, seen, measured: false });
    }

    /// A check that depends on how fast this machine is just now.
    pub(super) fn measured(&mut self, promise: &'static str, holds: bool, seen: String) {
        self.check(promise, holds, seen);
        if let Some(check) = self.checks.last_mut() {
            check.measured = true;
        }
    }

    pub(super) fn finish(&self) {
        let failed = self.checks.iter().filter(|check| !check.holds).count();
        self.say(&format!("\n{:<62} {:<5} SEEN", "PROMISE", "HELD"));
        for Check { promise, holds, seen, .. } in &self.checks {
            let short: String = seen.chars().take(100).collect();
            self.say(&format!("{promise:<62} {:<5} {short}", if *holds { "yes" } else { "NO" }));
        }
        self.say(&format!("\n{} promises, {failed} not kept, {:.1} s", self.checks.len(), self.seconds));
    }
}
