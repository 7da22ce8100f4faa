//! Agent and proxy beneath istio-cni, which is played by the test: it has written the rules (the agent that brought the lab
//! up has left them) and tells of the pods.

#[expect(dead_code, reason = "each test file plays one end")]
mod zds;

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use redirect::zds::wire::proto;
use zds::{Cni, DEADLINE, End, Payload};
use ztunnel_lab::node::PodHandle;
use ztunnel_lab::{Lab, Mesh, namespace, network, traffic, wait_until};

const NODE: &str = "node2";
const PORT: u16 = 7000;
const QUIET: Duration = Duration::from_millis(500);

/// A part of the answer, and what is said.
type Mistake<'a> = (&'static str, Box<dyn Fn(&End) + 'a>);

/// A client on a node of the ordinary kind, and two servers on one beneath istio-cni.
struct Bed {
    lab: Lab,
    cni: Cni,
}

impl Bed {
    fn new() -> Self {
        let mesh = Mesh::new().pod("node1", "front/client").pod(NODE, "shop/one").pod(NODE, "shop/two");
        let mut lab = Lab::for_test(&mesh, &[]);
        for pod in ["one", "two"] {
            traffic::serve(lab.pod(pod), PORT, traffic::echo).expect("a free port");
        }
        lab.node_mut(NODE).kill_agent();
        lab.node_mut(NODE).kill_proxy();
        let cni = Cni::bind(&socket(&lab));
        lab.start_agent_beneath(NODE, &socket(&lab)).expect("it starts");
        lab.start_proxy(NODE).expect("it starts");
        Self { lab, cni }
    }

    /// Both pods are told and served.
    fn told() -> (Self, End) {
        let bed = Self::new();
        let end = bed.cni.accept();
        bed.tell_all(&end);
        (bed, end)
    }

    fn tell_all(&self, end: &End) {
        for pod in ["one", "two"] {
            assert_eq!(self.tell(end, pod), "");
        }
        assert_eq!(end.ask(snapshot_sent(), &[]), "");
        self.lab.wait_ready(NODE).unwrap_or_else(|error| panic!("{error}"));
    }

    fn tell(&self, end: &End, pod: &str) -> String {
        self.tell_in(end, pod, self.lab.pod(pod).namespace())
    }

    /// Tells of a pod as if it lived in this network namespace.
    fn tell_in(&self, end: &End, pod: &str, netns: &str) -> String {
        let netns = open(netns);
        end.ask(add(self.lab.pod(pod)), &[netns.as_raw_fd()])
    }

    fn uid(&self, pod: &str) -> String {
        self.lab.pod(pod).spec().uid()
    }

    fn addr(&self, pod: &str) -> SocketAddr {
        SocketAddr::new(self.lab.pod(pod).ipv4(), PORT)
    }

    fn reaches(&self, pod: &str) -> bool {
        traffic::request(self.lab.pod("client"), self.addr(pod), b"hello")
            .is_ok_and(|reply| reply == b"hello")
    }

    /// A connection that has carried bytes.
    fn connection(&self, pod: &str) -> TcpStream {
        let mut stream = self.lab.pod("client").connect(self.addr(pod), DEADLINE).expect("the pod is served");
        traffic::echoes(&mut stream).expect("bytes come back");
        stream
    }

    fn open_files(&self) -> usize {
        self.lab.node(NODE).agent().expect("it runs").open_files().expect("it runs")
    }
}

fn socket(lab: &Lab) -> PathBuf {
    lab.node(NODE).agent_socket().with_file_name("cni.sock")
}

fn open(netns: &str) -> File {
    File::open(namespace::path(netns)).expect("the namespace is there")
}

fn add(pod: &PodHandle) -> Payload {
    let spec = pod.spec();
    zds::add(&spec.uid(), &spec.name, &spec.namespace, &spec.service_account)
}

fn del(uid: &str) -> Payload {
    Payload::Del(proto::DelWorkload { uid: uid.to_owned() })
}

fn keep(uid: &str) -> Payload {
    Payload::Keep(proto::KeepWorkload { uid: uid.to_owned() })
}

fn snapshot_sent() -> Payload {
    Payload::SnapshotSent(proto::SnapshotSent {})
}

/// The end of a connection on which nobody writes.
fn ends(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(DEADLINE)).expect("an option");
    match stream.read(&mut [0]) {
        Ok(0) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        Ok(_) => false,
    }
}

/// A network namespace with nothing but loopback.
struct Bare(String);

impl Bare {
    fn new(lab: &Lab, name: &str) -> Self {
        let name = format!("{}.{name}", lab.name());
        namespace::create(&name).expect("a free name");
        network::prepare(&name, false).expect("it is there");
        Self(name)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = namespace::remove(&self.0);
    }
}

