//! The tour: every promise of the mesh shown on real traffic and checked.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bulk::{self, Direction, Until};
use crate::capture::Capture;
use crate::error::Error;
use crate::lab::Options;
use crate::node::{NodeHandle, PodHandle};
use crate::spec::{self, Spec};
use crate::traffic;
use crate::wait::wait_until;
use crate::{Lab, traffic::DEADLINE};

const ECHO: u16 = 8080;
const SINK: u16 = 8081;
const BULK: u16 = 8082;
const VIP: &str = "10.96.0.10:80";
const MARKER: &[u8] = b"a secret that must not be seen on the wire";
const IDLE: usize = 1000;
/// Bytes of the transfer that is checked.
const UPLOAD: usize = 64 * 1024 * 1024;
/// What a measured transfer takes, and how often it is repeated.
const TRANSFER: Duration = Duration::from_millis(400);
const ROUNDS: usize = 3;

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub promise: &'static str,
    pub holds: bool,
    pub seen: String,
    /// Whether it is about speed, and so about this machine too.
    pub measured: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
    pub seconds: f64,
    #[serde(skip)]
    aloud: bool,
}

/// Brings a lab up, looks, and takes it down.
pub fn run(name: &str, aloud: bool) -> Result<Report, Error> {
    let started = Instant::now();
    let spec = Spec::parse(spec::DEFAULT, "built-in").map_err(Error::Mistakes)?;
    let mut report = Report { checks: Vec::new(), seconds: 0.0, aloud };
    report.say("bringing up two nodes, eight pods, a controller …");
    let lab = Lab::up(name, spec, Options::default())?;
    for pod in ["cart", "cart-2", "vault", "bench", "legacy-2"] {
        let pod = lab.pod(pod);
        let serve = traffic::serve(pod, ECHO, traffic::echo)
            .and_then(|()| traffic::serve(pod, SINK, traffic::sink))
            .and_then(|()| bulk::serve(pod, BULK));
        serve.map_err(|source| Error::File { path: pod.name().into(), source })?;
    }
    report.requests(&lab);
    report.policy(&lab);
    report.wire(&lab);
    // Before the bulk, whose buffers would hide what an idle connection takes.
    report.memory(&lab);
    report.speed(&lab);
    report.telemetry(&lab);
    drop(lab);
    report.check(
        "nothing is left behind",
        !crate::namespace::path(&format!("{name}.web")).exists(),
        "lab down".into(),
    );
    report.seconds = started.elapsed().as_secs_f64();
    report.finish();
    Ok(report)
}

