//! Memory and speed, beside direct TCP of the same run.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{BULK, ECHO, Report, SINK};
use crate::bulk::{self, Direction, Until};
use crate::node::PodHandle;
use crate::{Lab, measure, traffic};

const IDLE: usize = 1000;
/// Resident memory that an idle connection may take at each end.
const IDLE_LIMIT: f64 = 25.0 * 1024.0;
/// Bytes of the transfer that is checked.
const UPLOAD: usize = 64 * 1024 * 1024;
/// What a measured transfer takes, and how often it is repeated.
const TRANSFER: Duration = Duration::from_millis(400);
const ROUNDS: usize = 3;

impl Report {
    pub(super) fn speed(&mut self, lab: &Lab) {
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
                bulk::transfer(&from.netns(), to, streams, direction, Until::Elapsed(TRANSFER))
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

    pub(super) fn memory(&mut self, lab: &Lab) {
        self.say("\nMemory");
        let found = measure::idle_connection(lab, "web", "bench", ECHO, IDLE);
        let holds =
            found.as_ref().is_ok_and(|ends| ends.iter().all(|&bytes| 0.0 < bytes && bytes < IDLE_LIMIT));
        let text = found.map_or_else(
            |error| format!("the measurement failed: {error}"),
            |[client, server]| {
                let kib = |bytes: f64| bytes / 1024.0;
                format!("{:.1} KiB at the client's node, {:.1} KiB at the server's", kib(client), kib(server))
            },
        );
        self.check("an idle connection takes less than 25 KiB at each end", holds, text);
    }
}
