//! One file that loads nothing from elsewhere.

use std::fmt::Write;

use super::svg::{self, Line, escaped};
use super::{circumstances, compared, number, ratio, spread};
use crate::figures::{Figure, Run};
use crate::variant::Kind;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em auto;max-width:1160px;color:#222}\
table{border-collapse:collapse;font-size:13px}td,th{padding:3px 8px;border-bottom:1px solid #ddd;text-align:right}\
td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}.better{color:#0a7a2f}.worse{color:#b00020}\
.plots{display:flex;flex-wrap:wrap;gap:16px}svg{width:560px;font-size:12px}.title{font-weight:600}.tick{font-size:10px;fill:#666}";

pub(super) fn report(run: &Run) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Throughput</title><style>{STYLE}</style>\
         <h1>Throughput</h1><p>{}</p>{}<h2>Rates and costs</h2><div class=\"plots\">{}</div>\
         <h2>Latency</h2><p>Percentiles of all rounds, the median of each.</p><div class=\"plots\">{}</div>\
         <h2>Scaling</h2><div class=\"plots\">{}</div>{}</html>\n",
        escaped(&circumstances(run)),
        table(run),
        bars(run),
        latencies(run),
        scaling(run),
        failures(run)
    )
}

fn table(run: &Run) -> String {
    let pairs = compared(run);
    let mut html = String::from("<table><tr><th>scenario<th>figure");
    for (_, variant) in run.shown() {
        let _ = write!(html, "<th>{}", escaped(&variant.name));
    }
    for (ours, other) in &pairs {
        let _ = write!(html, "<th>{} / {}", escaped(ours), escaped(other));
    }
    for (scenario, figure) in run.rows() {
        let _ = write!(html, "<tr><td>{}<td>{}, {}", escaped(scenario), figure.title(), figure.unit());
        for (_, variant) in run.shown() {
            let cell = run.spread(scenario, figure, &variant.name).map_or_else(String::new, spread);
            let _ = write!(html, "<td>{cell}");
        }
        for (ours, other) in &pairs {
            match ratio(run, scenario, figure, ours, other) {
                None => html += "<td>",
                Some(ratio) => {
                    let class = if (ratio > 1.0) == figure.more_is_better() { "better" } else { "worse" };
                    let _ = write!(html, "<td class=\"{class}\">{}x", number(ratio));
                }
            }
        }
    }
    html + "</table>"
}

fn bars(run: &Run) -> String {
    const SHOWN: [Figure; 5] = [
        Figure::Throughput,
        Figure::CpuPerGigabyte,
        Figure::Rate,
        Figure::CpuPerOperation,
        Figure::MemoryPerConnection,
    ];
    let rows = run.rows().into_iter().filter(|(_, figure)| SHOWN.contains(figure));
    rows.map(|(scenario, figure)| {
        let each = run.shown().filter_map(|(index, variant)| {
            Some((index, variant.name.as_str(), run.spread(scenario, figure, &variant.name)?))
        });
        let each: Vec<_> = each.collect();
        svg::bars(&format!("{scenario}: {}", figure.title()), figure.unit(), &each)
    })
    .collect()
}

/// The horizontal place of a percentile: how many are not above it, to one that is.
fn nines(percentile: f64) -> f64 {
    100.0 / (100.0 - percentile)
}

fn latencies(run: &Run) -> String {
    let plot = |scenario: &str| {
        let lines: Vec<Line<'_>> = run
            .shown()
            .map(|(index, variant)| (index, variant.name.as_str(), curve(run, scenario, &variant.name)))
            .filter(|(_, _, points)| !points.is_empty())
            .collect();
        svg::curves(scenario, "µs by percentile", &lines, |at| match at {
            at if at < 1.05 => String::new(),
            at => number(100.0 - 100.0 / at),
        })
    };
    run.scenarios().into_iter().map(plot).collect()
}

/// The median over the rounds, percentile by percentile; the greatest of all has no place on the axis.
fn curve(run: &Run, scenario: &str, variant: &str) -> Vec<(f64, f64)> {
    const DRAWN: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 0.0];
    let drawn = DRAWN.iter().filter_map(|&percentile| {
        let each = run.of(scenario, variant).filter_map(|sample| {
            sample.percentiles.iter().find(|(one, _)| *one == percentile).map(|(_, time)| *time)
        });
        Some((nines(percentile), crate::figures::Spread::of(each)?.median))
    });
    let mut points: Vec<_> = drawn.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// A figure over the number in the scenario's name, where scenarios differ in that alone.
fn scaling(run: &Run) -> String {
    let families = [
        ("HTTP, ", " keep-alive connections", Figure::Rate),
        ("HTTP, ", " keep-alive connections", Figure::P99),
        ("", " idle connections", Figure::MemoryPerConnection),
    ];
    let plot = |(before, after, figure): (&str, &str, Figure)| {
        let counted = |scenario: &str| -> Option<f64> {
            scenario.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
        };
        let lines: Vec<Line<'_>> = run
            .shown()
            .map(|(index, variant)| {
                let rows = run.rows().into_iter().filter(|(_, one)| *one == figure);
                let points = rows.filter_map(|(scenario, _)| {
                    Some((counted(scenario)?, run.spread(scenario, figure, &variant.name)?.median))
                });
                let mut points: Vec<_> = points.collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                (index, variant.name.as_str(), points)
            })
            .filter(|(_, _, points)| points.len() > 1)
            .collect();
        svg::curves(&format!("{} by{after}", figure.title()), figure.unit(), &lines, number)
    };
    let by_connections: String = families.into_iter().map(plot).collect();
    let by_workers = [Figure::Rate, Figure::Throughput].map(|figure| by_workers(run, figure));
    by_connections + &by_workers.concat()
}

/// A line for each scenario that was measured with several numbers of workers.
fn by_workers(run: &Run, figure: Figure) -> String {
    let counts: Vec<(f64, &str)> = run
        .named(Kind::Workers)
        .filter_map(|name| Some((name.rsplit(' ').next()?.parse().ok()?, name)))
        .collect();
    let lines: Vec<Line<'_>> = run
        .rows()
        .into_iter()
        .filter(|(_, one)| *one == figure)
        .map(|(scenario, _)| {
            let at = |(count, name): &(f64, &str)| Some((*count, run.spread(scenario, figure, name)?.median));
            (scenario, counts.iter().filter_map(at).collect::<Vec<_>>())
        })
        .filter(|(_, points)| points.len() > 1)
        .enumerate()
        .map(|(index, (scenario, points))| (index, scenario, points))
        .collect();
    svg::curves(&format!("{} by workers", figure.title()), figure.unit(), &lines, number)
}

fn failures(run: &Run) -> String {
    let mut html = String::new();
    for sample in run.samples.iter().filter(|sample| sample.failures > 0) {
        let why = sample.failure.as_deref().unwrap_or("for no reason that was told");
        let (scenario, variant, round) =
            (escaped(&sample.scenario), escaped(&sample.variant), sample.round + 1);
        let _ = write!(
            html,
            "<li>{scenario}, {variant}, round {round}: {} failed: {}",
            sample.failures,
            escaped(why)
        );
    }
    if html.is_empty() { html } else { format!("<h2>Failures</h2><ul>{html}</ul>") }
}
