//! `/logging`: shows and changes the log levels.

use http::{Method, StatusCode};

use crate::telemetry::Levels;

const HELP: &str = "\
usage: POST /logging                            show the current levels
       POST /logging?level=LEVEL                set the level of everything without its own
       POST /logging?level=SCOPE=LEVEL,...      set the level of scopes, named as log lines show them
       POST /logging?reset                      go back to the levels of the start
       POST /logging?reset&level=...            go back first, then set
LEVEL is off, error, warn, info, debug or trace
";

/// The answer to a request with this query.
pub(super) fn answer(method: &Method, query: Option<&str>, levels: &Levels) -> (StatusCode, String) {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, HELP.to_owned());
    }
    let refused = |reason: String| (StatusCode::BAD_REQUEST, format!("{reason}\n{HELP}"));
    let mut reset = false;
    let mut change = String::new();
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (name, decoded(value)) {
            ("reset", _) => reset = true,
            ("level", Some(value)) if !value.is_empty() => change = value,
            ("level", _) => return refused("level needs a value".to_owned()),
            _ => return refused(format!("{name:?} is not a parameter")),
        }
    }
    if (reset || !change.is_empty())
        && let Err(error) = levels.change(reset, &change)
    {
        return refused(error.to_string());
    }
    (StatusCode::OK, format!("current log level is {levels}\n"))
}

/// Percent-decoding, because clients may escape the `=` and `,` of the value.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::levels_for_tests;

    #[test]
    fn shows_changes_and_refuses() {
        let levels = levels_for_tests("info");
        let post = |query: &str| answer(&Method::POST, Some(query), &levels);
        let current = |text: &str| (StatusCode::OK, format!("current log level is {text}\n"));
        assert_eq!(answer(&Method::POST, None, &levels), current("info"));
        assert_eq!(post(""), current("info"));
        assert_eq!(post("level=debug"), current("debug"));
        assert_eq!(post("level=access=off,proxy%3Dtrace%2Cwarn"), current("access=off,proxy=trace,warn"));
        assert_eq!(post("level=error&reset"), current("error"));
        assert_eq!(post("reset=true"), current("info"));
        for bad in [
            "level=",
            "level",
            "level=loud",
            "level=access",
            "level=access:info",
            "x=1",
            "level=%zz",
            "level=%a",
        ] {
            let (status, text) = post(bad);
            assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
            assert!(text.ends_with(HELP), "{bad}");
        }
        assert_eq!(post(""), current("info"));
        assert_eq!(answer(&Method::GET, None, &levels), (StatusCode::METHOD_NOT_ALLOWED, HELP.to_owned()));
    }
}
