//! The agent beside a proxy that is already there.

use super::*;
use crate::client::{Client, Event};
use crate::rules::fixture::Named;

const DEADLINE: Duration = Duration::from_secs(10);

struct Bed {
    folder: PathBuf,
    agent: tokio::task::JoinHandle<()>,
}

impl Bed {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("agent-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        // The tests run as root.
        let role = Role::Capture { pods: folder.join("pods.json") };
        let config = Config { socket: folder.join("redirect.sock"), proxy_uid: 0, role };
        let agent = tokio::spawn(async move {
            run(config).await.unwrap_or_else(|error| panic!("{error}"));
        });
        Self { folder, agent }
    }

    async fn client(&self) -> Client {
        let connect = async {
            loop {
                match Client::connect(&self.folder.join("redirect.sock"), Vec::new()).await {
                    Ok(client) => return client,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(DEADLINE, connect).await.expect("the agent listens")
    }

    fn list(&self, pods: &str) {
        let fresh = self.folder.join("fresh");
        std::fs::write(&fresh, format!("{{\"pods\":[{pods}]}}")).expect("written");
        std::fs::rename(&fresh, self.folder.join("pods.json")).expect("renamed");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.agent.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn next(client: &mut Client) -> Event {
    let event = tokio::time::timeout(DEADLINE, client.next()).await.expect("an event comes");
    event.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn a_proxy_that_joins_before_the_first_list_hears_of_every_pod() {
    let bed = Bed::new("early");
    let mut client = bed.client().await;
    let namespace = Named::make(bed.folder.join("netns"));
    let netns = namespace.path.display();
    bed.list(&format!(
        r#"{{"uid":"u","name":"p","namespace":"n","serviceAccount":"a","netns":"{netns}","addresses":["10.0.0.1"]}}"#
    ));
    assert!(matches!(next(&mut client).await, Event::PodAdded(pod) if pod.uid == "u"));
    assert!(matches!(next(&mut client).await, Event::SnapshotSent));
}

#[tokio::test]
async fn a_refill_for_an_unknown_pod_is_answered_with_nothing() {
    let bed = Bed::new("unknown");
    bed.list("");
    let mut client = bed.client().await;
    assert!(matches!(next(&mut client).await, Event::SnapshotSent));
    client.handle().refill("nobody", 4);
    assert!(
        matches!(next(&mut client).await, Event::Sockets { uid, sockets } if uid == "nobody" && sockets.is_empty())
    );
}
