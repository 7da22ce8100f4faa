//! Processes that outlive the command that started them, found again by pid and start time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redirect::netns::Ident;

use crate::namespace;
use crate::wait::wait_until;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    #[error("cannot start {program}: {source}")]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Record { path: PathBuf, source: io::Error },
}

/// What to start and where.
pub struct Start<'a> {
    pub namespace: &'a str,
    pub program: &'a Path,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub user: Option<u32>,
    /// Standard output and error are appended here.
    pub log: &'a Path,
    /// Pid and start time are recorded here.
    pub record: &'a Path,
}

/// A process of the lab.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    started: u64,
    record: Option<PathBuf>,
    child: Option<Child>,
}

impl Process {
    pub fn start(start: Start<'_>) -> Result<Self, Error> {
        let record = |source| Error::Record { path: start.log.to_owned(), source };
        let log = OpenOptions::new().create(true).append(true).open(start.log).map_err(record)?;
        let mut command = Command::new(start.program);
        command
            .args(&start.arguments)
            .env_clear()
            .envs(start.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(record)?)
            .stderr(log)
            .current_dir("/")
            .process_group(0);
        if let Some(user) = start.user {
            command.uid(user).gid(user);
        }
        let fail = |source| Error::Start { program: start.program.to_owned(), source };
        let child = namespace::run(start.namespace, move || command.spawn())?.map_err(fail)?;
        let pid = child.id() as i32;
        let started = start_time(pid).unwrap_or_default();
        let path = start.record.to_owned();
        fs::write(&path, format!("{pid} {started}"))
            .map_err(|source| Error::Record { path: path.clone(), source })?;
        Ok(Self { pid, started, record: Some(path), child: Some(child) })
    }

    /// A process that an earlier command started, if it still runs.
    pub fn recorded(record: &Path) -> Option<Self> {
        let text = fs::read_to_string(record).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let process = Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
            record: Some(record.to_owned()),
            child: None,
        };
        process.runs().then_some(process)
    }

    /// Every process whose network namespace is one of these, but not this one.
    pub fn inside(namespaces: &[Ident]) -> Vec<Self> {
        let own = std::process::id() as i32;
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|&pid| pid != own)
            .filter_map(|pid| {
                // First when it started: should the pid be used again in between, nothing is found at worst.
                let started = start_time(pid)?;
                let namespace = Ident::at(Path::new(&format!("/proc/{pid}/ns/net"))).ok()?;
                let process = Self { pid, started, record: None, child: None };
                namespaces.contains(&namespace).then_some(process)
            })
            .collect()
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn runs(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    pub fn signal(&self, signal: Signal) {
        if self.runs() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Ends the process: politely for as long as `grace`, then not.
    pub fn stop(mut self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        if !wait_until(grace, || self.ended()) {
            self.signal(Signal::SIGKILL);
            wait_until(Duration::from_secs(5), || self.ended());
        }
        self.forget();
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        wait_until(Duration::from_secs(5), || self.ended());
        self.forget();
    }

    fn forget(&self) {
        if let Some(record) = &self.record {
            let _ = fs::remove_file(record);
        }
    }

    /// Whether it has ended; collects its status if it is a child of ours.
    pub fn ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !self.runs(),
        }
    }

    /// The exit status of a child of ours that has ended.
    pub fn status(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// How many descriptors it has open.
    pub fn open_files(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> io::Result<u64> {
        resident(&fs::read_to_string(format!("/proc/{}/status", self.pid))?)
            .ok_or_else(|| io::Error::other(format!("process {} has no memory", self.pid)))
    }
}

/// Out of proc_pid_status(5); a process that has ended has none.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    (kib > 0).then_some(kib * 1024)
}

/// When a live process started (field 22 of proc_pid_stat(5)); a pid that was used again has another. A zombie does
/// not count as alive.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Writes a file so that a reader sees the old or the new content, never a part.
pub fn write_atomically(path: &Path, text: &str, owner: Option<u32>, mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, chown};
    let fresh = path.with_extension("new");
    let mut file: File =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    if let Some(owner) = owner {
        chown(&fresh, Some(owner), Some(owner))?;
    }
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_cannot_be_read_is_no_figure() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    12 kB\n"), Some(12 * 1024));
        for status in ["", "VmRSS:\t 0 kB", "VmRSS:\t many kB", "VmRSS:\t 12"] {
            assert_eq!(resident(status), None, "{status}");
        }
    }
}
