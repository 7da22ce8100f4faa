//! Rounds: in each, every variant gets a new bed, in turns, so that a slow moment of the machine meets all of them.

use std::fs;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bed::{self, Bed};
use crate::figures::{Machine, Run, Sample, VariantName};
use crate::interrupt::Interrupt;
use crate::scenario::{Outcome, Scenario};
use crate::variant::Variant;

/// What is to be run.
#[derive(Debug)]
pub struct Plan {
    pub suite: String,
    pub scenarios: Vec<Scenario>,
    pub time: Duration,
    pub rounds: usize,
    pub congestion: String,
    pub variants: Vec<Variant>,
}

/// For a bed to come up.
const BED: Duration = Duration::from_secs(2);

impl Plan {
    /// How long it takes, about.
    pub fn takes(&self) -> Duration {
        let beds = self.variants.iter().flat_map(|variant| self.beds(variant));
        let one: Duration =
            beds.map(|bed| BED + bed.iter().map(|one| one.takes(self.time)).sum::<Duration>()).sum();
        one * u32::try_from(self.rounds).unwrap_or(u32::MAX)
    }

    /// The scenarios that a variant runs, by the beds they run on.
    fn beds(&self, variant: &Variant) -> Vec<Vec<&Scenario>> {
        let all = self.scenarios.iter().filter(|scenario| variant.measures(scenario));
        let (apart, together): (Vec<_>, Vec<_>) = all.partition(|scenario| scenario.wants_own_bed());
        let apart = apart.into_iter().map(|one| vec![one]);
        [together].into_iter().chain(apart).filter(|bed| !bed.is_empty()).collect()
    }

    /// What fails is told in its sample. A bed that does not come up in the first round ends the run: it was described wrong.
    pub fn run(&self, interrupt: &Interrupt) -> Result<Run, bed::Error> {
        let bar = ProgressBar::new(self.takes().as_millis() as u64);
        let style = ProgressStyle::with_template("{bar:40} {elapsed} of about {msg}");
        bar.set_style(style.expect("invariant: this template is right"));
        let mut samples = Vec::new();
        let started = OffsetDateTime::now_utc();
        for round in 0..self.rounds {
            for turn in 0..self.variants.len() {
                let variant = &self.variants[(turn + round) % self.variants.len()];
                for scenarios in self.beds(variant) {
                    self.run_bed(&scenarios, variant, round, &bar, interrupt, &mut samples)?;
                }
            }
        }
        bar.finish_and_clear();
        // By scenario, as the suite has them, and not by who was first.
        let place =
            |sample: &Sample| self.scenarios.iter().position(|one| one.to_string() == sample.scenario);
        samples.sort_by_key(place);
        Ok(Run {
            machine: machine(),
            started: started.format(&Rfc3339).unwrap_or_default(),
            suite: self.suite.clone(),
            rounds: self.rounds,
            congestion: self.congestion.clone(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            variants: self
                .variants
                .iter()
                .map(|variant| VariantName { name: variant.name().to_owned(), kind: variant.kind() })
                .collect(),
            samples,
        })
    }
}

impl Plan {
    fn run_bed(
        &self,
        scenarios: &[&Scenario],
        variant: &Variant,
        round: usize,
        bar: &ProgressBar,
        interrupt: &Interrupt,
        samples: &mut Vec<Sample>,
    ) -> Result<(), bed::Error> {
        let bed = match Bed::make(variant, &self.congestion) {
            Err(error) if round > 0 => Err(error.to_string()),
            made => Ok(made?),
        };
        bar.inc(BED.as_millis() as u64);
        for scenario in scenarios {
            let (takes, rounds) = (self.takes(), self.rounds);
            bar.set_message(format!("{takes:.0?}; round {} of {rounds}, {variant}: {scenario}", round + 1));
            if interrupt.came() {
                return Err(bed::Error::Interrupted);
            }
            let ran = bed.as_ref().map_err(Clone::clone);
            let ran = ran.and_then(|bed| scenario.run(bed, self.time).map_err(|error| error.to_string()));
            let outcome = ran.unwrap_or_else(|failure| Outcome {
                failures: 1,
                failure: Some(failure),
                ..Outcome::default()
            });
            bar.inc(scenario.takes(self.time).as_millis() as u64);
            samples.push(Sample {
                scenario: scenario.to_string(),
                variant: variant.name().to_owned(),
                round,
                figures: outcome.figures.into_iter().filter(|(_, value)| value.is_finite()).collect(),
                percentiles: outcome.percentiles,
                failures: outcome.failures,
                failure: outcome.failure,
            });
        }
        Ok(())
    }
}

fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    Machine {
        processor: field(&read("/proc/cpuinfo"), "model name"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_gib: (kib + (1 << 19)) >> 20,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}
