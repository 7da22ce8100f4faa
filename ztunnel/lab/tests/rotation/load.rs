//! New connections at a steady pace, each of which needs a tunnel, and so a handshake, of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ztunnel_lab::node::PodHandle;
use ztunnel_lab::{Lab, namespace, wait_until};

/// The proxies' part: a tunnel carries one stream, and is let go of soon after it.
pub const ONE_STREAM_A_TUNNEL: [(&str, &str); 2] =
    [("POOL_MAX_STREAMS_PER_CONNECTION", "1"), ("POOL_UNUSED_RELEASE_TIMEOUT", "1ms")];

const DEADLINE: Duration = Duration::from_secs(20);
const WORKERS: usize = 8;
/// Connections stay open until so many seconds' worth of them are, and then end together: an open one keeps its tunnel to
/// itself.
const KEPT_SECONDS: usize = 5;
pub const MARKER: &[u8] = b"never in plaintext";

/// Connections from one pod to an echo, until it is told to end.
pub struct Load {
    plan: Arc<Plan>,
    workers: Vec<JoinHandle<Vec<String>>>,
    client: PodHandle,
    opened_before: usize,
}

struct Plan {
    to: SocketAddr,
    per_second: usize,
    started: Instant,
    next: AtomicUsize,
    done: AtomicUsize,
    ends: AtomicBool,
}

#[derive(Debug)]
pub struct Outcome {
    pub connections: usize,
    /// TLS connections that the proxy of the client opened for them.
    pub tunnels: usize,
    pub elapsed: Duration,
    pub failures: Vec<String>,
}

impl Load {
    pub fn start(lab: &Lab, from: &str, to: SocketAddr, per_second: usize) -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("it can be raised to what is allowed");
        let plan = Arc::new(Plan {
            to,
            per_second,
            started: Instant::now(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let client = lab.pod(from).clone();
        let opened_before = opened(&client);
        let workers = (0..WORKERS).map(|_| {
            let (plan, pod) = (plan.clone(), client.clone());
            std::thread::spawn(move || pod.run(move || plan.work()))
        });
        let load = Self { workers: workers.collect(), plan, client, opened_before };
        load.goes_on();
        load
    }

    /// Waits for a second's worth of connections more.
    pub fn goes_on(&self) {
        let done = || self.plan.done.load(Ordering::Relaxed);
        let wanted = done() + self.plan.per_second;
        assert!(wait_until(DEADLINE, || done() >= wanted), "no traffic passes");
    }

    pub fn finish(self) -> Outcome {
        self.plan.ends.store(true, Ordering::Relaxed);
        let ended = self.workers.into_iter().flat_map(|worker| worker.join().expect("no panic"));
        let failures: Vec<String> = ended.collect();
        let connections = self.plan.done.load(Ordering::Relaxed);
        let tunnels = (opened(&self.client) - self.opened_before).saturating_sub(connections);
        Outcome { connections, tunnels, elapsed: self.plan.started.elapsed(), failures }
    }
}

impl Plan {
    fn work(&self) -> Vec<String> {
        let (mut kept, mut generation, mut failures) = (Vec::new(), 0, Vec::new());
        while !self.ends.load(Ordering::Relaxed) {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_secs(1).mul_f64(turn as f64 / self.per_second as f64);
            std::thread::sleep(due.saturating_sub(self.started.elapsed()));
            if turn / (self.per_second * KEPT_SECONDS) != generation {
                generation = turn / (self.per_second * KEPT_SECONDS);
                self.end(&mut kept, &mut failures);
            }
            match open(self.to) {
                Ok(stream) => kept.push(stream),
                Err(error) => failures.push(format!("new, {:?}: {error}", self.started.elapsed())),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.end(&mut kept, &mut failures);
        failures
    }

    /// What was established must work to its end, whatever became of certificates meanwhile.
    fn end(&self, kept: &mut Vec<TcpStream>, failures: &mut Vec<String>) {
        for mut stream in kept.drain(..) {
            if let Err(error) = echoes(&mut stream) {
                failures.push(format!("established, {:?}: {error}", self.started.elapsed()));
            }
        }
    }
}

fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    echoes(&mut stream)?;
    Ok(stream)
}

pub fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    let mut reply = [0; MARKER.len()];
    stream.write_all(MARKER)?;
    stream.read_exact(&mut reply)?;
    if reply == MARKER { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// How many TCP connections were opened in a pod, by whomever: one for each of the application, one for each tunnel
/// (ActiveOpens of proc_pid_net(5)).
fn opened(pod: &PodHandle) -> usize {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("it is always there");
    let text = namespace::run(pod.namespace(), read).expect("the pod is there");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "ActiveOpens").expect("the kernel counts them");
    value.parse().expect("a number")
}
