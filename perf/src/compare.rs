//! Two runs beside each other.

use std::fmt::Write;

use crate::figures::Run;

/// What must differ by more than the rounds of either do, and by so much, to be called a difference.
const WORTH_TELLING: f64 = 0.05;

/// Each figure of both runs, and which way it went.
pub fn table(before: &Run, after: &Run) -> String {
    let mut text = String::from(
        "| scenario | figure | variant | before | after | after / before | |\n|---|---|---|---:|---:|---:|---|\n",
    );
    for (scenario, figure) in before.rows() {
        for variant in &before.variants {
            let [old, new] = [before, after].map(|run| run.spread(scenario, figure, &variant.name));
            let (Some(old), Some(new)) = (old, new) else { continue };
            let ratio = new.median / old.median;
            let apart = new.least > old.most || new.most < old.least;
            let word = match () {
                () if !ratio.is_finite() || !apart || (ratio - 1.0).abs() < WORTH_TELLING => "",
                () if (ratio > 1.0) == figure.more_is_better() => "better",
                () => "worse",
            };
            let _ = writeln!(
                text,
                "| {scenario} | {}, {} | {} | {:.2} | {:.2} | {ratio:.2}x | {word} |",
                figure.title(),
                figure.unit(),
                variant.name,
                old.median,
                new.median
            );
        }
    }
    text + &differences(before, after)
}

/// What makes a comparison doubtful.
fn differences(before: &Run, after: &Run) -> String {
    let circumstances = |run: &Run| {
        let nodes = run.pods.iter().map(|pod| format!("{} {} on {}", pod.variant, pod.role.name(), pod.node));
        let nodes =
            if run.pods.is_empty() { "the lab".to_owned() } else { nodes.collect::<Vec<_>>().join(", ") };
        [run.machine.to_string(), run.congestion.clone(), run.build.clone(), run.suite.clone(), nodes]
    };
    let names = ["machine", "congestion control", "build", "suite", "pods"];
    let differ = circumstances(before).into_iter().zip(circumstances(after)).zip(names);
    let differ = differ.filter(|((a, b), _)| a != b);
    differ.map(|((a, b), name)| format!("\nNot the same {name}: {a}, and {b}.\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::figures::{Figure, Sample, VariantName};
    use crate::machine::Machine;
    use crate::variant::Kind;

    fn run(rates: &[f64]) -> Run {
        let samples = rates.iter().enumerate().map(|(round, rate)| Sample {
            scenario: "HTTP".to_owned(),
            variant: "ours".to_owned(),
            round,
            figures: BTreeMap::from([(Figure::Rate, *rate)]),
            percentiles: Vec::new(),
            failures: 0,
            failure: None,
        });
        Run {
            machine: Machine { processor: "P".to_owned(), cores: 2, memory_gib: 24, kernel: "6".to_owned() },
            started: String::new(),
            suite: "quick".to_owned(),
            rounds: rates.len(),
            congestion: "cubic".to_owned(),
            build: "release".to_owned(),
            variants: vec![VariantName { name: "ours".to_owned(), kind: Kind::Ours }],
            pods: Vec::new(),
            samples: samples.collect(),
        }
    }

    #[test]
    fn only_what_is_beyond_the_spread_of_both_is_called_a_difference() {
        let word = |before: &[f64], after: &[f64]| {
            let table = table(&run(before), &run(after));
            table.lines().nth(2).and_then(|row| row.rsplit('|').nth(1)).map(|word| word.trim().to_owned())
        };
        assert_eq!(word(&[10.0, 12.0], &[13.0, 14.0]).as_deref(), Some("better"));
        assert_eq!(word(&[10.0, 12.0], &[8.0, 9.0]).as_deref(), Some("worse"));
        assert_eq!(word(&[10.0, 12.0], &[11.0, 14.0]).as_deref(), Some(""), "they overlap");
        assert_eq!(word(&[10.0], &[10.2]).as_deref(), Some(""), "too little");
    }

    #[test]
    fn other_circumstances_are_told() {
        let mut other = run(&[1.0]);
        other.congestion = "bbr".to_owned();
        assert!(table(&run(&[1.0]), &other).contains("Not the same congestion control: cubic, and bbr."));
    }
}
