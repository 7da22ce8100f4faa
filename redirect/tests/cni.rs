//! The real plugin, as a runtime calls it, and the agent's side of its socket.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use redirect::cni::server::Server;
use redirect::cni::{Enrolled, Request, Sandbox};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a node has, in a folder of its own.
struct Node {
    folder: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("cni-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("cni.sock")
    }

    fn enrol(&self, namespaces: &[&str]) {
        let names: BTreeSet<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Enrolled::at(self.folder.join("enrolled.json")).publish(&names);
    }

    fn serve(&self) -> mpsc::Receiver<Request> {
        let (tell, told) = mpsc::channel(16);
        tokio::spawn(Server::bind(&self.socket()).expect("a socket").serve(tell));
        told
    }

    fn call(&self, command: &str, pod: &str) -> Command {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        let mut call = Command::new(env!("CARGO_BIN_EXE_ztunnel-cni"));
        call.env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("c-{name}"))
            .env("CNI_NETNS", "/var/run/netns/one")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-{name}"
                ),
            );
        call
    }

    fn configuration(&self, seconds: u64) -> String {
        json!({
            "cniVersion": "1.1.0",
            "name": "network",
            "type": "ztunnel-cni",
            "socket": self.socket(),
            "enrolled": self.folder.join("enrolled.json"),
            "timeoutSeconds": seconds,
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": "eth0", "sandbox": "/var/run/netns/one" }],
                "ips": [{ "address": "10.1.0.7/24", "interface": 0 }],
            },
        })
        .to_string()
    }

    /// A call that is under way.
    fn start(&self, command: &str, pod: &str, seconds: u64) -> JoinHandle<Called> {
        let (call, stdin) = (self.call(command, pod), self.configuration(seconds));
        tokio::task::spawn_blocking(move || run(call, &stdin))
    }

    async fn called(&self, command: &str, pod: &str, seconds: u64) -> Called {
        finished(self.start(command, pod, seconds)).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Called {
    output: Output,
    took: Duration,
}

impl Called {
    fn passed(&self) -> Value {
        let text = String::from_utf8_lossy(&self.output.stdout);
        assert!(self.output.status.success(), "{text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("a result is JSON") }
    }

    fn failed(&self, code: u32) -> String {
        let text = String::from_utf8_lossy(&self.output.stdout);
        assert_eq!(self.output.status.code(), Some(1), "{text}");
        let failure: Value = serde_json::from_str(&text).expect("an error is JSON");
        assert_eq!(failure["code"], code, "{failure}");
        failure["msg"].as_str().expect("a message").to_owned()
    }
}

fn run(mut call: Command, stdin: &str) -> Called {
    let started = Instant::now();
    let mut child = call
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin can be started");
    child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).expect("the plugin reads");
    let output = child.wait_with_output().expect("the plugin ends");
    let lines = String::from_utf8_lossy(&output.stderr).lines().count();
    assert!(lines <= 1, "{}", String::from_utf8_lossy(&output.stderr));
    Called { output, took: started.elapsed() }
}

async fn finished(call: JoinHandle<Called>) -> Called {
    tokio::time::timeout(DEADLINE, call).await.expect("in time").expect("no panic")
}

async fn asked(requests: &mut mpsc::Receiver<Request>) -> Request {
    tokio::time::timeout(DEADLINE, requests.recv()).await.expect("in time").expect("the server lives")
}

async fn added(requests: &mut mpsc::Receiver<Request>) -> (Sandbox, oneshot::Sender<Result<(), String>>) {
    match asked(requests).await {
        Request::Add { sandbox, answer } => (sandbox, answer),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn add_waits_for_the_answer_two_at_once() {
    let node = Node::new("waits");
    let mut requests = node.serve();
    let one = node.start("ADD", "shop/one", 30);
    let (first, answer_one) = added(&mut requests).await;
    let two = node.start("ADD", "shop/two", 30);
    let (second, answer_two) = added(&mut requests).await;
    assert_eq!(second.name, "two");
    let expected = Sandbox {
        container_id: "c-one".to_owned(),
        uid: Some("u-one".to_owned()),
        namespace: "shop".to_owned(),
        name: "one".to_owned(),
        netns: "/var/run/netns/one".into(),
        addresses: vec!["10.1.0.7".parse().expect("valid")],
    };
    assert_eq!(first, expected);
    answer_two.send(Err("port 15008 is taken".to_owned())).expect("it waits");
    let message = finished(two).await.failed(100);
    assert!(message.contains("shop/two") && message.contains("port 15008 is taken"), "{message}");
    assert!(!one.is_finished());
    answer_one.send(Ok(())).expect("it waits");
    let result = finished(one).await.passed();
    assert_eq!(result["ips"][0]["address"], "10.1.0.7/24");

    let check = node.start("CHECK", "shop/one", 30);
    match asked(&mut requests).await {
        Request::Check { sandbox, answer } => {
            assert_eq!(sandbox, expected);
            answer.send(Err("its rules are gone".to_owned())).expect("it waits");
        }
        other => panic!("{other:?}"),
    }
    assert!(finished(check).await.failed(100).contains("its rules are gone"));

    let del = node.start("DEL", "shop/one", 30);
    match asked(&mut requests).await {
        Request::Del { container_id, namespace, name, uid } => {
            assert_eq!((container_id.as_str(), namespace.as_str(), name.as_str()), ("c-one", "shop", "one"));
            assert_eq!(uid.as_deref(), Some("u-one"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(finished(del).await.passed(), Value::Null);
}

#[tokio::test]
async fn without_the_agent_enrolled_pods_wait_and_others_start_at_once() {
    let node = Node::new("away");
    node.enrol(&["shop"]);
    let mut fastest = Duration::MAX;
    // First without a socket, then with one that nobody serves.
    for round in 0..10 {
        if round == 5 {
            let left = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
            left.bind(&SockAddr::unix(node.socket()).expect("a short path")).expect("bound");
        }
        let other = node.called("ADD", "bank/pod", 30).await;
        other.passed();
        fastest = fastest.min(other.took);
        let message = node.called("ADD", "shop/cart", 30).await.failed(11);
        assert!(message.contains("shop/cart") && message.contains("cni.sock"), "{message}");
        node.called("CHECK", "shop/cart", 30).await.failed(11);
        node.called("CHECK", "bank/pod", 30).await.passed();
        for command in ["DEL", "GC", "STATUS"] {
            node.called(command, "shop/cart", 30).await.passed();
        }
    }
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[tokio::test]
async fn an_agent_that_hangs_or_ends_counts_as_away() {
    let node = Node::new("hangs");
    node.enrol(&["shop"]);
    {
        // Accepts in the kernel only.
        let hung = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        hung.bind(&SockAddr::unix(node.socket()).expect("a short path")).expect("bound");
        hung.listen(16).expect("listens");
        let (other, enrolled, del) = tokio::join!(
            node.called("ADD", "bank/pod", 30),
            node.called("ADD", "shop/cart", 30),
            node.called("DEL", "shop/cart", 30),
        );
        other.passed();
        enrolled.failed(11);
        del.passed();
        for call in [other, enrolled, del] {
            assert!(call.took < Duration::from_secs(4), "{:?}", call.took);
        }
        // Full: connecting waits too.
        hung.listen(0).expect("listens");
        let _fills: Vec<Socket> = (0..2)
            .map_while(|_| {
                let client = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
                client.set_nonblocking(true).expect("an option");
                client.connect(&SockAddr::unix(node.socket()).expect("a short path")).ok().map(|()| client)
            })
            .collect();
        let call = node.called("ADD", "shop/cart", 1).await;
        call.failed(11);
        assert!(call.took < Duration::from_secs(3), "{:?}", call.took);
    }
    let mut requests = node.serve();
    let call = node.start("ADD", "shop/cart", 30);
    let (_, answer) = added(&mut requests).await;
    drop(answer);
    let message = finished(call).await.failed(11);
    assert!(message.contains("ended before it answered"), "{message}");
    let call = node.start("ADD", "bank/pod", 30);
    drop(added(&mut requests).await);
    finished(call).await.passed();
}

#[tokio::test]
async fn the_deadline_is_kept_and_told() {
    let node = Node::new("deadline");
    let mut requests = node.serve();
    let call = node.start("ADD", "bank/slow", 2);
    let (_, mut answer) = added(&mut requests).await;
    let call = finished(call).await;
    let message = call.failed(100);
    assert!(message.contains("bank/slow") && message.contains("1.5 s"), "{message}");
    assert!(call.took < Duration::from_secs(2), "{:?}", call.took);
    tokio::time::timeout(DEADLINE, answer.closed()).await.expect("whoever decides sees that nobody waits");
}

#[tokio::test]
async fn a_runtime_that_gives_up_is_noticed() {
    let node = Node::new("killed");
    let mut requests = node.serve();
    let mut call = node.call("ADD", "shop/cart");
    let mut child = call.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    let stdin = node.configuration(30);
    child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).expect("the plugin reads");
    let (_, mut answer) = added(&mut requests).await;
    child.kill().expect("it runs");
    tokio::time::timeout(DEADLINE, answer.closed()).await.expect("noticed");
    child.wait().expect("ended");
}

#[tokio::test]
async fn who_does_not_belong_there_is_refused() {
    let node = Node::new("refused");
    let mut requests = node.serve();
    let mode = std::fs::metadata(node.socket()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Even if the file lets everybody in.
    node.enrol(&["shop"]);
    for open in [node.socket(), node.folder.clone()] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).expect("changed");
    }
    let plugin = node.folder.join("plugin");
    std::fs::copy(env!("CARGO_BIN_EXE_ztunnel-cni"), &plugin).expect("copied");
    let original = node.call("ADD", "shop/cart");
    let mut call = Command::new(&plugin);
    call.env_clear().uid(65534).gid(65534);
    call.envs(original.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let stdin = node.configuration(2);
    let call = tokio::task::spawn_blocking(move || run(call, &stdin));
    finished(call).await.failed(11);

    for (packet, reason) in [
        (b"garbage".to_vec(), "malformed request"),
        (br#"{"command":"dance"}"#.to_vec(), "dance"),
        (br#"{"command":"add"}"#.to_vec(), "sandbox"),
        (vec![b' '; 70_000], "more than 65536 bytes"),
    ] {
        let path = node.socket();
        let answer = tokio::task::spawn_blocking(move || exchange(&path, &packet)).await.expect("no panic");
        assert!(answer.contains("refused") && answer.contains(reason), "{answer}");
    }
    // Nothing of that was taken for a request, and who behaves is served.
    let call = node.start("ADD", "shop/cart", 30);
    let (_, answer) = added(&mut requests).await;
    answer.send(Ok(())).expect("it waits");
    finished(call).await.passed();
}

fn exchange(path: &Path, packet: &[u8]) -> String {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.connect(&SockAddr::unix(path).expect("a short path")).expect("the agent listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("an option");
    socket.send(packet).expect("sent");
    let mut answer = vec![0; 4096];
    let length = std::io::Read::read(&mut &socket, &mut answer).expect("answered");
    String::from_utf8_lossy(&answer[..length]).into_owned()
}
