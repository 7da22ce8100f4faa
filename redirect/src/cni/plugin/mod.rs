//! The chained CNI plugin (<https://www.cni.dev/docs/spec/>, 0.3.0 to 1.1.0): asks the agent, and decides alone when the
//! agent is away.
//!
//! | command | agent says yes | agent says no | agent is away |
//! |---|---|---|---|
//! | ADD, CHECK | passes | fails | fails for pods of enrolled namespaces, passes others |
//! | DEL | succeeds | succeeds | succeeds |
//! | GC, STATUS, VERSION | not asked | | |
//!
//! If the file of enrolled namespaces cannot be read, the agent's absence fails every pod but those of exempt namespaces.
//! A sandbox that is not of Kubernetes always passes.
//!
//! STATUS succeeds even then. By the spec it tells whether ADD can be served, and ADD can: for all pods that are not
//! enrolled. An error would make the runtime report the whole node as not ready, which stops pods that have nothing to do
//! with the mesh and evicts running ones after minutes, while ADD refuses each single pod that must wait anyway.
//!
//! GC has nothing to do: the plugin keeps nothing per sandbox, and the agent follows the API server and the namespaces.

mod agent;
mod chain;
mod failure;
mod invocation;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::wire::Question;
use super::{Sandbox, enrolled};
use agent::Outcome;
use failure::{Cause, Failure};
use invocation::{Command, Invocation, Pod, Settings};

/// The versions of the spec in which it can be called.
pub(super) const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// For what is told and not asked.
const TELLING: Duration = Duration::from_secs(2);
/// What the agent's answer takes from the agent to the runtime, so that it knows the time before the plugin gives up.
const RETURNING: Duration = Duration::from_millis(500);

/// The program.
pub fn main() -> ExitCode {
    let (text, code) = match run(|name| std::env::var_os(name), std::io::stdin().lock()) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        // Nobody reads the result; the runtime must not take the pod for started.
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is to be printed.
fn run(environment: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Result<String, Failure> {
    let started = Instant::now();
    let Invocation { command, settings } = invocation::read(environment, stdin)?;
    let version = settings.version;
    let done = match command {
        Command::Add { pod, container_id, netns } => add(pod, container_id, netns, &settings, started),
        Command::Check { pod, container_id, netns } => check(pod, container_id, netns, &settings, started),
        Command::Del { pod, container_id } => {
            if let Some(pod) = pod {
                del(pod, container_id, &settings, started);
            }
            Ok(String::new())
        }
        Command::Version => Ok(versions(version)),
        Command::Status | Command::Gc => Ok(String::new()),
    };
    done.map_err(|cause| Failure { version, cause })
}

fn add(
    pod: Option<Pod>,
    container_id: String,
    netns: std::path::PathBuf,
    settings: &Settings,
    started: Instant,
) -> Result<String, Cause> {
    let previous = settings.previous.as_ref().ok_or(Cause::NotChained)?;
    let result = chain::result(previous, settings.version)?;
    let Some(pod) = pod else { return Ok(result) };
    let addresses = chain::addresses(previous)?;
    let sandbox = sandbox(pod, container_id, netns, addresses);
    let question = |timeout_ms| Question::Add { sandbox: sandbox.clone(), timeout_ms };
    decide(&sandbox, question, settings, started)?;
    Ok(result)
}

fn check(
    pod: Option<Pod>,
    container_id: String,
    netns: std::path::PathBuf,
    settings: &Settings,
    started: Instant,
) -> Result<String, Cause> {
    let previous = settings.previous.as_ref().ok_or(Cause::NotChained)?;
    if let Some(pod) = pod {
        let sandbox = sandbox(pod, container_id, netns, chain::addresses(previous)?);
        let question = |timeout_ms| Question::Check { sandbox: sandbox.clone(), timeout_ms };
        decide(&sandbox, question, settings, started)?;
    }
    Ok(String::new())
}

fn del(pod: Pod, container_id: String, settings: &Settings, started: Instant) {
    let Pod { namespace, name, uid } = pod;
    let question = Question::Del { container_id, namespace, name, uid };
    // An agent that is away sees by itself that the namespace is gone.
    let _ = agent::ask(&settings.socket, &question, started + settings.timeout.min(TELLING));
}

fn sandbox(
    pod: Pod,
    container_id: String,
    netns: std::path::PathBuf,
    addresses: Vec<std::net::IpAddr>,
) -> Sandbox {
    let Pod { namespace, name, uid } = pod;
    Sandbox { container_id, uid, namespace, name, netns, addresses }
}

fn decide(
    sandbox: &Sandbox,
    question: impl Fn(u64) -> Question,
    settings: &Settings,
    started: Instant,
) -> Result<(), Cause> {
    let Sandbox { namespace, name, .. } = sandbox;
    let pod = format!("{namespace}/{name}");
    let agents_time = settings.timeout - RETURNING.min(settings.timeout / 4);
    let milliseconds = u64::try_from(agents_time.as_millis()).unwrap_or(u64::MAX);
    let away = match agent::ask(&settings.socket, &question(milliseconds), started + settings.timeout) {
        Ok(Outcome::Done) => return Ok(()),
        Ok(Outcome::Refused(reason)) => return Err(Cause::Refused { pod, reason }),
        Err(away) => away,
    };
    match enrolled::read(&settings.enrolled) {
        Ok(Some(names)) if names.contains(namespace) => {
            let namespace = namespace.clone();
            Err(Cause::Away { pod, namespace, socket: settings.socket.clone(), away })
        }
        Err(error) if !settings.exempt.contains(namespace) => {
            let file = settings.enrolled.clone();
            Err(Cause::Unknown { pod, file, error, socket: settings.socket.clone(), away })
        }
        Ok(_) | Err(_) => {
            // Its own log has no other place.
            let _ = writeln!(
                std::io::stderr(),
                "ztunnel-cni: pod {pod} passes without the node agent ({away}): its namespace is not known to be enrolled"
            );
            Ok(())
        }
    }
}

fn versions(version: &str) -> String {
    serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}
