//! What was measured, as it is written and read again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::variant::Kind;

/// A whole run: the content of `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub machine: Machine,
    /// RFC 3339.
    pub started: String,
    pub suite: String,
    pub rounds: usize,
    pub congestion: String,
    /// `release` or `debug`, of all programs of this project.
    pub build: String,
    pub variants: Vec<VariantName>,
    /// Of a cluster, in which they were there all the time; in the lab they are the bed's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Pod>,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantName {
    pub name: String,
    pub kind: Kind,
}

/// A client or a server, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub variant: String,
    pub role: Role,
    pub node: String,
    pub machine: Machine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Client,
    Server,
}

/// One scenario of one variant in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub scenario: String,
    pub variant: String,
    pub round: usize,
    pub figures: BTreeMap<Figure, f64>,
    /// Percentile, and microseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<(f64, f64)>,
    #[serde(default)]
    pub failures: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    Throughput,
    CpuPerGigabyte,
    Rate,
    CpuPerOperation,
    P50,
    P99,
    P999,
    P9999,
    FirstConnection,
    MemoryPerConnection,
    MemoryKept,
    /// A percentile beside a disturbance, by the same without.
    Disturbance,
}

impl Figure {
    pub const ALL: [Self; 12] = [
        Self::Throughput,
        Self::CpuPerGigabyte,
        Self::Rate,
        Self::CpuPerOperation,
        Self::P50,
        Self::P99,
        Self::P999,
        Self::P9999,
        Self::FirstConnection,
        Self::MemoryPerConnection,
        Self::MemoryKept,
        Self::Disturbance,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::CpuPerGigabyte => "CPU of the proxies per GB",
            Self::Rate => "rate",
            Self::CpuPerOperation => "CPU of the proxies each",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::P9999 => "p99.99",
            Self::FirstConnection => "first connection",
            Self::MemoryPerConnection => "memory per connection, both nodes",
            Self::MemoryKept => "memory kept 30 s after the close",
            Self::Disturbance => "p99, disturbed by undisturbed",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::CpuPerGigabyte => "s",
            Self::Rate => "/s",
            Self::CpuPerOperation | Self::P50 | Self::P99 | Self::P999 | Self::P9999 => "µs",
            Self::FirstConnection => "ms",
            Self::MemoryPerConnection => "KiB",
            Self::MemoryKept => "MiB",
            Self::Disturbance => "x",
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::Rate)
    }

    /// Whether it is already a comparison, which another makes no clearer.
    pub fn is_ratio(self) -> bool {
        self == Self::Disturbance
    }
}

/// Of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, least, most })
    }
}

impl Run {
    /// In the order in which they were run.
    pub fn scenarios(&self) -> Vec<&str> {
        let mut scenarios: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !scenarios.contains(&sample.scenario.as_str()) {
                scenarios.push(&sample.scenario);
            }
        }
        scenarios
    }

    /// Each scenario with its figures.
    pub fn rows(&self) -> Vec<(&str, Figure)> {
        let mut rows = Vec::new();
        for scenario in self.scenarios() {
            let of_it = self.samples.iter().filter(|sample| sample.scenario == scenario);
            let figures: std::collections::BTreeSet<Figure> =
                of_it.flat_map(|sample| sample.figures.keys().copied()).collect();
            rows.extend(figures.into_iter().map(|figure| (scenario, figure)));
        }
        rows
    }

    pub fn spread(&self, scenario: &str, figure: Figure, variant: &str) -> Option<Spread> {
        Spread::of(self.of(scenario, variant).filter_map(|sample| sample.figures.get(&figure).copied()))
    }

    pub fn failures(&self, scenario: &str, variant: &str) -> u64 {
        self.of(scenario, variant).map(|sample| sample.failures).sum()
    }

    /// Of the first failure that says one.
    pub fn failure(&self, scenario: &str, variant: &str) -> Option<&str> {
        self.of(scenario, variant).find_map(|sample| sample.failure.as_deref())
    }

    pub fn of<'a>(&'a self, scenario: &str, variant: &str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.scenario == scenario && sample.variant == variant)
    }

    /// Those that have columns and lines of their own, each with its place among all.
    pub fn shown(&self) -> impl Iterator<Item = (usize, &VariantName)> {
        self.variants.iter().enumerate().filter(|(_, variant)| variant.kind != Kind::Workers)
    }

    pub fn named(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.variants.iter().filter(move |variant| variant.kind == kind).map(|variant| variant.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_have_their_spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None, "nothing was measured");
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of([3.0, 1.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
    }
}
