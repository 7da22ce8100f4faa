//! Whether a run keeps what SPECIFICATION.md promises. The tables there are read, so that nothing is promised twice.

use std::fmt;

use crate::figures::{Figure, Run};
use crate::variant::{Kind, PLAIN};

const SPECIFICATION: &str = include_str!("../SPECIFICATION.md");
/// As a peer must be named to be what the tables call so.
const PEER: &str = "istio";
/// Of every table there.
const HEAD: &str = "| Scenario | Figure | Beside | Promised | CI fails beyond |";

/// One line of the specification.
#[derive(Debug, Clone, PartialEq)]
pub struct Promise {
    pub scenario: String,
    pub figure: Figure,
    /// Of this proxy with `SAME_NODE=plain`.
    plain: bool,
    /// What direct TCP has is taken off first: what is added to it counts.
    adder: bool,
    beside: Beside,
    least: bool,
    promised: f64,
    /// What noise does not reach.
    margin: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Itself,
    Kind(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    Promises,
    /// As CI does.
    Margins,
}

/// What became of a promise in a run.
#[derive(Debug)]
pub struct Verdict<'a> {
    promise: &'a Promise,
    bound: f64,
    against: Against,
    /// None where it was not measured.
    found: Option<f64>,
    failures: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("SPECIFICATION.md: {line:?}: {what}")]
pub struct Malformed {
    line: String,
    what: &'static str,
}

pub fn promises() -> Result<Vec<Promise>, Malformed> {
    read(SPECIFICATION)
}

/// Every line of a table is its head, what follows the head, or a promise.
fn read(text: &str) -> Result<Vec<Promise>, Malformed> {
    let mut promises = Vec::new();
    let mut before = "";
    for line in text.lines().map(str::trim) {
        let rule = |line: &str| line.starts_with("|---") && line.chars().all(|c| "|-: ".contains(c));
        let row = line.starts_with('|') && line != HEAD && !(before == HEAD && rule(line));
        if row {
            let follows = before.starts_with('|') && before != HEAD;
            let read = if follows {
                Promise::read(line)
            } else {
                Err("it stands in no table with the head that is read")
            };
            promises.push(read.map_err(|what| Malformed { line: line.to_owned(), what })?);
        }
        before = line;
    }
    Ok(promises)
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the promises are about the lab, release builds, cubic and three rounds at least; this was {place}, a {build} build, {congestion}, \
     {rounds} rounds"
)]
pub struct Unfit {
    place: &'static str,
    build: String,
    congestion: String,
    rounds: usize,
}

/// Whether a run was made as the promises say.
pub fn fit(run: &Run) -> Result<(), Unfit> {
    let Run { build, congestion, rounds, .. } = run;
    let place = if run.pods.is_empty() { "the lab" } else { "a cluster" };
    if run.pods.is_empty() && build == "release" && congestion == "cubic" && *rounds >= 3 {
        return Ok(());
    }
    Err(Unfit { place, build: build.clone(), congestion: congestion.clone(), rounds: *rounds })
}

/// Each promise that the run can speak of.
pub fn verdicts<'a>(run: &Run, promises: &'a [Promise], against: Against) -> Vec<Verdict<'a>> {
    let verdict = |promise: &'a Promise| {
        let bound = match against {
            Against::Promises => promise.promised,
            Against::Margins => promise.margin?,
        };
        let ours = run.named(Kind::Ours).find(|name| (*name == PLAIN) == promise.plain)?;
        let failures = run.failures(&promise.scenario, ours);
        Some(Verdict { promise, bound, against, found: promise.found(run, ours), failures })
    };
    promises.iter().filter_map(verdict).collect()
}

impl Promise {
    fn read(line: &str) -> Result<Self, &'static str> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [scenario, figure, beside, promised, margin] = cells[..] else {
            return Err("five cells are needed");
        };
        let (figure, plain) = match figure.strip_suffix(" in plain mode") {
            Some(figure) => (figure, true),
            None => (figure, false),
        };
        let (figure, adder) = match figure.strip_suffix(" above direct") {
            Some(figure) => (figure, true),
            None => (figure, false),
        };
        let figure = Figure::ALL.into_iter().find(|one| one.title() == figure).ok_or("an unknown figure")?;
        let beside = match beside {
            "itself" => Beside::Itself,
            "direct" => Beside::Kind(Kind::Direct),
            "relay" => Beside::Kind(Kind::Relay),
            PEER => Beside::Kind(Kind::Peer),
            _ => return Err("beside itself, direct, relay or istio"),
        };
        let (least, promised) = match (promised.strip_prefix("at least "), promised.strip_prefix("at most "))
        {
            (Some(number), _) => (true, number),
            (_, Some(number)) => (false, number),
            _ => return Err("promised is `at least N` or `at most N`"),
        };
        let number = |text: &str| match text.strip_suffix('x').unwrap_or(text).parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err("not a number above zero"),
        };
        let margin = if margin.is_empty() { None } else { Some(number(margin)?) };
        let promised = number(promised)?;
        Ok(Self { scenario: scenario.to_owned(), figure, plain, adder, beside, least, promised, margin })
    }

    fn found(&self, run: &Run, ours: &str) -> Option<f64> {
        let median = |variant: &str| Some(run.spread(&self.scenario, self.figure, variant)?.median);
        let direct = || median(run.named(Kind::Direct).next()?);
        let value = |variant: &str| match self.adder {
            true => Some(median(variant)? - direct()?),
            false => median(variant),
        };
        let own = value(ours)?;
        let Beside::Kind(kind) = self.beside else { return Some(own) };
        let mut named = run.named(kind);
        let other = match kind {
            Kind::Peer => named.find(|name| *name == PEER)?,
            _ => named.next()?,
        };
        // What fails is fast.
        let beside = value(other).filter(|_| run.failures(&self.scenario, other) == 0)?;
        // What is added to direct TCP may be lost in noise.
        (own > 0.0 && beside > 0.0).then_some(own / beside)
    }
}

