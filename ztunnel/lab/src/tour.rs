//! The tour: every promise of the mesh shown on real traffic and checked.

mod measured;
mod report;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::capture::Capture;
use crate::error::Error;
use crate::lab::{Manifests, Options};
use crate::node::{NodeHandle, PodHandle};
use crate::traffic;
use crate::traffic::DEADLINE;
use crate::wait::wait_until;
use crate::{Lab, binaries, bulk, traces};

pub use report::{Check, Report};

const ECHO: u16 = 8080;
const SINK: u16 = 8081;
const BULK: u16 = 8082;
const VIP: &str = "10.96.0.10:80";
const MARKER: &[u8] = b"a secret that must not be seen on the wire";

/// Brings a lab up, looks, and takes it down. The clock starts when the programs are built.
pub fn run(name: &str, aloud: bool) -> Result<Report, Error> {
    binaries::find()?;
    let (started, links) = (Instant::now(), traces::links());
    let mut report = Report::new(aloud);
    report.say("bringing up two nodes, eight pods, a controller …");
    let lab = Lab::up(name, &Manifests::builtin(), Options::default())?;
    for pod in ["cart", "cart-2", "vault", "bench", "legacy-2"] {
        let pod = lab.pod(pod);
        let serve = traffic::serve(pod, ECHO, traffic::echo)
            .and_then(|()| traffic::serve(pod, SINK, traffic::sink))
            .and_then(|()| bulk::serve(&pod.netns(), BULK).map(drop));
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
    report.leftovers(name, &links);
    report.seconds = started.elapsed().as_secs_f64();
    report.finish();
    Ok(report)
}

impl Report {
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
        let line = wait_line(
            lab.node("node2"),
            &["explicitly denied by: istio-system/istio_converted_static_strict"],
        );
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

    fn leftovers(&mut self, name: &str, links: &BTreeSet<String>) {
        let mut left = traces::of(name);
        left.extend(traces::links().difference(links).map(|link| format!("link {link}")));
        let seen = if left.is_empty() {
            "no namespace, mount, file, process or link".to_owned()
        } else {
            left.join(", ")
        };
        self.check("nothing is left behind", left.is_empty(), seen);
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

/// The text of a log line's field `error`.
fn error_of(line: &str) -> String {
    let error = line.split_once("error=\"").and_then(|(_, rest)| rest.rsplit_once('"'));
    error.map_or(line, |(error, _)| error).to_owned()
}
