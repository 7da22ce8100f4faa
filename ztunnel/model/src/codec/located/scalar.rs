//! What a plain (unquoted) scalar means: the core schema of YAML 1.2.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text,
}

pub(super) fn meaning(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Meaning::Null,
        "true" | "True" | "TRUE" => Meaning::Bool(true),
        "false" | "False" | "FALSE" => Meaning::Bool(false),
        _ => number(text).unwrap_or(Meaning::Text),
    }
}

fn number(text: &str) -> Option<Meaning> {
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(unsigned) {
        let integer = text.parse().map(Meaning::Unsigned).or_else(|_| text.parse().map(Meaning::Signed));
        return integer.ok().or_else(|| text.parse().ok().map(Meaning::Float));
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let decimal = (digits(whole) && (fraction.is_empty() || digits(fraction)))
        || (whole.is_empty() && digits(fraction));
    (decimal && exponent.is_none_or(digits)).then(|| text.parse().ok().map(Meaning::Float))?
}

fn radix(digits: &str, radix: u32) -> Option<Meaning> {
    let plain = digits.starts_with(|first: char| first.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, radix).ok().map(Meaning::Unsigned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_the_core_schema_says() {
        for (text, expected) in [
            ("", Meaning::Null),
            ("~", Meaning::Null),
            ("true", Meaning::Bool(true)),
            ("yes", Meaning::Text),
            ("80", Meaning::Unsigned(80)),
            ("-3", Meaning::Signed(-3)),
            ("0x50", Meaning::Unsigned(80)),
            ("0o17", Meaning::Unsigned(15)),
            ("1.5", Meaning::Float(1.5)),
            ("1e3", Meaning::Float(1000.0)),
            (".5", Meaning::Float(0.5)),
            ("1.", Meaning::Float(1.0)),
            ("10.0.0.1", Meaning::Text),
            ("1e", Meaning::Text),
            (".", Meaning::Text),
            ("-", Meaning::Text),
            ("0x", Meaning::Text),
            ("0x-1", Meaning::Text),
            ("inf", Meaning::Text),
            ("18446744073709551616", Meaning::Float(18_446_744_073_709_551_616.0)),
        ] {
            assert_eq!(meaning(text), expected, "{text:?}");
        }
    }
}