impl Verdict<'_> {
    pub fn is_broken(&self) -> bool {
        let beyond = |found: f64| if self.promise.least { found < self.bound } else { found > self.bound };
        // CI runs all that it looks at.
        self.failures > 0 || self.found.map_or(self.against == Against::Margins, beyond)
    }

    pub fn was_measured(&self) -> bool {
        self.found.is_some()
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Promise { scenario, figure, plain, adder, beside, least, .. } = self.promise;
        let word = match (self.is_broken(), self.found) {
            (true, Some(_)) => "BROKEN",
            (true, None) => "NOT MEASURED",
            (false, Some(_)) => "kept",
            (false, None) => "not measured",
        };
        let above = if *adder { " above direct" } else { "" };
        let mode = if *plain { " in plain mode" } else { "" };
        let (times, beside) = match beside {
            Beside::Itself => ("", String::new()),
            Beside::Kind(kind) => ("x", format!(" of {}", kind.name())),
        };
        write!(f, "{word:12} {scenario}: {}{above}{mode}: ", figure.title())?;
        if let Some(found) = self.found {
            write!(f, "{found:.2}{times}{beside}, ")?;
        }
        write!(f, "at {} {:.2}{times}", if *least { "least" } else { "most" }, self.bound)?;
        if self.failures > 0 {
            write!(f, "; {} failed", self.failures)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Suite;

    #[test]
    fn every_promise_names_a_scenario_that_is_run() {
        let promises = promises().expect("the specification is well formed");
        let names = |suite: Suite| suite.scenarios().iter().map(ToString::to_string).collect::<Vec<_>>();
        let (full, smoke) = (names(Suite::Full), names(Suite::Smoke));
        for promise in &promises {
            assert!(full.contains(&promise.scenario), "{promise:?}");
            // CI runs no more than that, and has no other proxy.
            let seen = smoke.contains(&promise.scenario) && promise.beside != Beside::Kind(Kind::Peer);
            assert!(promise.margin.is_none() || seen, "{promise:?}");
            let weaker = |margin: f64| (margin < promise.promised) == promise.least;
            assert!(promise.margin.is_none_or(weaker), "CI must not be stricter: {promise:?}");
        }
        let guarded = |scenario: &String| {
            promises.iter().any(|promise| promise.scenario == *scenario && promise.margin.is_some())
        };
        assert!(smoke.iter().all(guarded), "CI measures nothing in vain");
        assert!(promises.iter().any(|promise| promise.beside == Beside::Kind(Kind::Peer)));
    }

    #[test]
    fn what_is_written_wrong_is_named() {
        for (line, words) in [
            ("| a | rate | istio | at least 1x |", "five cells"),
            ("| a | speed | istio | at least 1x | |", "figure"),
            ("| a | rate | others | at least 1x | |", "beside"),
            ("| a | rate | istio | 1x | |", "promised"),
            ("| a | rate | istio | at least one | |", "number"),
            ("| a | rate | istio | at most nanx | |", "number"),
            ("| a | rate | istio | at most 1xx | |", "number"),
        ] {
            let what = Promise::read(line).expect_err(line);
            assert!(what.contains(words), "{line}: {what}");
        }
        let row = "| a | rate | istio | at least 1x | |";
        assert_eq!(
            read(&format!("{HEAD}\n|---|---|---|---|---|\n{row}\n{row}\n")).expect("a table").len(),
            2
        );
        for text in [
            row.to_owned(),
            format!("{HEAD} \n|-\n{row}"),
            format!("{HEAD}\n{row}\n"),
            format!("| A |\n{row}"),
        ] {
            assert!(read(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_promise_is_broken_by_its_figure_or_by_failures() {
        let mut run = crate::report::tests::example();
        let promise = Promise::read("| HTTP | rate | direct | at least 0.5x | 0.4x |").expect("well formed");
        let broken =
            |run: &Run, against| verdicts(run, std::slice::from_ref(&promise), against)[0].is_broken();
        // Medians of 50,000 and 100,000.
        assert!(!broken(&run, Against::Promises));
        run.samples.retain(|sample| sample.variant != "ours" || sample.round == 0);
        assert!(broken(&run, Against::Promises) && !broken(&run, Against::Margins));
        run.samples[1].failures = 1;
        assert!(broken(&run, Against::Margins));
        run.samples.clear();
        let verdicts = verdicts(&run, std::slice::from_ref(&promise), Against::Promises);
        assert!(!verdicts[0].was_measured() && !verdicts[0].is_broken());
        assert!(broken(&run, Against::Margins), "CI measures all");
    }
}
