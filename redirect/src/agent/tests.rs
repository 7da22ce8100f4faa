//! The agent beside a proxy that is already there.

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::client::{Client, Event};
use crate::rules::fixture::{Named, setting, within};

const STATUS: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15099);
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
        // The agent's own namespace is that of this test's thread, which is not to be the machine's.
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        crate::rules::fixture::loopback_up();
        let config = Config {
            socket: folder.join("redirect.sock"),
            proxy_uid: 0,
            role,
            audit_period: Duration::from_secs(5),
            probe_uid: 0,
            status: Some(crate::status::listen(STATUS).expect("a free port")),
            placed: None,
        };
        let agent = tokio::spawn(async move {
            let _succeeded = run(config).await.unwrap_or_else(|error| panic!("{error}"));
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
async fn a_refill_before_the_first_list_is_answered_after_it() {
    let bed = Bed::new("refill");
    let mut client = bed.client().await;
    client.handle().refill("u", 2);
    client.handle().refill("nobody", 1);
    let namespace = Named::make(bed.folder.join("netns"));
    let netns = namespace.path.display();
    bed.list(&format!(
        r#"{{"uid":"u","name":"p","namespace":"n","serviceAccount":"a","netns":"{netns}","addresses":["10.0.0.1"]}}"#
    ));
    let mut answers = Vec::new();
    while answers.len() < 2 {
        if let Event::Sockets { uid, sockets } = next(&mut client).await {
            answers.push((uid, sockets.len()));
        }
    }
    answers.sort();
    assert_eq!(answers, [("nobody".to_owned(), 0), ("u".to_owned(), 2)]);
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

/// The status server's answer, whole.
async fn get(path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(STATUS).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(DEADLINE, read).await.expect("answered").expect("text");
    answer
}

async fn until(path: &str, so: impl Fn(&str) -> bool) -> String {
    let asked = async {
        loop {
            let answer = get(path).await;
            if so(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| panic!("{path} never says so"))
}

#[tokio::test]
async fn fifty_good_pods_and_four_odd_ones() {
    let bed = Bed::new("many");
    let mut client = bed.client().await;
    let namespaces: Vec<Named> = (0..52).map(|n| Named::make(bed.folder.join(format!("netns{n}")))).collect();
    let bind = || std::net::TcpListener::bind("[::]:15008").expect("a free port");
    let _taken = within(&namespaces[50], bind);
    within(&namespaces[51], || setting("net/ipv6/conf/all/disable_ipv6", "1"));
    std::fs::write(bed.folder.join("garbage"), "no namespace").expect("written");
    let pod = |uid: &str, netns: &str, n: usize| {
        let netns = bed.folder.join(netns);
        format!(
            r#"{{"uid":"{uid}","name":"p","namespace":"n","serviceAccount":"a","netns":"{}","addresses":["10.0.0.{n}"]}}"#,
            netns.display()
        )
    };
    let mut pods: Vec<String> = (0..50).map(|n| pod(&format!("u{n}"), &format!("netns{n}"), n)).collect();
    for (n, (uid, netns)) in
        [("taken", "netns50"), ("old", "netns51"), ("garbage", "garbage"), ("deleted", "none")]
            .iter()
            .enumerate()
    {
        pods.push(pod(uid, netns, 60 + n));
    }
    assert!(get("/healthz/ready").await.starts_with("HTTP/1.1 503"));
    let start = tokio::time::Instant::now();
    bed.list(&pods.join(","));
    until("/healthz/ready", |answer| answer.starts_with("HTTP/1.1 200")).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    for _ in 0..51 {
        assert!(matches!(next(&mut client).await, Event::PodAdded(_)));
    }
    assert!(matches!(next(&mut client).await, Event::SnapshotSent));
    let told = get("/pods").await;
    let told = told.split("\r\n\r\n").nth(1).expect("a body");
    let told: Vec<serde_json::Value> = serde_json::from_str(told).expect("JSON");
    for (uid, state, reason) in [
        ("u0", "captured", "null"),
        ("taken", "pending", "port 15008 is in use"),
        ("old", "captured", "null"),
        ("garbage", "pending", "is not a network namespace"),
        ("deleted", "pending", "No such file"),
    ] {
        let pod = told.iter().find(|pod| pod["uid"] == uid).unwrap_or_else(|| panic!("{uid} is not named"));
        assert_eq!(pod["state"], state, "{pod}");
        assert!(pod["reason"].to_string().contains(reason), "{pod}");
    }
    let metrics = get("/metrics").await;
    for line in [
        "ztunnel_redirect_pods{state=\"captured\"} 51",
        "ztunnel_redirect_pods{state=\"pending\"} 3",
        "ztunnel_redirect_captures_total 51",
        "ztunnel_redirect_capture_failures_total{reason=\"port_in_use\"}",
        "ztunnel_redirect_proxies_connected 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // Strict, and not captured for two seconds.
    let quarantined = until("/metrics", |answer| answer.contains("ztunnel_redirect_quarantined 3")).await;
    assert!(quarantined.contains("ztunnel_redirect_pods{state=\"captured\"} 51"));
    assert!(get("/healthz/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_the_status_server_does_not_have_it_says() {
    let bed = Bed::new("status");
    let _client = bed.client().await;
    assert!(get("/healthz/live").await.starts_with("HTTP/1.1 200"));
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
    assert!(get("/pods").await.ends_with("[]"));
}
