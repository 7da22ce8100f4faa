//! What is measured beside what.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::peer::Peer;
use crate::scenario::Scenario;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variant {
    /// Pods talk to each other without anybody between them.
    Direct,
    /// A relay on each node that copies bytes and does nothing else: what two hops cost.
    Relay,
    /// This project's proxy, with this environment besides its defaults.
    Ours {
        name: String,
        environment: Vec<(String, String)>,
    },
    /// This project's proxy where it makes no tunnel between pods of one node; measured between those alone.
    Plain,
    /// This project's proxy with so many workers; measured where they count.
    Workers {
        name: String,
        count: usize,
    },
    Peer(Peer),
}

/// This project's proxy with the other backend for applications' sockets.
const URING: &str = "uring";
/// How it is named.
pub const PLAIN: &str = "plain";

/// Of which kind a variant is; what a report compares by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Direct,
    Relay,
    Ours,
    /// Ours with a number of workers: told as a curve, without columns of its own.
    Workers,
    Peer,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Ours => "ours",
            Self::Workers => "workers",
            Self::Peer => "the peer",
        }
    }
}

impl Variant {
    pub fn ours() -> Self {
        Self::Ours { name: "ours".to_owned(), environment: Vec::new() }
    }

    pub fn uring() -> Self {
        Self::Ours {
            name: URING.to_owned(),
            environment: vec![("IO_BACKEND".to_owned(), "uring".to_owned())],
        }
    }

    /// `NAME=VARIABLE=VALUE,...`
    pub fn ours_with(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?}: write NAME=VARIABLE=VALUE, and more of VARIABLE=VALUE after commas");
        let (name, settings) = text.split_once('=').ok_or_else(wrong)?;
        let setting = |one: &str| {
            let (key, value) = one.split_once('=').ok_or_else(wrong)?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let environment = settings.split(',').map(setting).collect::<Result<_, String>>()?;
        Ok(Self::Ours { name: name.to_owned(), environment })
    }

    /// One, two, four and so on, and as many as the machine has cores.
    pub fn workers(cores: usize) -> impl Iterator<Item = Self> {
        let doubled =
            std::iter::successors(Some(1), |count| Some(count * 2)).take_while(move |count| *count < cores);
        doubled.chain([cores]).map(|count| Self::Workers { name: format!("workers: {count}"), count })
    }

    pub fn measures(&self, scenario: &Scenario) -> bool {
        match self {
            Self::Plain => scenario.is_near(),
            Self::Workers { .. } => scenario.grows_with_workers(),
            _ => true,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Ours { name, .. } | Self::Workers { name, .. } => name,
            Self::Plain => PLAIN,
            Self::Peer(peer) => &peer.name,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Direct => Kind::Direct,
            Self::Relay => Kind::Relay,
            Self::Ours { .. } | Self::Plain => Kind::Ours,
            Self::Workers { .. } => Kind::Workers,
            Self::Peer(_) => Kind::Peer,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_grow_to_what_there_is() {
        let counts =
            |cores| -> Vec<String> { Variant::workers(cores).map(|one| one.name().to_owned()).collect() };
        assert_eq!(counts(1), ["workers: 1"]);
        assert_eq!(counts(6), ["workers: 1", "workers: 2", "workers: 4", "workers: 6"]);
    }

    #[test]
    fn settings_are_read() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let environment = vec![pair("A", "1"), pair("B", "x=y")];
        assert_eq!(
            Variant::ours_with("wide=A=1,B=x=y"),
            Ok(Variant::Ours { name: "wide".to_owned(), environment })
        );
        for wrong in ["", "wide", "wide=A", "wide=A=1,"] {
            assert!(Variant::ours_with(wrong).is_err(), "{wrong}");
        }
    }
}