#[test]
fn pods_of_which_istio_cni_tells_are_served() {
    let (bed, end) = Bed::told();
    end.hears_nothing(QUIET);
    for pod in ["one", "two"] {
        assert!(bed.reaches(pod), "{pod}");
        let labels = [("destination_workload", pod), ("connection_security_policy", "mutual_tls")];
        let opened = || bed.lab.node(NODE).metrics().sum("istio_tcp_connections_opened_total", &labels) > 0.0;
        assert!(wait_until(DEADLINE, opened), "{pod} by mutual TLS");
    }
    // Out of them as well.
    traffic::serve(bed.lab.pod("client"), PORT, traffic::echo).expect("a free port");
    let back = traffic::request(bed.lab.pod("one"), bed.addr("client"), b"hello").expect("it is served");
    assert_eq!(back, b"hello");
    // What is told again is no news, in whatever message it comes.
    let mut stream = bed.connection("one");
    let files = bed.open_files();
    for _ in 0..20 {
        assert_eq!(bed.tell(&end, "one"), "");
    }
    traffic::echoes(&mut stream).expect("nobody notices");
    assert!(wait_until(DEADLINE, || bed.open_files() <= files), "descriptors are closed again");
    assert_eq!(end.ask(del("nobody"), &[]), "", "unknown, so it is gone already");
}

#[test]
fn del_ends_what_is_open_and_harms_no_other() {
    let (bed, end) = Bed::told();
    let (mut one, mut two) = (bed.connection("one"), bed.connection("two"));
    assert_eq!(end.ask(del(&bed.uid("one")), &[]), "");
    assert!(ends(&mut one), "its connections end at once");
    traffic::echoes(&mut two).expect("the other's go on");
    assert!(!bed.reaches("one"), "its rules refuse what nobody serves");
    assert!(bed.reaches("two"));
    assert_eq!(bed.tell(&end, "one"), "");
    assert!(wait_until(DEADLINE, || bed.reaches("one")), "it can come again");
}

#[test]
fn a_pod_in_another_namespace_begins_anew() {
    let (bed, end) = Bed::told();
    let mut stream = bed.connection("one");
    let moved = Bare::new(&bed.lab, "moved");
    assert_eq!(bed.tell_in(&end, "one", &moved.0), "");
    assert!(ends(&mut stream), "the old sandbox is gone");
    let listens =
        || namespace::run(&moved.0, || TcpListener::bind("[::]:15008").is_err()).expect("it is there");
    assert!(listens(), "acknowledged when the sockets are open");
    assert_eq!(bed.tell(&end, "one"), "");
    assert!(wait_until(DEADLINE, || bed.reaches("one")));
    assert!(!listens(), "nothing stays behind");
}

#[test]
fn a_pod_that_cannot_be_served_is_refused_and_tried_further() {
    let (bed, end) = Bed::told();
    let bare = Bare::new(&bed.lab, "bare");
    let take = || TcpListener::bind("[::]:15008").expect("a free port");
    let taken = namespace::run(&bare.0, take).expect("it is there");
    let mut other = bed.connection("two");
    let reason = bed.tell_in(&end, "one", &bare.0);
    assert!(reason.contains("port 15008 is in use"), "{reason}");
    traffic::echoes(&mut other).expect("other pods do not notice");
    drop(taken);
    let served = || bed.tell_in(&end, "one", &bare.0).is_empty();
    assert!(wait_until(DEADLINE, served), "the connection stays, and it is tried again");
    // A descriptor of something else is that pod's trouble alone.
    let file = File::open("/proc/self/status").expect("a file");
    let reason = end.ask(add(bed.lab.pod("one")), &[file.as_raw_fd()]);
    assert!(reason.contains("not a network namespace"), "{reason}");
    let file = File::open("/proc/self/ns/pid").expect("a file");
    let reason = end.ask(add(bed.lab.pod("one")), &[file.as_raw_fd()]);
    assert!(reason.contains("entering network namespace"), "{reason}");
    let nameless = end.ask(zds::add("", "n", "s", "a"), &[open(&bare.0).as_raw_fd()]);
    assert!(nameless.contains("without a uid"), "{nameless}");
    assert!(bed.reaches("two"));
}

