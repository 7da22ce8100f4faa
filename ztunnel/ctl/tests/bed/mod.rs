//! A lab of a folder from the command line.

#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use ztunnel_lab::wait_until;

const DEADLINE: Duration = Duration::from_secs(20);

/// A lab and its folder; both go at the end.
pub struct Bed {
    pub name: String,
    pub folder: PathBuf,
}

impl Bed {
    pub fn new(what: &str) -> Self {
        let name = format!("{what}{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self { name, folder }
    }

    /// Replaced whole, as an editor does it.
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.join(".fresh"), text).expect("a file");
        fs::rename(self.folder.join(".fresh"), self.folder.join(file)).expect("a file");
    }

    pub fn lab(&self, arguments: &[&str]) -> Output {
        run(&[&["lab", "--name", &self.name], arguments].concat())
    }

    pub fn status(&self) -> Value {
        json(&self.lab(&["--output", "json", "status"]))
    }

    pub fn up(&self) -> Output {
        let folder = self.folder.display().to_string();
        let up = self.lab(&["up", "-f", &folder]);
        assert!(up.status.success(), "{}{}", text(&up.stdout), text(&up.stderr));
        up
    }

    pub fn policies(&self, arguments: &[&str]) -> Output {
        run(&[&["policies", "--lab", &self.name], arguments].concat())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = PathBuf::from("/run/ztunnel-lab").join(&self.name);
            for log in ["follow.log", "controller.log"] {
                eprintln!("--- {log}\n{}", fs::read_to_string(state.join(log)).unwrap_or_default());
            }
        }
        self.lab(&["down"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnelctl"))
        .args(arguments)
        .output()
        .expect("the program can be started")
}

pub fn json(output: &Output) -> Value {
    let (text, error) = (text(&output.stdout), text(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|reason| panic!("{reason}: {text}{error}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How long it took until the condition came true.
pub fn soon(condition: impl FnMut() -> bool) -> Option<Duration> {
    let started = Instant::now();
    wait_until(DEADLINE, condition).then(|| started.elapsed())
}
