//! Two agents of one node: the new one takes over while the old one lives, and the old one when the new one ends.

mod namespace;

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use redirect::client::{Client, Event, Held, Listeners};
use redirect::netns::Netns;
use redirect::rules;

const DEADLINE: Duration = Duration::from_secs(20);

struct Bed {
    folder: PathBuf,
    agents: Vec<Child>,
}

impl Bed {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("succession-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let netns = folder.join("netns");
        namespace::make(&netns);
        let pod = format!(
            r#"{{"pods":[{{"uid":"u","name":"p","namespace":"n","serviceAccount":"a","netns":"{}","addresses":["10.0.0.1"]}}]}}"#,
            netns.display()
        );
        std::fs::write(folder.join("pods.json"), pod).expect("written");
        Self { folder, agents: Vec::new() }
    }

    fn start(&mut self) {
        let child = namespace::agent(&self.folder, &["--proxy-uid", "0"]);
        self.agents.push(child);
    }

    fn dump(&self) -> usize {
        let netns = Netns::open(&self.folder.join("netns")).expect("it is there");
        // Not on the thread of the test's runtime.
        let work = move || netns.run_blocking(|| rules::dump().expect("a dump").len()).expect("work inside");
        std::thread::spawn(work).join().expect("a dump")
    }

    /// Connects as a proxy does, with what it holds, and returns the pod's listeners.
    async fn proxy(&self, held: Option<Listeners>) -> (Client, Listeners) {
        let started = Instant::now();
        loop {
            let held = held
                .iter()
                .filter_map(|listeners| Some(Held { uid: "u".into(), listeners: copy(listeners)? }));
            if let Ok(mut client) = Client::connect(&self.folder.join("redirect.sock"), held.collect()).await
            {
                while let Ok(Ok(event)) = tokio::time::timeout(DEADLINE, client.next()).await {
                    if let Event::PodAdded(pod) = event {
                        return (client, pod.listeners);
                    }
                }
            }
            assert!(started.elapsed() < DEADLINE, "no agent serves");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Waits until the agent lets go.
async fn ends(client: &mut Client) {
    let end = async { while client.next().await.is_ok() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("the agent lets go of its proxies");
}

fn copy(listeners: &Listeners) -> Option<Listeners> {
    listeners.try_clone().ok()
}

impl Drop for Bed {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = nix::mount::umount(&self.folder.join("netns"));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn agents_succeed_each_other_and_no_listener_is_lost() {
    let mut bed = Bed::new();
    bed.start();
    let (mut client, listeners) = bed.proxy(None).await;
    let (port, rules) = (listeners.hbone.local_addr().expect("an address"), bed.dump());
    bed.start();
    ends(&mut client).await;
    let (mut client, again) = bed.proxy(Some(listeners)).await;
    assert_eq!(again.hbone.local_addr().expect("an address"), port);
    assert_eq!(bed.dump(), rules, "the pod was captured all the time");
    assert!(bed.agents.iter_mut().all(|agent| agent.try_wait().expect("a child").is_none()), "both live");

    bed.agents[1].kill().expect("it lives");
    ends(&mut client).await;
    let (_client, back) = bed.proxy(Some(again)).await;
    assert_eq!(back.hbone.local_addr().expect("an address"), port, "the first serves again");
    assert_eq!(bed.dump(), rules);
    assert!(bed.agents[0].try_wait().expect("a child").is_none());
}
