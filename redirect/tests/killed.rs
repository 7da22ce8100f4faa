//! An agent that is killed at any moment leaves a pod captured or untouched, nothing between.

mod namespace;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use redirect::netns::Netns;
use redirect::rules;

const DEADLINE: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 40;

struct Bed {
    folder: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("killed-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let bed = Self { folder };
        namespace::make(&bed.netns());
        bed
    }

    fn netns(&self) -> PathBuf {
        self.folder.join("netns")
    }

    fn agent(&self) -> Child {
        namespace::agent(&self.folder, &[])
    }

    fn list(&self, pods: &str) {
        std::fs::write(self.folder.join("pods.json"), format!("{{\"pods\":[{pods}]}}")).expect("written");
    }

    /// How many parts of our table there are in the pod.
    fn parts(&self) -> usize {
        let namespace = Netns::open(Path::new(&self.netns())).expect("it is there");
        let dump = namespace.run_blocking(|| rules::dump().expect("a dump")).expect("work in it");
        dump.iter().filter(|body| body.windows(8).any(|part| part == b"ztunnel\0")).count()
    }

    fn wait_for(&self, so: impl Fn(usize) -> bool) -> usize {
        let start = Instant::now();
        loop {
            let parts = self.parts();
            if so(parts) {
                return parts;
            }
            assert!(start.elapsed() < DEADLINE, "{parts} parts");
            std::thread::yield_now();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = umount2(&self.netns(), MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn kill(mut agent: Child) {
    agent.kill().expect("it ran");
    agent.wait().expect("it ended");
}

#[test]
fn killed_at_any_moment_a_pod_is_captured_or_untouched() {
    let bed = Bed::new();
    let pod = format!(
        r#"{{"uid":"u","name":"p","namespace":"n","serviceAccount":"a","netns":"{}","addresses":["10.0.0.1"]}}"#,
        bed.netns().display()
    );
    assert_eq!(bed.parts(), 0);
    bed.list(&pod);
    let (start, agent) = (Instant::now(), bed.agent());
    bed.wait_for(|parts| parts > 0);
    let moment = start.elapsed();
    kill(agent);
    // Only now: a dump takes several questions, between which the agent may act.
    let whole = bed.parts();
    let again = bed.agent();
    bed.wait_for(|parts| parts == whole);
    kill(again);
    assert_eq!(bed.parts(), whole, "the same again");
    let mut seen = [0, 0];
    for round in 0..ROUNDS {
        // Captures and withdraws in turns, and is killed around the moment at which it does.
        let (listed, expected) = if round % 2 == 0 { ("", 0) } else { (pod.as_str(), whole) };
        bed.list(listed);
        let (start, agent) = (Instant::now(), bed.agent());
        let until = moment * 2 * (round / 2) / (ROUNDS / 2);
        while start.elapsed() < until {
            std::thread::yield_now();
        }
        kill(agent);
        let parts = bed.parts();
        assert!(parts == 0 || parts == whole, "round {round}: {parts} of {whole} parts");
        seen[usize::from(parts == expected)] += 1;
        // The next one begins where this one should have come to.
        let agent = bed.agent();
        bed.wait_for(|parts| parts == expected);
        kill(agent);
    }
    assert!(seen.iter().all(|count| *count > 0), "killed before and after: {seen:?}");
}