#[test]
fn mistakes_are_answered_and_pods_outlive_the_connection() {
    let (bed, mut end) = Bed::told();
    let mut stream = bed.connection("one");
    let netns = open(bed.lab.pod("one").namespace());
    let fd = netns.as_raw_fd();
    let nobody = || Payload::Add(proto::AddWorkload { uid: bed.uid("one"), workload_info: None });
    let known = || add(bed.lab.pod("one"));
    let mistakes: [Mistake<'_>; 11] = [
        ("without workload_info", Box::new(|end| end.send(&zds::request(nobody()), &[fd]))),
        ("without the descriptor", Box::new(|end| end.send(&zds::request(known()), &[]))),
        ("2 descriptors", Box::new(|end| end.send(&zds::request(known()), &[fd, fd]))),
        ("100 descriptors", Box::new(|end| end.send(&zds::request(known()), &[fd; 100]))),
        ("has none", Box::new(|end| end.send(&zds::request(del("x")), &[fd]))),
        ("has none", Box::new(|end| end.send(&zds::request(snapshot_sent()), &[fd]))),
        ("truncated", Box::new(|end| end.send(&zds::request(del(&"x".repeat(2000))), &[fd]))),
        ("undecodable", Box::new(|end| end.send_bytes(b"\xff\xff\xff", &[fd]))),
        ("without a payload", Box::new(|end| end.send_bytes(&[0x32, 0], &[fd]))),
        ("a second SnapshotSent", Box::new(|end| end.send(&zds::request(snapshot_sent()), &[]))),
        ("Keep after SnapshotSent", Box::new(|end| end.send(&zds::request(keep("x")), &[]))),
    ];
    let mut files = None;
    for (reason, make) in mistakes {
        make(&end);
        let answer = end.answer();
        assert!(answer.contains(reason), "{reason}: {answer}");
        end.closes();
        end = bed.cni.accept();
        bed.tell_all(&end);
        traffic::echoes(&mut stream).expect("nobody notices");
        // After the first: a static program opens /dev/urandom for its first pause, and keeps it.
        files.get_or_insert_with(|| bed.open_files());
    }
    let files = files.expect("there are mistakes");
    assert!(wait_until(DEADLINE, || bed.open_files() <= files), "{} of {files} files", bed.open_files());
}

#[test]
fn a_snapshot_tells_who_has_gone() {
    let (bed, end) = Bed::told();
    let (mut one, mut two) = (bed.connection("one"), bed.connection("two"));
    // istio-cni starts again.
    drop(end);
    let end = bed.cni.accept();
    traffic::echoes(&mut one).expect("pods go on meanwhile");
    assert_eq!(end.ask(keep(&bed.uid("one")), &[]), "");
    traffic::echoes(&mut two).expect("not before the snapshot ends");
    assert_eq!(end.ask(snapshot_sent(), &[]), "");
    assert!(ends(&mut two), "nobody named it");
    traffic::echoes(&mut one).expect("it was kept");
    drop(end);
    let end = bed.cni.accept();
    assert_eq!(bed.tell(&end, "one"), "");
    assert_eq!(bed.tell(&end, "two"), "");
    assert_eq!(end.ask(del(&bed.uid("two")), &[]), "", "before the snapshot ends");
    assert_eq!(end.ask(snapshot_sent(), &[]), "");
    traffic::echoes(&mut one).expect("told again is no news");
    assert!(bed.reaches("one") && !bed.reaches("two"));
}

#[test]
fn an_agent_that_starts_again_interrupts_nobody() {
    let (mut bed, end) = Bed::told();
    let (mut one, mut two) = (bed.connection("one"), bed.connection("two"));
    let path = socket(&bed.lab);
    bed.lab.node_mut(NODE).kill_agent();
    end.closes();
    traffic::echoes(&mut one).expect("the proxy goes on");
    bed.lab.start_agent_beneath(NODE, &path).expect("it starts");
    let end = bed.cni.accept();
    bed.tell_all(&end);
    for stream in [&mut one, &mut two] {
        traffic::echoes(stream).expect("nobody notices");
    }
    assert!(bed.reaches("one") && bed.reaches("two"));
}

#[test]
fn without_a_proxy_there_is_no_ztunnel_and_no_pod_is_acknowledged() {
    let mut bed = Bed::new();
    let end = bed.cni.accept();
    bed.tell_all(&end);
    let path = socket(&bed.lab);
    bed.lab.node_mut(NODE).kill_proxy();
    let gone = || bed.lab.node(NODE).agent_log().contains("proxy disconnected");
    assert!(wait_until(DEADLINE, gone));
    let bare = Bare::new(&bed.lab, "bare");
    // By an account that the node may have certificates for.
    let late = zds::add("late", "late", "shop", "one");
    let reason = end.ask(late.clone(), &[open(&bare.0).as_raw_fd()]);
    assert!(reason.contains("no proxy serves the pod"), "{reason}");
    bed.lab.node_mut(NODE).kill_agent();
    drop(end);
    bed.lab.start_agent_beneath(NODE, &path).expect("it starts");
    assert!(!bed.cni.is_asked(2 * QUIET), "alone it is no ztunnel");
    bed.lab.start_proxy(NODE).expect("it starts");
    let end = bed.cni.accept();
    assert_eq!(end.ask(late, &[open(&bare.0).as_raw_fd()]), "");
    bed.tell_all(&end);
    assert!(bed.reaches("one"));
}
