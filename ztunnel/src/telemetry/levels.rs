//! Which log lines are written, changeable while the process runs.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};

/// The crate's own name, which lines leave out of their scope.
const CRATE: &str = "ztunnel";

/// The levels in force. Cheap to clone.
#[derive(Clone)]
pub struct Levels(Arc<Inner>);

struct Inner {
    initial: Spec,
    current: Mutex<Spec>,
    apply: Box<dyn Fn(Targets) -> bool + Send + Sync>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{0:?} is neither LEVEL nor SCOPE=LEVEL")]
    Directive(String),
    #[error("{0:?} is not a level")]
    Level(String),
    #[error("logging has ended")]
    Ended,
}

impl Levels {
    /// `apply` puts a filter into force and says whether it could.
    pub(super) fn new(initial: &Targets, apply: impl Fn(Targets) -> bool + Send + Sync + 'static) -> Self {
        let initial = Spec::from(initial);
        apply(initial.targets());
        Self(Arc::new(Inner { current: Mutex::new(initial.clone()), initial, apply: Box::new(apply) }))
    }

    /// Lays `change` (a comma list of `LEVEL` and `SCOPE=LEVEL`) over the current levels, or with `reset` over those of
    /// the start. Nothing changes when it cannot be parsed.
    pub fn change(&self, reset: bool, change: &str) -> Result<(), SpecError> {
        let change: Spec = change.parse()?;
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = if reset { self.0.initial.clone() } else { current.clone() };
        change.0.into_iter().for_each(|(scope, level)| next.set(scope, level));
        if !(self.0.apply)(next.targets()) {
            return Err(SpecError::Ended);
        }
        *current = next;
        Ok(())
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).fmt(f)
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Levels({self})")
    }
}

/// Scopes with their levels; the one without a scope holds for everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spec(Vec<(Option<String>, LevelFilter)>);

impl Spec {
    fn set(&mut self, scope: Option<String>, level: LevelFilter) {
        self.0.retain(|(other, _)| *other != scope);
        self.0.push((scope, level));
    }

    /// A scope is written as lines show it, or in full.
    fn targets(&self) -> Targets {
        let mut targets = Targets::new();
        for (scope, level) in &self.0 {
            targets = match scope {
                None => targets.with_default(*level),
                Some(scope) if scope.starts_with(CRATE) => targets.with_target(scope, *level),
                Some(scope) => {
                    targets.with_target(format!("{CRATE}::{scope}"), *level).with_target(scope, *level)
                }
            };
        }
        targets
    }
}

impl From<&Targets> for Spec {
    fn from(targets: &Targets) -> Self {
        let mut spec = Self::default();
        targets.iter().for_each(|(scope, level)| spec.set(Some(scope.to_owned()), level));
        spec.0.sort();
        if let Some(level) = targets.default_level() {
            spec.set(None, level);
        }
        spec
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            match directive.split_once('=') {
                None => spec.set(None, level(directive, || SpecError::Directive(directive.to_owned()))?),
                Some(("", _)) => return Err(SpecError::Directive(directive.to_owned())),
                Some((scope, word)) => {
                    let level = level(word, || SpecError::Level(word.to_owned()))?;
                    spec.set(Some(scope.to_owned()), level);
                }
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (scope, level)) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            match scope {
                None => write!(f, "{level}")?,
                Some(scope) => write!(f, "{scope}={level}")?,
            }
        }
        Ok(())
    }
}

/// Only the words: the library's parser would also take numbers and the empty text.
fn level(word: &str, otherwise: impl FnOnce() -> SpecError) -> Result<LevelFilter, SpecError> {
    match word.to_ascii_lowercase().as_str() {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(otherwise()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tracing::Level;

    use super::*;

    /// Levels that are in force nowhere; the filter last applied can be asked.
    pub(crate) fn levels(initial: &str) -> (Levels, Arc<Mutex<Targets>>) {
        let applied = Arc::new(Mutex::new(Targets::new()));
        let sink = Arc::clone(&applied);
        let initial: Targets = initial.parse().expect("a valid list");
        let levels = Levels::new(&initial, move |targets| {
            *sink.lock().expect("no test panics with it") = targets;
            true
        });
        (levels, applied)
    }

    #[test]
    fn changes_add_up_until_reset() {
        let (levels, applied) = levels("info,h2=off");
        let enabled = |target: &str, level: Level| {
            applied.lock().expect("no test panics with it").would_enable(target, &level)
        };
        assert_eq!(levels.to_string(), "h2=off,info");
        levels.change(false, "debug").expect("it is valid");
        levels.change(false, "access=off, proxy=TRACE").expect("it is valid");
        assert_eq!(levels.to_string(), "h2=off,debug,access=off,proxy=trace");
        assert!(enabled("ztunnel::proxy::inbound", Level::TRACE) && enabled("proxy::inbound", Level::TRACE));
        assert!(enabled("ztunnel::tls", Level::DEBUG) && !enabled("ztunnel::tls", Level::TRACE));
        assert!(!enabled("access", Level::ERROR) && !enabled("h2::codec", Level::ERROR));
        levels.change(true, "warn").expect("it is valid");
        assert_eq!(levels.to_string(), "h2=off,warn");
        levels.change(true, "").expect("it is valid");
        assert_eq!(levels.to_string(), "h2=off,info");
    }

    #[test]
    fn refuses_what_is_no_level() {
        let (levels, _) = levels("info");
        for bad in ["verbose", "access", "access=loud", "=info", "3", "debug,access", "a=b=info"] {
            assert!(levels.change(false, bad).is_err(), "{bad}");
        }
        assert_eq!(levels.to_string(), "info");
    }
}
