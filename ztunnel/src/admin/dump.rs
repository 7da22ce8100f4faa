//! `/config_dump`: one key per part, each made when it is asked for.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

type Part = Box<dyn Fn() -> Value + Send + Sync>;

/// The parts, in the order in which they were added.
#[derive(Default)]
pub struct Dump(Vec<(&'static str, Part)>);

impl Dump {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one top-level key (interop.md section 11.5 lists them).
    pub fn part(mut self, key: &'static str, part: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.0.push((key, Box::new(part)));
        self
    }

    pub(super) fn render(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: a map of JSON values always serializes")
    }
}

impl Serialize for Dump {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, part) in &self.0 {
            map.serialize_entry(key, &part())?;
        }
        map.end()
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

/// The dump's part `version`. `GIT_REVISION` and `ISTIO_VERSION` may be set when the crate is compiled.
pub fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("GIT_REVISION").unwrap_or("unknown"),
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "buildStatus": option_env!("BUILD_STATUS").unwrap_or("unknown"),
        "istioVersion": option_env!("ISTIO_VERSION").unwrap_or("unknown"),
        "cryptoProvider": "tls-aws-lc",
    })
}
