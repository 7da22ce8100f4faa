//! How far a run is, on standard error: a bar for who looks at a terminal, and a line for each scenario where it is kept.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::scenario::Scenario;

pub struct Progress {
    bar: Option<ProgressBar>,
    takes: Duration,
    rounds: usize,
}

impl Progress {
    pub fn new(takes: Duration, rounds: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {elapsed} of about {msg}");
            ProgressBar::new(takes.as_millis() as u64)
                .with_style(style.expect("invariant: this template is right"))
        });
        Self { bar, takes, rounds }
    }

    pub fn begins(&self, round: usize, variant: &str, scenario: &Scenario) {
        let at = format!("round {} of {}, {variant}: {scenario}", round + 1, self.rounds);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{:.0?}; {at}", self.takes)),
            None => eprintln!("{at}"),
        }
    }

    pub fn passed(&self, time: Duration) {
        self.bar.iter().for_each(|bar| bar.inc(time.as_millis() as u64));
    }

    pub fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}
