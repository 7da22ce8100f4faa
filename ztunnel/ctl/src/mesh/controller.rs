//! What the controller says of the policies and of the mistakes in its manifests.

use std::io;
use std::net::ToSocketAddrs;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ztunnel_lab::Lab;
use ztunnel_lab::http::{self, Answer};

const POLICY_KINDS: [&str; 2] = ["AuthorizationPolicy", "PeerAuthentication"];

/// What became of one object, in the controller's words.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) status: String,
    /// Names of the resources that proxies are to have of it.
    pub(super) resources: Vec<String>,
    pub(super) reasons: Vec<String>,
    pub(super) workloads: usize,
}

/// What is wrong at a place of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Mistake {
    file: String,
    /// Counted from 1; 0 is the file itself.
    document: usize,
    line: usize,
    column: usize,
    path: String,
    reason: String,
    /// What the document describes, if it says so.
    object: Option<Object>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Object {
    kind: String,
    namespace: String,
    name: String,
}

/// A controller that answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Controller {
    pub(super) policies: Vec<Status>,
    pub(super) mistakes: Vec<Mistake>,
}

/// Where a controller is asked.
#[derive(Clone, Copy)]
pub(super) enum Address<'a> {
    Lab(&'a Lab),
    /// `HOST:PORT`, from where this program runs.
    Given(&'a str),
}

impl Controller {
    pub(super) fn ask(address: Address<'_>) -> io::Result<Self> {
        Ok(Self {
            policies: decode(&address.get("/policies")?)?,
            mistakes: decode(&address.get("/mistakes")?)?,
        })
    }
}

impl Address<'_> {
    fn get(self, path: &str) -> io::Result<Answer> {
        match self {
            Self::Lab(lab) => lab.controller_status(path),
            Self::Given(given) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{given} has no address"));
                for address in given.to_socket_addrs()? {
                    match http::request(address, "GET", path) {
                        Ok(answer) => return Ok(answer),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

fn decode<T: DeserializeOwned>(answer: &Answer) -> io::Result<T> {
    if answer.status != 200 {
        return Err(io::Error::other(format!("HTTP status {}", answer.status)));
    }
    serde_json::from_str(&answer.body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl Mistake {
    /// Whether it is in a policy of a namespace in scope. A document that does not say what it is may be one.
    pub(super) fn may_be_of_policy(&self, in_scope: impl Fn(&str) -> bool) -> bool {
        self.object
            .as_ref()
            .is_none_or(|object| POLICY_KINDS.contains(&object.kind.as_str()) && in_scope(&object.namespace))
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, document, line, column, path, reason, .. } = self;
        match document {
            0 => write!(f, "{file}: ")?,
            document => write!(f, "{file}:{line}:{column}: document {document}: ")?,
        }
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(reason)
    }
}
