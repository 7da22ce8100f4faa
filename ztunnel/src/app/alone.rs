//! The proxy as Istio's chart starts it: one container, as root, beneath istio-cni, and no agent beside it.
//!
//! ```text
//! ztunnel proxy (root, this one) ─┬─▶ ztunnel-redirect --inpod-uds …   keeps the capabilities, started again when it ends
//!                                 └─▶ ztunnel proxy                    gives them up before it reads a byte
//! ```
//!
//! This process serves nobody: it passes SIGTERM and SIGINT to the proxy, which drains, and ends as the proxy does. The proxy
//! stays user 0, because the chart grants nothing to change that with, and is of no use as such: it can gain no capability.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::Config;
use crate::io::privileges;

const AGENT: &str = "ztunnel-redirect";
/// For the agent to end, which has nothing to drain.
const GRACE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is missing; it belongs beside this program, which is to start it")]
    Missing(PathBuf),
    #[error("cannot start {program}: {source}")]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot make a folder for the agent's socket in {folder}: {source}")]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot wait for the processes: {0}")]
    Wait(io::Error),
}

/// Whether nobody names an agent and this process could be one.
pub fn is_wanted(config: &Config) -> bool {
    config.alone && !config.allow_privileges && privileges::may_capture()
}

/// Runs until the proxy has ended.
pub async fn run(config: &Config) -> Result<ExitCode, Error> {
    let own = std::env::current_exe().map_err(Error::Wait)?;
    let agent = own.with_file_name(AGENT);
    if !agent.exists() {
        return Err(Error::Missing(agent));
    }
    let folder = Folder::make()?;
    let ended = attend(&own, &agent, &folder.0.join("redirect.sock"), &config.inpod_uds).await?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).map_or_else(
        || ExitCode::from(128 + ended.signal().and_then(|number| u8::try_from(number).ok()).unwrap_or(0)),
        ExitCode::from,
    ))
}

async fn attend(own: &Path, program: &Path, socket: &Path, zds: &Path) -> Result<ExitStatus, Error> {
    let heard = |kind| signal(kind).map_err(Error::Wait);
    let mut terminate = heard(SignalKind::terminate())?;
    let mut interrupt = heard(SignalKind::interrupt())?;
    let mut child_ended = heard(SignalKind::child())?;
    let mut agent = Some(start_agent(program, socket, zds)?);
    let mut proxy = start(own, |command| command.arg("proxy").env("REDIRECT_SOCKET", socket))?;
    let (mut pause, mut again) = (FIRST_PAUSE, Instant::now());
    let mut later = move || {
        let wait = pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
        (wait, Instant::now() + wait.mul_f64(rand::random_range(0.5..=1.0)))
    };
    let ended = loop {
        tokio::select! {
            _ = child_ended.recv() => {}
            () = sleep_until(again), if agent.is_none() => match start_agent(program, socket, zds) {
                Ok(started) => agent = Some(started),
                Err(error) => {
                    let (pause, next) = later();
                    tracing::error!(%error, ?pause, "pods are served as they are, and the agent is started again");
                    again = next;
                }
            },
            _ = terminate.recv() => pass(&proxy, Signal::SIGTERM),
            _ = interrupt.recv() => pass(&proxy, Signal::SIGINT),
        }
        if let Some(ended) = proxy.0.try_wait().map_err(Error::Wait)? {
            break ended;
        }
        let Some(child) = &mut agent else { continue };
        if let Some(ended) = child.0.try_wait().map_err(Error::Wait)? {
            let (pause, next) = later();
            tracing::error!(%ended, ?pause, "the agent has ended; pods are served as they are, and it is started again");
            (agent, again) = (None, next);
        }
    };
    let Some(mut agent) = agent else { return Ok(ended) };
    pass(&agent, Signal::SIGTERM);
    let until = Instant::now() + GRACE;
    while agent.0.try_wait().map_err(Error::Wait)?.is_none()
        && timeout_at(until, child_ended.recv()).await.is_ok()
    {}
    Ok(ended)
}

fn start_agent(program: &Path, socket: &Path, zds: &Path) -> Result<Part, Error> {
    start(program, |command| {
        command.arg("--inpod-uds").arg(zds).arg("--socket").arg(socket).args(["--proxy-uid", "0"])
    })
}

fn start(program: &Path, with: impl FnOnce(&mut Command) -> &mut Command) -> Result<Part, Error> {
    let started = with(&mut Command::new(program)).spawn();
    started.map(Part).map_err(|source| Error::Start { program: program.to_owned(), source })
}

/// Ends with this process, unless that is killed.
struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// To a process that was not waited for to its end, so that the number is still its own.
fn pass(part: &Part, signal: Signal) {
    let _ = kill(Pid::from_raw(part.0.id().cast_signed()), signal);
}

/// Nobody else's: two instances overlap in an upgrade, each with an agent of its own.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let temporary = std::env::temp_dir();
        let folder = temporary.join(format!("ztunnel-{:016x}", rand::random::<u64>()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|source| Error::Folder { folder: temporary, source })?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
