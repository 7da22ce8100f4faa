//! The table.

use std::fmt::Write;

use super::{circumstances, compared, number, ratio, spread};
use crate::figures::Run;

pub fn report(run: &Run) -> String {
    format!("{}\n\n{}{}", circumstances(run), table(run), failures(run))
}

/// Each figure of each scenario, every variant beside the others.
pub fn table(run: &Run) -> String {
    let pairs = compared(run);
    let mut text = String::from("| scenario | figure |");
    let mut line = String::from("|---|---|");
    for (_, variant) in run.shown() {
        let _ = write!(text, " {} |", variant.name);
        line += "---:|";
    }
    for (ours, other) in &pairs {
        let _ = write!(text, " {ours} / {other} |");
        line += "---:|";
    }
    text = format!("{text}\n{line}\n");
    let mut last = "";
    for (scenario, figure) in run.rows() {
        let unit = figure.unit();
        let _ =
            write!(text, "| {} | {}, {unit} |", if last == scenario { "" } else { scenario }, figure.title());
        last = scenario;
        for (_, variant) in run.shown() {
            let cell = run.spread(scenario, figure, &variant.name).map_or_else(String::new, spread);
            let _ = write!(text, " {cell} |");
        }
        for (ours, other) in &pairs {
            let cell = ratio(run, scenario, figure, ours, other)
                .map_or_else(String::new, |ratio| format!("{}x", number(ratio)));
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

fn failures(run: &Run) -> String {
    let mut text = String::new();
    let mut scenarios = run.scenarios();
    scenarios.sort_unstable();
    for scenario in scenarios {
        for variant in &run.variants {
            let count = run.failures(scenario, &variant.name);
            if count > 0 {
                let why = run.failure(scenario, &variant.name).unwrap_or("for no reason that was told");
                let _ = writeln!(text, "- {scenario}, {}: {count} failed: {why}", variant.name);
            }
        }
    }
    if text.is_empty() { text } else { format!("\nFailures:\n\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn a_row_has_every_variant_and_every_ratio() {
        let text = report(&example());
        let row = text.lines().find(|line| line.starts_with("| HTTP")).expect("a row");
        assert_eq!(row, "| HTTP | rate, /s | 100.0k | 50.0k (40.0k–60.0k) | 25.0k | 0.50x | 2.00x |",);
        assert!(text.contains("- HTTP, theirs: 1 failed: <reset>"), "{text}");
        assert!(text.contains("congestion control cubic"), "{text}");
    }
}
