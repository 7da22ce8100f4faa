//! Requests that go on while something happens, and connections that are to outlive it.

use super::apps::{self, SHOP};
use super::kubectl::{eventually, exec, require};

/// Requests of one pod to the Service, each on a connection of its own, one after the other, by a loop inside the pod.
pub struct Load {
    from: String,
}

/// One line per request: `ok`, or what curl says.
const LOOP: &str = "rm -f /tmp/load.ends; while [ ! -e /tmp/load.ends ]; do \
    said=$(curl --silent --show-error --fail --max-time 10 --output /dev/null URL 2>&1) && echo ok || echo \"$(date +%T.%N) $said\"; \
    done > /tmp/load; touch /tmp/load.ended";

impl Load {
    pub fn start(from: &str) -> Self {
        let script = LOOP.replace("URL", &apps::url());
        let detached = format!("rm -f /tmp/load.ended; nohup setsid sh -c '{script}' > /dev/null 2>&1 &");
        exec(from, &["sh", "-c", &detached]).unwrap_or_else(|error| panic!("{error}"));
        let load = Self { from: from.to_owned() };
        load.goes_on();
        load
    }

    fn done(&self) -> Result<usize, String> {
        let count = exec(&self.from, &["grep", "--count", "^ok$", "/tmp/load"])?;
        count.trim().parse().map_err(|_| format!("grep said {count:?}"))
    }

    /// Waits for a hundred more answers.
    pub fn goes_on(&self) {
        let before = self.done().unwrap_or(0);
        eventually("requests are answered", || {
            let done = self.done()?;
            require(done >= before + 100, format!("{done} answers"))
        });
    }

    /// How many were answered; those that were not fail the story.
    pub fn finish(self, what: &str) -> usize {
        exec(&self.from, &["touch", "/tmp/load.ends"]).unwrap_or_else(|error| panic!("{error}"));
        eventually("the load ends", || exec(&self.from, &["test", "-e", "/tmp/load.ended"]));
        let done = self.done().unwrap_or_else(|error| panic!("{error}"));
        let failed = exec(&self.from, &["sh", "-c", "grep --invert-match '^ok$' /tmp/load || true"]);
        let failed = failed.unwrap_or_else(|error| panic!("{error}"));
        assert!(failed.is_empty(), "{what}: besides {done} answers:\n{failed}");
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
