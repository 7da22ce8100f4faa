//! Plots: bars with their spread, and curves of percentiles.

use std::fmt::Write;

use super::number;
use crate::figures::Spread;

const COLOURS: [&str; 6] = ["#8a8f98", "#b9a26a", "#1f77b4", "#d62728", "#2ca02c", "#9467bd"];
const BAR: f64 = 22.0;
const GAP: f64 = 8.0;
const NAMES: f64 = 90.0;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 220.0;

pub(super) fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// Text that is no markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One bar each, whiskers from the least to the most.
pub(super) fn bars(title: &str, unit: &str, bars: &[(usize, &str, Spread)]) -> String {
    let most = bars.iter().map(|(_, _, spread)| spread.most).fold(f64::MIN_POSITIVE, f64::max);
    let room = WIDTH - NAMES - 80.0;
    let height = bars.len() as f64 * (BAR + GAP) + 30.0;
    let mut svg = open(height, title, unit);
    for (row, (index, name, spread)) in bars.iter().enumerate() {
        let y = 26.0 + row as f64 * (BAR + GAP);
        let x = |value: f64| NAMES + room * value / most;
        let _ = write!(
            svg,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text><rect x="{NAMES}" y="{y}" width="{:.1}" height="{BAR}" fill="{}"/>"#,
            NAMES - 6.0,
            y + 16.0,
            escaped(name),
            (x(spread.median) - NAMES).max(1.0),
            colour(*index),
        );
        let middle = y + BAR / 2.0;
        let _ = write!(
            svg,
            r##"<path d="M{:.1} {middle}H{:.1}" stroke="#222"/><text x="{:.1}" y="{}">{}</text>"##,
            x(spread.least),
            x(spread.most),
            x(spread.most) + 6.0,
            y + 16.0,
            number(spread.median),
        );
    }
    svg + "</svg>"
}

/// One line of a plot: which colour, its name, and its points.
pub(super) type Line<'a> = (usize, &'a str, Vec<(f64, f64)>);

/// Both axes logarithmic; `tick` names a place of the horizontal one. Nothing where there is no point.
pub(super) fn curves(title: &str, unit: &str, lines: &[Line<'_>], tick: impl Fn(f64) -> String) -> String {
    let points = || lines.iter().flat_map(|(_, _, points)| points.iter().copied());
    let points = || points().filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        })
    };
    let (left, right) = bounds(&mut points().map(|(x, _)| x));
    let (low, high) = bounds(&mut points().map(|(_, y)| y));
    if !left.is_finite() || !low.is_finite() {
        return String::new();
    }
    let place = |value: f64, least: f64, most: f64, room: f64| match (most / least).ln() {
        wide if wide > 0.0 => room * (value / least).ln() / wide,
        _ => room / 2.0,
    };
    let x = |value: f64| 60.0 + place(value, left, right, WIDTH - 180.0);
    let y = |value: f64| HEIGHT - 30.0 - place(value, low, high, HEIGHT - 70.0);
    let mut svg = open(HEIGHT, title, unit);
    let mut ticks: Vec<f64> = points().map(|(x, _)| x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for at in ticks {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{}" text-anchor="middle" class="tick">{}</text>"#,
            x(at),
            HEIGHT - 10.0,
            escaped(&tick(at))
        );
    }
    for level in [low, (low * high).sqrt(), high] {
        let _ = write!(
            svg,
            r##"<path d="M60 {0:.1}H{1}" stroke="#ddd"/><text x="54" y="{2:.1}" text-anchor="end" class="tick">{3}</text>"##,
            y(level),
            WIDTH - 120.0,
            y(level) + 4.0,
            number(level)
        );
    }
    for (row, (index, name, points)) in lines.iter().enumerate() {
        let path: Vec<String> = points
            .iter()
            .filter(|(x, y)| *x > 0.0 && *y > 0.0)
            .map(|&(px, py)| format!("{:.1} {:.1}", x(px), y(py)))
            .collect();
        let _ = write!(
            svg,
            r#"<path d="M{}" fill="none" stroke="{2}" stroke-width="2"/><text x="{3}" y="{4}" fill="{2}">{1}</text>"#,
            path.join("L"),
            escaped(name),
            colour(*index),
            WIDTH - 112.0,
            40.0 + row as f64 * 18.0
        );
    }
    svg + "</svg>"
}

fn open(height: f64, title: &str, unit: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg"><text x="0" y="14" class="title">{}, {}</text>"#,
        escaped(title),
        escaped(unit)
    )
}
