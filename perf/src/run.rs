//! Rounds: in each, every variant gets a new bed, in turns, so that a slow moment of the machine meets all of them.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bed::Measured;
use crate::figures::{Pod, Run, Sample, VariantName};
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::scenario::{Outcome, Scenario};
use crate::suite::Suite;

/// What is to be run, and where that is.
pub struct Plan {
    pub suite: Suite,
    pub scenarios: Vec<Scenario>,
    pub rounds: usize,
    pub variants: Vec<Box<dyn Measured>>,
    pub machine: Machine,
    pub congestion: String,
    pub pods: Vec<Pod>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bed(#[from] Box<dyn std::error::Error>),
    #[error("interrupted")]
    Interrupted,
}

/// For a bed to come up.
const BED: Duration = Duration::from_secs(2);

impl Plan {
    /// How long it takes, about.
    pub fn takes(&self) -> Duration {
        let beds = self.variants.iter().flat_map(|variant| self.beds(variant.as_ref()));
        let one: Duration =
            beds.map(|bed| BED + bed.iter().map(|one| self.one_takes(one)).sum::<Duration>()).sum();
        one * u32::try_from(self.rounds).unwrap_or(u32::MAX)
    }

    fn one_takes(&self, scenario: &Scenario) -> Duration {
        scenario.takes(self.suite.time())
    }

    /// The scenarios that a variant runs, by the beds they run on.
    fn beds(&self, variant: &dyn Measured) -> Vec<Vec<&Scenario>> {
        let all = self.scenarios.iter().filter(|scenario| variant.measures(scenario));
        let (apart, together): (Vec<_>, Vec<_>) = all.partition(|scenario| scenario.wants_own_bed());
        let apart = apart.into_iter().map(|one| vec![one]);
        [together].into_iter().chain(apart).filter(|bed| !bed.is_empty()).collect()
    }

    /// What fails is told in its sample. A bed that does not come up in the first round ends the run: it was described wrong.
    pub fn run(self, interrupt: &Interrupt) -> Result<Run, Error> {
        let progress = Progress::new(self.takes(), self.rounds);
        let mut samples = Vec::new();
        let started = OffsetDateTime::now_utc();
        for round in 0..self.rounds {
            for turn in 0..self.variants.len() {
                let variant = self.variants[(turn + round) % self.variants.len()].as_ref();
                for scenarios in self.beds(variant) {
                    self.run_bed(&scenarios, variant, round, &progress, interrupt, &mut samples)?;
                }
            }
        }
        progress.finish();
        // By scenario, as the suite has them, and not by who was first.
        let place =
            |sample: &Sample| self.scenarios.iter().position(|one| one.to_string() == sample.scenario);
        samples.sort_by_key(place);
        let name =
            |variant: &dyn Measured| VariantName { name: variant.name().to_owned(), kind: variant.kind() };
        Ok(Run {
            started: started.format(&Rfc3339).unwrap_or_default(),
            suite: self.suite.name().to_owned(),
            rounds: self.rounds,
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            variants: self.variants.iter().map(|variant| name(variant.as_ref())).collect(),
            samples,
            machine: self.machine,
            congestion: self.congestion,
            pods: self.pods,
        })
    }

    fn run_bed(
        &self,
        scenarios: &[&Scenario],
        variant: &dyn Measured,
        round: usize,
        progress: &Progress,
        interrupt: &Interrupt,
        samples: &mut Vec<Sample>,
    ) -> Result<(), Error> {
        let bed = match variant.bed() {
            Err(error) if round > 0 => Err(error.to_string()),
            made => Ok(made?),
        };
        progress.passed(BED);
        for scenario in scenarios {
            progress.begins(round, variant.name(), scenario);
            if interrupt.came() {
                return Err(Error::Interrupted);
            }
            let ran = bed.as_ref().map_err(Clone::clone);
            let ran =
                ran.and_then(|bed| bed.run(scenario, self.suite.time()).map_err(|error| error.to_string()));
            let outcome = ran.unwrap_or_else(|failure| Outcome {
                failures: 1,
                failure: Some(failure),
                ..Outcome::default()
            });
            progress.passed(self.one_takes(scenario));
            samples.push(Sample {
                scenario: scenario.to_string(),
                variant: variant.name().to_owned(),
                round,
                figures: outcome.figures,
                percentiles: outcome.percentiles,
                failures: outcome.failures,
                failure: outcome.failure,
            });
        }
        Ok(())
    }
}
