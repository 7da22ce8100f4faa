//! Requests that go on while something happens, and connections that are to outlive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::apps::{self, SHOP};
use super::kubectl::{eventually, exec, require};

/// Requests of one pod to the Service, one after the other.
pub struct Load {
    ends: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    pub fn start(from: &str) -> Self {
        let (ends, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (told, count, from) = (ends.clone(), done.clone(), from.to_owned());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !told.load(Ordering::Relaxed) {
                match apps::ask(&from) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(error),
                }
            }
            failures
        });
        let load = Self { ends, done, thread };
        load.goes_on();
        load
    }

    /// Waits for ten more answers.
    pub fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("requests are answered", || {
            require(self.done.load(Ordering::Relaxed) >= before + 10, "no answers")
        });
    }

    /// How many were answered; those that were not fail the story.
    pub fn finish(self, what: &str) -> usize {
        self.ends.store(true, Ordering::Relaxed);
        let failures = self.thread.join().expect("invariant: the thread does not panic");
        let done = self.done.load(Ordering::Relaxed);
        assert!(
            failures.is_empty(),
            "{what}: {} of {} requests failed: {failures:#?}",
            failures.len(),
            done + failures.len()
        );
        done
    }
}

/// A redis client inside the client pod that holds its connection: one PING a second, each answered or told.
pub struct Held(());

const SCRIPT: &str = "rm -f /tmp/held /tmp/held.in; mkfifo /tmp/held.in; (redis-cli -h ADDRESS < /tmp/held.in > /tmp/held 2>&1; \
    echo ENDED >> /tmp/held) & exec 9> /tmp/held.in; for i in $(seq 3600); do echo \"ECHO alive$i\" >&9 || exit; sleep 1; done";

impl Held {
    /// Begins a connection of the pod `client` to redis.
    pub fn open() -> Self {
        let address = apps::addresses(&format!("{SHOP}/redis")).remove(0);
        let script = SCRIPT.replace("ADDRESS", &address);
        let detached = format!("nohup setsid sh -c '{script}' > /dev/null 2>&1 &");
        exec(&format!("{SHOP}/client"), &["sh", "-c", &detached]).unwrap_or_else(|error| panic!("{error}"));
        let held = Self(());
        held.answers();
        held
    }

    /// Waits for two more answers on the same connection.
    pub fn answers(&self) {
        let count = || -> Result<usize, String> {
            let heard = exec(&format!("{SHOP}/client"), &["cat", "/tmp/held"])?;
            // A client that has to connect anew says so.
            let lost = heard.contains("ENDED") || heard.contains("rror") || heard.contains("closed");
            assert!(!lost, "the connection to redis broke: {heard}");
            Ok(heard.matches("alive").count())
        };
        let before = count().unwrap_or(0);
        eventually("redis answers on the connection that was opened before", || {
            let now = count()?;
            require(now >= before + 2, format!("{now} answers"))
        });
    }
}
