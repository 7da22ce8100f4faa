//! OpenMetrics 1.0 text from what the `prometheus` crate gathers; that crate writes only the older format.

use std::fmt::Write;

use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::names;

/// The whole exposition. Only counters and gauges exist (`names`), so only they are written. A label with an empty
/// value is the same as no label, and is left out.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::with_capacity(4096);
    for family in families {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            _ => continue,
        };
        head(&mut out, family.name().strip_suffix("_total").unwrap_or(family.name()), kind, family.help());
        for metric in family.get_metric() {
            out.push_str(family.name());
            labels(&mut out, metric.get_label());
            let value = match kind {
                "counter" => metric.get_counter().get_value(),
                _ => metric.get_gauge().get_value(),
            };
            writeln!(out, " {value}").expect("invariant: writing to a String cannot fail");
        }
    }
    out.push_str("# EOF\n");
    out
}

fn head(out: &mut String, family: &str, kind: &str, help: &str) {
    line(out, &["# TYPE ", family, " ", kind]);
    if let Some(unit) = names::UNITS.iter().find(|unit| family.ends_with(&format!("_{unit}"))) {
        line(out, &["# UNIT ", family, " ", unit]);
    }
    line(out, &["# HELP ", family, " ", &escaped(help)]);
}

fn line(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
    out.push('\n');
}

/// The crate sorts labels by name; readers of the raw text expect them in the documented order.
fn labels(out: &mut String, pairs: &[LabelPair]) {
    let rank = |pair: &&LabelPair| names::TRAFFIC_LABELS.iter().position(|label| *label == pair.name());
    let mut ordered: Vec<&LabelPair> = pairs.iter().filter(|pair| !pair.value().is_empty()).collect();
    ordered.sort_by_cached_key(rank);
    for (index, pair) in ordered.iter().enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        out.push_str(pair.name());
        out.push_str("=\"");
        out.push_str(&escaped(pair.value()));
        out.push('"');
    }
    if !ordered.is_empty() {
        out.push('}');
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn golden() {
        let registry = Registry::new();
        let bytes = IntCounterVec::new(
            Opts::new("istio_tcp_sent_bytes_total", "Bytes \"out\"\\"),
            &["source_zone", "reporter", "source_workload"],
        )
        .expect("the metric is valid");
        registry.register(Box::new(bytes.clone())).expect("it is new");
        bytes.with_label_values(&["", "source", "a\"b\\c\nd"]).inc_by(12);
        let gauge = IntGauge::new("process_open_fds", "Open").expect("the metric is valid");
        registry.register(Box::new(gauge.clone())).expect("it is new");
        gauge.set(-3);
        let plain = IntCounter::new("x_total", "X").expect("the metric is valid");
        registry.register(Box::new(plain)).expect("it is new");
        let expected = r##"# TYPE istio_tcp_sent_bytes counter
# UNIT istio_tcp_sent_bytes bytes
# HELP istio_tcp_sent_bytes Bytes \"out\"\\
istio_tcp_sent_bytes_total{reporter="source",source_workload="a\"b\\c\nd"} 12
# TYPE process_open_fds gauge
# HELP process_open_fds Open
process_open_fds -3
# TYPE x counter
# HELP x X
x_total 0
# EOF
"##;
        assert_eq!(encode(&registry.gather()), expected);
    }
}
