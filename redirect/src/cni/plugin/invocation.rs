//! What the runtime asks: environment variables and the network configuration on stdin.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::VERSIONS;
use super::failure::{Cause, Failure};
use crate::cni::wire::LONGEST_WAIT;
use crate::cni::{ENROLLED, EXEMPT, SOCKET};

pub(super) const MAX_STDIN: u64 = 1024 * 1024;
pub(super) const LONGEST_TIMEOUT: Duration = LONGEST_WAIT;
const DEFAULT_TIMEOUT: u64 = 30;

pub(super) struct Invocation {
    pub(super) command: Command,
    pub(super) settings: Settings,
}

/// A pod is None for a sandbox that is not of Kubernetes.
pub(super) enum Command {
    Add { pod: Option<Pod>, container_id: String, netns: PathBuf },
    Check { pod: Option<Pod>, container_id: String, netns: PathBuf },
    Del { pod: Option<Pod>, container_id: String },
    Version,
    Status,
    Gc,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

pub(super) struct Settings {
    pub(super) version: &'static str,
    pub(super) socket: PathBuf,
    pub(super) enrolled: PathBuf,
    pub(super) timeout: Duration,
    pub(super) exempt: Vec<String>,
    pub(super) previous: Option<Value>,
}

/// The plugin's entry of the conflist, with what the runtime adds. Runtimes add keys of their own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: Option<String>,
    socket: Option<PathBuf>,
    enrolled: Option<PathBuf>,
    timeout_seconds: Option<u64>,
    exempt: Option<Vec<String>>,
    prev_result: Option<Value>,
}

/// Before its version is known, the runtime is told of failures in the newest.
pub(super) fn read(
    environment: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
) -> Result<Invocation, Failure> {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let command = command(&environment);
    // Read in any case: a runtime that still writes must not find the pipe closed.
    let text = all(stdin);
    let early = |cause| Failure { version: newest, cause };
    let command = command.map_err(early)?;
    let text = text.map_err(early)?;
    if matches!(command, Command::Version) && text.iter().all(u8::is_ascii_whitespace) {
        let settings =
            settings(serde_json::from_str("{}").map_err(|e| early(Cause::Undecodable(e)))?, newest);
        return Ok(Invocation { command, settings: settings? });
    }
    let configuration: Configuration =
        serde_json::from_slice(&text).map_err(|error| early(Cause::Undecodable(error)))?;
    let named = configuration.cni_version.as_deref().unwrap_or_default();
    let version = match VERSIONS.iter().find(|version| **version == named) {
        Some(version) => version,
        None if matches!(command, Command::Version) => newest,
        None => return Err(early(Cause::Version(named.to_owned()))),
    };
    Ok(Invocation { command, settings: settings(configuration, version)? })
}

fn all(stdin: impl Read) -> Result<Vec<u8>, Cause> {
    let mut text = Vec::new();
    stdin.take(MAX_STDIN + 1).read_to_end(&mut text).map_err(Cause::Stdin)?;
    if text.len() as u64 > MAX_STDIN { Err(Cause::TooLong) } else { Ok(text) }
}

fn settings(configuration: Configuration, version: &'static str) -> Result<Settings, Failure> {
    let seconds = configuration.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT);
    if seconds == 0 || seconds > LONGEST_TIMEOUT.as_secs() {
        return Err(Failure { version, cause: Cause::Timeout { seconds } });
    }
    Ok(Settings {
        version,
        socket: configuration.socket.unwrap_or_else(|| SOCKET.into()),
        enrolled: configuration.enrolled.unwrap_or_else(|| ENROLLED.into()),
        timeout: Duration::from_secs(seconds),
        exempt: configuration.exempt.unwrap_or_else(|| vec![EXEMPT.to_owned()]),
        previous: configuration.prev_result,
    })
}

fn command(environment: &impl Fn(&str) -> Option<OsString>) -> Result<Command, Cause> {
    let wrong = |name, problem: String| Cause::Environment { name, problem };
    let optional = |name: &'static str| match environment(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
        Some(Err(value)) => Err(wrong(name, format!("is not UTF-8: {value:?}"))),
    };
    let required = |name| optional(name)?.ok_or_else(|| wrong(name, "is missing".to_owned()));
    let container_id = || {
        let id = required("CNI_CONTAINERID")?;
        let begins = id.starts_with(|c: char| c.is_ascii_alphanumeric());
        let goes_on = id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if begins && goes_on {
            Ok(id)
        } else {
            Err(wrong("CNI_CONTAINERID", format!("is {id:?}, no valid id")))
        }
    };
    let netns = || {
        let path = PathBuf::from(required("CNI_NETNS")?);
        let problem = || wrong("CNI_NETNS", format!("is {}, no absolute path", path.display()));
        if path.is_absolute() { Ok(path) } else { Err(problem()) }
    };
    let pod = || pod(&optional("CNI_ARGS")?.unwrap_or_default());
    let name = required("CNI_COMMAND")?;
    if let "ADD" | "CHECK" | "DEL" = name.as_str() {
        required("CNI_IFNAME")?;
    }
    match name.as_str() {
        "ADD" => Ok(Command::Add { container_id: container_id()?, netns: netns()?, pod: pod()? }),
        "CHECK" => Ok(Command::Check { container_id: container_id()?, netns: netns()?, pod: pod()? }),
        "DEL" => Ok(Command::Del { container_id: container_id()?, pod: pod()? }),
        "VERSION" => Ok(Command::Version),
        "STATUS" => Ok(Command::Status),
        "GC" => Ok(Command::Gc),
        other => Err(wrong("CNI_COMMAND", format!("is {other:?}, which is no command of CNI"))),
    }
}

/// What cannot be told apart from a pod is refused: taken for something else it would pass.
fn pod(arguments: &str) -> Result<Option<Pod>, Cause> {
    let wrong = |problem: String| Cause::Environment { name: "CNI_ARGS", problem };
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| wrong(format!("has {pair:?}, which is not KEY=VALUE")))?;
        let known = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            // IgnoreUnknown, K8S_POD_INFRA_CONTAINER_ID and whatever else a runtime tells.
            _ => continue,
        };
        *known = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    match (namespace, name) {
        (None, None) => Ok(None),
        (Some(namespace), Some(name)) => Ok(Some(Pod { namespace, name, uid })),
        (None, Some(name)) => Err(wrong(format!("names pod {name:?} and has no K8S_POD_NAMESPACE"))),
        (Some(namespace), None) => {
            Err(wrong(format!("names namespace {namespace:?} and has no K8S_POD_NAME")))
        }
    }
}
