//! What a run is shown as: JSON, a table in Markdown, and one HTML file with plots.

mod html;
mod markdown;
mod svg;

use std::fs;
use std::io;
use std::path::Path;

use crate::figures::{Figure, Run, Spread};
use crate::variant::Kind;

pub use markdown::{report as text, table};

/// Writes `report.json`, `report.md` and `report.html` into a folder that is there.
pub fn write(run: &Run, folder: &Path) -> io::Result<()> {
    let json = serde_json::to_string_pretty(run)?;
    fs::write(folder.join("report.json"), json + "\n")?;
    fs::write(folder.join("report.md"), markdown::report(run))?;
    fs::write(folder.join("report.html"), html::report(run))
}

/// In one line.
pub fn json(run: &Run) -> io::Result<String> {
    Ok(serde_json::to_string(run)?)
}

pub fn read(path: &Path) -> io::Result<Run> {
    let text = fs::read_to_string(path)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.001 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
    }
}

fn spread(spread: Spread) -> String {
    let Spread { median, least, most } = spread;
    if least == most {
        number(median)
    } else {
        format!("{} ({}–{})", number(median), number(least), number(most))
    }
}

/// Ours by another's, of the medians.
fn ratio(run: &Run, scenario: &str, figure: Figure, ours: &str, other: &str) -> Option<f64> {
    if figure.is_ratio() {
        return None;
    }
    let [ours, other] = [ours, other].map(|variant| run.spread(scenario, figure, variant));
    let ratio = ours?.median / other?.median;
    ratio.is_finite().then_some(ratio)
}

/// Whom the variants of this project are compared with: the rows' other columns.
fn compared(run: &Run) -> Vec<(&str, &str)> {
    let others: Vec<&str> =
        [Kind::Direct, Kind::Relay, Kind::Peer].into_iter().flat_map(|kind| run.named(kind)).collect();
    run.named(Kind::Ours).flat_map(|ours| others.iter().map(move |other| (ours, *other))).collect()
}

/// What must be said beside every table.
fn circumstances(run: &Run) -> String {
    format!(
        "{}; congestion control {}; {} build; suite {}, {} round{}, {}; {}. Medians, with \
         the least and the most in brackets.{}",
        run.machine,
        run.congestion,
        run.build,
        run.suite,
        run.rounds,
        if run.rounds == 1 { "" } else { "s" },
        if run.pods.is_empty() { "each on a fresh bed" } else { "all with the same pods" },
        run.started.split('T').next().unwrap_or_default(),
        pods(run)
    )
}

/// Where they were; nothing of the lab's.
fn pods(run: &Run) -> String {
    let each = run.pods.iter().map(|pod| {
        let machine = if pod.machine == run.machine { String::new() } else { format!(" ({})", pod.machine) };
        format!(" {} {} on {}{machine},", pod.variant, pod.role.name(), pod.node)
    });
    match each.collect::<String>().strip_suffix(',') {
        None => String::new(),
        Some(each) => {
            format!("{each}. What the proxies take of CPU and memory is not seen from inside a pod.")
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::figures::{Pod, Role, Sample, VariantName};
    use crate::machine::Machine;

    pub(crate) fn example() -> Run {
        let sample = |variant: &str, round, rate: f64| Sample {
            scenario: "HTTP".to_owned(),
            variant: variant.to_owned(),
            round,
            figures: BTreeMap::from([(Figure::Rate, rate)]),
            percentiles: vec![(0.0, 10.0), (50.0, 20.0), (99.0, 90.0)],
            failures: u64::from(variant == "theirs"),
            failure: (variant == "theirs").then(|| "<reset>".to_owned()),
        };
        let name = |name: &str, kind| VariantName { name: name.to_owned(), kind };
        Run {
            machine: Machine {
                processor: "P".to_owned(),
                cores: 2,
                memory_gib: 24,
                kernel: "6.18".to_owned(),
            },
            started: "2026-01-02T03:04:05Z".to_owned(),
            suite: "quick".to_owned(),
            rounds: 2,
            congestion: "cubic".to_owned(),
            build: "release".to_owned(),
            variants: vec![
                name("direct", Kind::Direct),
                name("ours", Kind::Ours),
                name("theirs", Kind::Peer),
            ],
            pods: Vec::new(),
            samples: vec![
                sample("direct", 0, 100_000.0),
                sample("ours", 0, 40_000.0),
                sample("ours", 1, 60_000.0),
                sample("theirs", 0, 25_000.0),
            ],
        }
    }

    #[test]
    fn it_says_where_the_pods_of_a_cluster_were() {
        let mut run = example();
        assert!(
            circumstances(&run).ends_with(
                "each on a fresh bed; 2026-01-02. Medians, with the least and the most in brackets."
            )
        );
        let pod = |role, node: &str, cores| Pod {
            variant: "meshed".to_owned(),
            role,
            node: node.to_owned(),
            machine: Machine { cores, ..run.machine.clone() },
        };
        run.pods = vec![pod(Role::Client, "n1", 2), pod(Role::Server, "n2", 8)];
        let text = circumstances(&run);
        let expected =
            "in brackets. meshed client on n1, meshed server on n2 (P, 8 cores, 24 GiB, Linux 6.18). What";
        assert!(text.contains(expected) && text.contains("all with the same pods"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits() {
        let expected = [(123_456.0, "123.5k"), (123.4, "123"), (12.34, "12.3"), (0.5, "0.50"), (0.0, "0.00")];
        for (value, text) in expected {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = std::env::temp_dir().join(format!("perf-report-{}", std::process::id()));
        fs::create_dir(&folder).expect("it is not there");
        write(&example(), &folder).expect("written");
        assert_eq!(read(&folder.join("report.json")).expect("read"), example());
        let html = std::fs::read_to_string(folder.join("report.html")).expect("written");
        assert!(html.contains("&lt;reset&gt;") && !html.contains("<reset>"), "what others say is no markup");
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains("://"), "nothing is loaded from elsewhere");
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn ours_is_compared_with_each_other() {
        let run = example();
        assert_eq!(compared(&run), [("ours", "direct"), ("ours", "theirs")]);
        assert_eq!(ratio(&run, "HTTP", Figure::Rate, "ours", "theirs"), Some(2.0));
        assert_eq!(ratio(&run, "HTTP", Figure::P50, "ours", "theirs"), None);
    }
}