impl Report {
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: texts and numbers are JSON")
    }

    fn say(&self, text: &str) {
        if self.aloud {
            println!("{text}");
        }
    }

    fn check(&mut self, promise: &'static str, holds: bool, seen: String) {
        self.say(&format!("  {} {promise}: {seen}", if holds { "ok  " } else { "FAIL" }));
        self.checks.push(Check { promise, holds, seen, measured: false });
    }

    /// A check that depends on how fast this machine is just now.
    fn measured(&mut self, promise: &'static str, holds: bool, seen: String) {
        self.check(promise, holds, seen);
        if let Some(check) = self.checks.last_mut() {
            check.measured = true;
        }
    }

    fn requests(&mut self, lab: &Lab) {
        self.say("\nRequests across nodes, through mutual TLS");
        let vip: SocketAddr = VIP.parse().expect("a literal");
        let reply = traffic::request(lab.pod("web"), vip, MARKER);
        let seen = reply
            .as_ref()
            .map_or_else(ToString::to_string, |reply| format!("{} bytes came back", reply.len()));
        self.check("a service answers across nodes (IPv4)", reply.is_ok_and(|reply| reply == MARKER), seen);
        let six = SocketAddr::new(lab.pod("cart").ipv6(), ECHO);
        let reply = traffic::request(lab.pod("web"), six, MARKER);
        let seen = reply
            .as_ref()
            .map_or_else(ToString::to_string, |reply| format!("{} bytes came back", reply.len()));
        self.check("a pod answers across nodes (IPv6)", reply.is_ok_and(|reply| reply == MARKER), seen);
        let who = "src.identity=\"spiffe://cluster.local/ns/front/sa/web\"";
        let line = wait_line(lab.node("node2"), &["direction=\"inbound\"", who]);
        let seen = line.clone().map_or("no such line in the access log".to_owned(), |_| who.to_owned());
        self.check("the server's side saw the caller's verified identity", line.is_some(), seen);
    }

    fn policy(&mut self, lab: &Lab) {
        self.say("\nPolicy");
        let cart = SocketAddr::new(lab.pod("cart").ipv4(), ECHO);
        let refused = traffic::request(lab.pod("intruder"), cart, MARKER);
        let line = wait_line(lab.node("node2"), &["explicitly denied by: shop/no-intruders", "sa/intruder"]);
        let seen = line.clone().map_or("the log names no policy".to_owned(), |line| error_of(&line));
        self.check(
            "a caller that policy denies is refused, and the log says why",
            refused.is_err() && line.is_some(),
            seen,
        );
        let accepted = traffic::request(lab.pod("legacy"), cart, MARKER);
        let seen = accepted.as_ref().map_or_else(ToString::to_string, |_| "accepted".to_owned());
        self.check("plaintext from outside the mesh is accepted when permissive", accepted.is_ok(), seen);
        let vault = SocketAddr::new(lab.pod("vault").ipv4(), ECHO);
        let strict = traffic::request(lab.pod("legacy"), vault, MARKER);
        let line = wait_line(lab.node("node2"), &["istio_converted_static_strict"]);
        let seen = line.clone().map_or("the log names no policy".to_owned(), |line| error_of(&line));
        self.check("plaintext is refused when strict", strict.is_err() && line.is_some(), seen);
        let meshed = traffic::request(lab.pod("web"), vault, MARKER);
        let seen = meshed.as_ref().map_or_else(ToString::to_string, |_| "accepted".to_owned());
        self.check("mutual TLS is accepted when strict", meshed.is_ok(), seen);
    }

    fn wire(&mut self, lab: &Lab) {
        self.say("\nThe wire between the nodes");
        let (web, cart) = (lab.pod("web"), lab.pod("cart"));
        let look = |from: &PodHandle, to: &PodHandle| {
            let capture = Capture::start(&lab.underlay(), from.ipv4(), to.ipv4(), MARKER).ok()?;
            for _ in 0..20 {
                traffic::request(from, SocketAddr::new(to.ipv4(), ECHO), MARKER).ok()?;
            }
            capture.finish().ok()
        };
        let seen = look(web, cart).unwrap_or_default();
        let only_tunnel = seen.packets > 0 && seen.ports.iter().eq([&redirect::HBONE_PORT]);
        let text = format!("{} packets, server ports {:?}", seen.packets, seen.ports);
        self.check("between meshed pods there is only port 15008", only_tunnel, text);
        let text = format!("{} of {} packets hold the payload", seen.with_marker, seen.packets);
        self.check("no payload byte is readable", seen.packets > 0 && seen.with_marker == 0, text);
        let plain = look(lab.pod("legacy"), lab.pod("legacy-2")).unwrap_or_default();
        let text = format!("{} packets hold the payload between pods outside the mesh", plain.with_marker);
        self.check("the capture would have seen it", plain.with_marker > 0, text);
    }

    fn speed(&mut self, lab: &Lab) {
        self.say("\nBulk, and speed beside direct TCP in this run, congestion control cubic");
        let sink = SocketAddr::new(lab.pod("cart").ipv4(), SINK);
        let bulk = traffic::upload(lab.pod("web"), sink, UPLOAD);
        let seen = bulk
            .as_ref()
            .map_or_else(ToString::to_string, |_| format!("{} MiB, every byte checked", UPLOAD >> 20));
        self.check("bulk data arrives unharmed", bulk.is_ok(), seen);
        let (web, bench) = (lab.pod("web"), lab.pod("bench"));
        let (plain, plain_to) = (lab.pod("legacy"), lab.pod("legacy-2"));
        for (promise, streams, direction) in [
            ("sending on 1 connection, at least 0.25x direct", 1, Direction::Up),
            ("sending on 8 connections, at least 0.25x direct", 8, Direction::Up),
            ("receiving on 1 connection, at least 0.25x direct", 1, Direction::Down),
            ("receiving on 8 connections, at least 0.25x direct", 8, Direction::Down),
        ] {
            let rate = |from: &PodHandle, to: &PodHandle| {
                let to = SocketAddr::new(to.ipv4(), BULK);
                bulk::transfer(from, to, streams, direction, Until::Elapsed(TRANSFER))
            };
            // In turns, so that a slow moment of the machine meets both.
            let rounds: io::Result<Vec<(f64, f64)>> =
                (0..ROUNDS).map(|_| Ok((rate(plain, plain_to)?, rate(web, bench)?))).collect();
            let (ratio, text) = match rounds {
                Err(error) => (0.0, format!("a transfer failed: {error}")),
                Ok(mut rounds) => {
                    rounds.sort_by(|(a, b), (c, d)| (b / a).total_cmp(&(d / c)));
                    let (direct, tunnel) = rounds[ROUNDS / 2];
                    let ratio = tunnel / direct;
                    let gigabits = |rate: f64| rate * 8.0 / 1e9;
                    let text =
                        format!("{ratio:.2}x ({:.1} of {:.1} Gbit/s)", gigabits(tunnel), gigabits(direct));
                    (ratio, text)
                }
            };
            self.measured(promise, ratio >= 0.25, text);
        }
        let direct = traffic::round_trips(plain, SocketAddr::new(plain_to.ipv4(), ECHO), 2000);
        let tunnel = traffic::round_trips(web, SocketAddr::new(bench.ipv4(), ECHO), 2000);
        let text = match (&direct, &tunnel) {
            (Ok(direct), Ok(tunnel)) => format!(
                "median {:.2}x, p99 {:.2}x direct ({} and {} µs beside {} and {} µs)",
                tunnel.median.as_secs_f64() / direct.median.as_secs_f64(),
                tunnel.p99.as_secs_f64() / direct.p99.as_secs_f64(),
                tunnel.median.as_micros(),
                tunnel.p99.as_micros(),
                direct.median.as_micros(),
                direct.p99.as_micros()
            ),
            _ => "the round trips failed".to_owned(),
        };
        self.measured("round trips of one byte", direct.is_ok() && tunnel.is_ok(), text);
    }

    fn memory(&mut self, lab: &Lab) {
        self.say("\nMemory");
        let (web, to) = (lab.pod("web"), SocketAddr::new(lab.pod("bench").ipv4(), ECHO));
        let resident =
            || ["node1", "node2"].map(|node| lab.node(node).proxy().map_or(0, |proxy| proxy.resident()));
        let warm = traffic::idle(web, to, IDLE / 10);
        let before = resident();
        let held = traffic::idle(web, to, IDLE);
        let after = resident();
        let each = |end: usize| (after[end] as f64 - before[end] as f64) / IDLE as f64 / 1024.0;
        let text = format!("{:.1} KiB at the client's node, {:.1} KiB at the server's", each(0), each(1));
        let holds = held.is_ok() && warm.is_ok() && each(0) < 25.0 && each(1) < 25.0;
        self.check("an idle connection takes less than 25 KiB at each end", holds, text);
    }

    fn telemetry(&mut self, lab: &Lab) {
        self.say("\nTelemetry");
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/front/sa/web"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let metrics = lab.node("node2").metrics();
        let opened = metrics.sum("istio_tcp_connections_opened_total", &labels);
        let bytes = metrics.sum("istio_tcp_received_bytes_total", &labels);
        let text =
            format!("{opened} connections opened and {bytes} bytes received from front/web over mutual TLS");
        self.check("metrics count connections and bytes by identity", opened > 0.0 && bytes > 0.0, text);
        let denied = metrics.sum("istio_tcp_connections_failed_total", &[("response_flags", "DENY")]);
        self.check("refusals are counted", denied >= 2.0, format!("{denied} with response_flags=\"DENY\""));
        let line = wait_line(lab.node("node1"), &["direction=\"outbound\"", "dst.service="]);
        self.check(
            "every connection has its line in the access log",
            line.is_some(),
            line.unwrap_or_default(),
        );
    }

    fn finish(&self) {
        let failed = self.checks.iter().filter(|check| !check.holds).count();
        self.say(&format!("\n{:<62} {:<5} SEEN", "PROMISE", "HELD"));
        for Check { promise, holds, seen, .. } in &self.checks {
            let short: String = seen.chars().take(100).collect();
            self.say(&format!("{promise:<62} {:<5} {short}", if *holds { "yes" } else { "NO" }));
        }
        self.say(&format!("\n{} promises, {failed} not kept, {:.1} s", self.checks.len(), self.seconds));
    }
}

/// The access log is written behind the traffic, so a line may be a moment late.
fn wait_line(node: &NodeHandle, parts: &[&str]) -> Option<String> {
    let mut found = None;
    wait_until(DEADLINE.min(Duration::from_secs(5)), || {
        let log = node.log();
        found = log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        found.is_some()
    });
    found
}

fn error_of(line: &str) -> String {
    line.split_once("error=").map_or(line, |(_, error)| error).to_owned()
}
