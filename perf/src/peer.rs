//! A proxy of somebody else, as a TOML file describes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    description: Description,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    command: Command,
    redirect: Redirect,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    ready: Ready,
}

/// Program and arguments, as one list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Command {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for Command {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Self, Self::Error> {
        let mut words = words.into_iter();
        let program = words.next().ok_or("the command is empty: write [\"PROGRAM\", \"ARGUMENT\", …]")?;
        Ok(Self { program, arguments: words.collect() })
    }
}

/// How the connections of pods come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Redirect {
    /// The node's agent drives it as istio-cni would.
    Zds,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub port: u16,
    pub path: String,
}

/// With every variable in its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no peer: write NAME=FILE.toml")]
    Form(String),
    #[error(
        "{name:?} cannot name a peer: lower-case letters, digits and hyphens, and neither direct, relay nor ours"
    )]
    Name { name: String },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error(
        "peer {peer}: {place}: ${{{variable}}} is neither of the lab nor in the environment; known of the lab: {known}"
    )]
    Variable { peer: String, place: String, variable: String, known: String },
    #[error("peer {peer}: {place}: a variable is not closed: {text:?}")]
    Open { peer: String, place: String, text: String },
}

impl Peer {
    /// `NAME=FILE.toml`.
    pub fn read(argument: &str) -> Result<Self, Error> {
        let (name, path) = argument.split_once('=').ok_or_else(|| Error::Form(argument.to_owned()))?;
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(letter) || ["direct", "relay", "ours"].contains(&name) {
            return Err(Error::Name { name: name.to_owned() });
        }
        let path = Path::new(path);
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(name, &text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    fn parse(name: &str, text: &str) -> Result<Self, toml::de::Error> {
        Ok(Self { name: name.to_owned(), description: toml::from_str(text)? })
    }

    pub fn ready(&self) -> &Ready {
        &self.description.ready
    }

    /// What to start on a node of which the lab says `known`.
    pub fn start(
        &self,
        known: &BTreeMap<String, String>,
        own: impl Fn(&str) -> Option<String>,
    ) -> Result<Start, Error> {
        let Description { command, redirect: Redirect::Zds, environment, .. } = &self.description;
        let fill = |place: &str, text: &str| self.fill(place, text, known, &own);
        let program = fill("command", &command.program)?.into();
        let arguments =
            command.arguments.iter().map(|text| fill("command", text)).collect::<Result<_, Error>>()?;
        let environment = environment
            .iter()
            .map(|(key, text)| Ok((key.clone(), fill(&format!("environment.{key}"), text)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Start { program, arguments, environment })
    }

    fn fill(
        &self,
        place: &str,
        text: &str,
        known: &BTreeMap<String, String>,
        own: &impl Fn(&str) -> Option<String>,
    ) -> Result<String, Error> {
        let (peer, place) = (self.name.clone(), place.to_owned());
        let mut pieces = text.split("${");
        let mut filled = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let Some((variable, rest)) = piece.split_once('}') else {
                return Err(Error::Open { peer, place, text: text.to_owned() });
            };
            match known.get(variable).cloned().or_else(|| own(variable)) {
                Some(value) => filled += &value,
                None => {
                    let known = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                    return Err(Error::Variable { peer, place, variable: variable.to_owned(), known });
                }
            }
            filled += rest;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        command = ["${PROGRAM}", "proxy", "--node=${NODE_NAME}"]
        redirect = "zds"
        environment = { XDS = "${XDS_ADDRESS}/x" }
        ready = { port = 15021, path = "/ready" }
    "#;

    fn known() -> BTreeMap<String, String> {
        [("NODE_NAME", "a"), ("XDS_ADDRESS", "https://c:1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn variables_are_of_the_lab_or_of_the_environment() {
        let peer = Peer::parse("p", TEXT).expect("it is right");
        let own = |name: &str| (name == "PROGRAM").then(|| "/bin/p".to_owned());
        let start = peer.start(&known(), own).expect("all are known");
        assert_eq!(start.program, Path::new("/bin/p"));
        assert_eq!(start.arguments, ["proxy", "--node=a"]);
        assert_eq!(start.environment, [("XDS".to_owned(), "https://c:1/x".to_owned())]);
        let missing = peer.start(&known(), |_| None).expect_err("no program").to_string();
        assert!(
            missing.contains("peer p: command: ${PROGRAM}") && missing.contains("NODE_NAME"),
            "{missing}"
        );
    }

    #[test]
    fn what_is_written_wrong_is_named() {
        let parse = |text: &str| Peer::parse("p", text).map_err(|error| error.to_string());
        assert!(
            parse(&TEXT.replace("redirect =", "redirct =")).expect_err("a misspelt key").contains("redirct")
        );
        assert!(parse(&TEXT.replace("zds", "ebpf")).expect_err("not a redirection").contains("zds"));
        let empty = TEXT.replace(r#"["${PROGRAM}", "proxy", "--node=${NODE_NAME}"]"#, "[]");
        assert!(parse(&empty).expect_err("nothing to start").contains("the command is empty"));
        let open = Peer::parse("p", &TEXT.replace("${PROGRAM}", "${PROGRAM")).expect("it is TOML");
        assert!(matches!(open.start(&known(), |_| None), Err(Error::Open { .. })));
        assert!(matches!(Peer::read("istio"), Err(Error::Form(_))));
        assert!(matches!(Peer::read("ours=x.toml"), Err(Error::Name { .. })));
        assert!(matches!(Peer::read("p=/nowhere/p.toml"), Err(Error::Read { .. })));
    }

    #[test]
    fn the_file_in_the_tree_is_right() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/istio.toml");
        let peer = Peer::read(&format!("istio={file}")).expect("it is read");
        assert_eq!(peer.ready().port, 15021);
    }
}
