//! The written forms of durations and of quantities of CPUs and bytes.

use std::time::Duration;

/// `10s`, `5m`, `1h30m`, `250ms`; a bare number means seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(60 * 60),
            "d" => Duration::from_secs(24 * 60 * 60),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[letters..];
    }
    Some(total)
}

/// CPUs as Kubernetes writes them (`2`, `1.5`, `500m`), rounded up to whole ones.
pub(super) fn cpus(text: &str) -> Option<usize> {
    let (number, scale) = match text.strip_suffix('m') {
        Some(number) => (number, 1000.0),
        None => (text, 1.0),
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) || !number.ends_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let cpus = (number.parse::<f64>().ok()? / scale).ceil();
    (cpus <= 1_000_000.0).then_some(cpus as usize)
}

/// Bytes as Kubernetes writes them: `1000`, `64Mi`, `2G`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let scale: u64 = match &text[digits..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(scale)
}

/// How many worker threads the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workers {
    Count(usize),
    AllCpus,
    Percent(u32),
}

/// `N`, `0` for all CPUs, or `P%`.
pub(super) fn workers(text: &str) -> Option<Workers> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent @ 1..=100) => Some(Workers::Percent(percent)),
            _ => None,
        },
        None => match text.parse() {
            Ok(0) => Some(Workers::AllCpus),
            Ok(count @ 1..=4096) => Some(Workers::Count(count)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("10s", 10), ("5m", 300), ("1h30m", 5400), ("7", 7), ("1d", 86400), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1s250ms"), Some(Duration::from_millis(1250)));
        for bad in ["", "s", "10x", "1.5s", "-1s", "10s5", "99999999999999999999", "4294967295d4294967296d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn cpu_quantities_round_up() {
        for (text, count) in [("2", 2), ("1.5", 2), ("500m", 1), ("2500m", 3), ("0", 0)] {
            assert_eq!(cpus(text), Some(count), "{text}");
        }
        for bad in ["", "m", "x", "1Gi", "-1", "inf", "1e99", ".", "NaN"] {
            assert_eq!(cpus(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [("0", 0), ("1000", 1000), ("64Mi", 64 << 20), ("2G", 2_000_000_000)] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for bad in ["", "Mi", "1.5Gi", "-1", "1m", "1 Mi", "20000000000Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn worker_counts() {
        assert_eq!(workers("4"), Some(Workers::Count(4)));
        assert_eq!(workers("0"), Some(Workers::AllCpus));
        assert_eq!(workers("25%"), Some(Workers::Percent(25)));
        for bad in ["0%", "101%", "%", "many", "-1", "1.5"] {
            assert_eq!(workers(bad), None, "{bad}");
        }
    }
}
