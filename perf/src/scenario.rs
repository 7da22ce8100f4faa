//! What is measured: each scenario is one kind of load on a bed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ztunnel_lab::bulk::{self, Direction, Until};
use ztunnel_lab::steady;

use crate::bed::{BULK, ECHO, ENDLESS, Ends, HTTP, Place};
use crate::figures::Figure;
use crate::load::{self, Arrival, Seen};
use crate::usage::Usage;

/// Percentiles that a curve is drawn through.
const CURVE: [f64; 13] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];
/// Well-behaved connections beside one that does not read.
const WELL_BEHAVED: usize = 100;
/// Streams of the elephant.
const ELEPHANT: usize = 8;
/// Connections that warm up, few beside those that are counted.
const WARM: usize = 32;
/// Between the last of many connections and the look at the memory that they take.
const AT_REST: Duration = Duration::from_secs(10);
/// After so long, memory is to be given back.
const RETURNED: Duration = Duration::from_secs(30);
/// Nobody waits longer for a figure that stays.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    Bulk {
        streams: usize,
        direction: Direction,
        place: Place,
    },
    PingPong {
        place: Place,
    },
    Requests {
        connections: usize,
        place: Place,
    },
    /// Requests that come whether or not those before are answered.
    Paced {
        connections: usize,
        rate: f64,
    },
    Connections {
        at_once: usize,
    },
    Idle {
        connections: usize,
    },
    StalledReader,
    ElephantAndMouse,
}

/// Of one scenario on one bed.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub figures: BTreeMap<Figure, f64>,
    pub percentiles: Vec<(f64, f64)>,
    pub failures: u64,
    pub failure: Option<String>,
}

impl Scenario {
    pub fn is_near(&self) -> bool {
        matches!(
            self,
            Self::Bulk { place: Place::Near, .. }
                | Self::PingPong { place: Place::Near }
                | Self::Requests { place: Place::Near, .. }
        )
    }

    /// Whether enough is asked at once for more workers than one.
    pub fn grows_with_workers(&self) -> bool {
        match *self {
            Self::Requests { connections, place: Place::Far } => connections == 32,
            Self::Bulk { streams, direction: Direction::Up, place: Place::Far } => streams == 8,
            _ => false,
        }
    }

    /// Whether what ran before on the same bed would be measured with it: memory that a proxy took then, it uses again.
    pub fn wants_own_bed(&self) -> bool {
        matches!(self, Self::Idle { .. })
    }

    /// Whether one client and one server are enough, and something is seen without a look at the proxies.
    pub fn fits_a_pair(&self) -> bool {
        !self.is_near() && !matches!(self, Self::Idle { .. } | Self::ElephantAndMouse)
    }

    /// How long it takes, about.
    pub fn takes(&self, time: Duration) -> Duration {
        match self {
            Self::Bulk { .. }
            | Self::PingPong { .. }
            | Self::Requests { .. }
            | Self::Paced { .. }
            | Self::Connections { .. } => time.mul_f64(1.1),
            Self::Idle { connections } => Duration::from_millis(*connections as u64 / 2) + AT_REST + RETURNED,
            Self::StalledReader | Self::ElephantAndMouse => time.mul_f64(2.2),
        }
    }

    /// A tenth of the time warms up, and is not counted.
    pub fn run(&self, ends: &Ends, time: Duration) -> io::Result<Outcome> {
        match self {
            Self::Idle { .. } => {}
            _ => drop(self.once(ends, time / 10)?),
        }
        let mut outcome = self.once(ends, time)?;
        outcome.figures.retain(|_, value| value.is_finite());
        Ok(outcome)
    }

    fn once(&self, ends: &Ends, time: Duration) -> io::Result<Outcome> {
        match *self {
            Self::Bulk { streams, direction, place } => transfer(ends, streams, direction, place, time),
            Self::PingPong { place } => {
                let to = ends.to(place, ECHO)?;
                metered(ends, || load::ping_pong(&ends.client, to, time))
                    .map(|(seen, cpu)| Outcome::costing(&seen, cpu, &[P50, P99, P999, P9999]))
            }
            Self::Requests { connections, place } => {
                requests(ends, connections, place, Arrival::Answered, time)
                    .map(|(seen, cpu)| Outcome::costing(&seen, cpu, &[P50, P99]).at_rate(&seen))
            }
            Self::Paced { connections, rate } => {
                requests(ends, connections, Place::Far, Arrival::Rate(rate), time)
                    .map(|(seen, cpu)| Outcome::costing(&seen, cpu, &[P50, P99, P999]).at_rate(&seen))
            }
            Self::Connections { at_once } => {
                let to: Vec<_> = ends.new_connections.iter().map(|&port| ends.far.port(port)).collect();
                metered(ends, || load::connect_each(&ends.client, &to, at_once, time)).map(|(seen, cpu)| {
                    let mut outcome = Outcome::costing(&seen, cpu, &[P50, P99]).at_rate(&seen);
                    let first = ends.first_connection.map(|took| took.as_secs_f64() * 1e3);
                    outcome.figures.extend(first.map(|took| (Figure::FirstConnection, took)));
                    outcome
                })
            }
            Self::Idle { connections } => idle(ends, connections),
            Self::StalledReader => {
                let others = || {
                    requests(ends, WELL_BEHAVED, Place::Far, Arrival::Answered, time).map(|(seen, _)| seen)
                };
                let before = others()?;
                let beside = load::stall(&ends.client, ends.to(Place::Far, ENDLESS)?, others)??;
                Ok(Outcome::disturbed(&before, &beside))
            }
            Self::ElephantAndMouse => elephant_and_mouse(ends, time),
        }
    }
}

const P50: (Figure, f64) = (Figure::P50, 50.0);
const P99: (Figure, f64) = (Figure::P99, 99.0);
const P999: (Figure, f64) = (Figure::P999, 99.9);
const P9999: (Figure, f64) = (Figure::P9999, 99.99);

/// What work took of the proxies; None where there are none.
fn metered<T>(ends: &Ends, work: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Option<f64>)> {
    let proxies = &ends.proxies;
    let before = Usage::of(proxies)?;
    let done = work()?;
    let cpu = Usage::of(proxies)?.cpu_seconds - before.cpu_seconds;
    Ok((done, (!proxies.is_empty()).then_some(cpu)))
}

fn transfer(
    ends: &Ends,
    streams: usize,
    direction: Direction,
    place: Place,
    time: Duration,
) -> io::Result<Outcome> {
    let to = ends.to(place, BULK)?;
    let started = Instant::now();
    let (rate, cpu) =
        metered(ends, || bulk::transfer(&ends.client, to, streams, direction, Until::Elapsed(time)))?;
    let gigabytes = rate * started.elapsed().as_secs_f64() / 1e9;
    let mut outcome = Outcome::default();
    outcome.figures.insert(Figure::Throughput, rate * 8.0 / 1e9);
    outcome.figures.extend(cpu.map(|cpu| (Figure::CpuPerGigabyte, cpu / gigabytes)));
    Ok(outcome)
}

fn requests(
    ends: &Ends,
    connections: usize,
    place: Place,
    arrival: Arrival,
    time: Duration,
) -> io::Result<(Seen, Option<f64>)> {
    let to = ends.to(place, HTTP)?;
    metered(ends, || load::requests(&ends.client, to, connections, arrival, time))
}

fn idle(ends: &Ends, connections: usize) -> io::Result<Outcome> {
    let (to, proxies) = (ends.to(Place::Far, ECHO)?, &ends.proxies);
    let resident = || Usage::of(proxies).map(|usage| usage.resident_bytes as f64);
    // The first also pay for what stays.
    load::hold(&ends.client, to, WARM, || ())?;
    let before = steady(RETURNED, || resident().ok()).flatten();
    let before = before.ok_or_else(|| io::Error::other("the proxies' memory does not come to rest"))?;
    let held = load::hold(&ends.client, to, connections, || {
        std::thread::sleep(AT_REST);
        resident()
    })??;
    let closed = Instant::now();
    let mut outcome = Outcome::default();
    if proxies.is_empty() {
        return Ok(outcome);
    }
    let mut kept = resident()? - before;
    while kept > 0.0 && closed.elapsed() < RETURNED {
        std::thread::sleep(LOOK);
        kept = resident()? - before;
    }
    outcome.figures.insert(Figure::MemoryPerConnection, (held - before) / connections as f64 / 1024.0);
    outcome.figures.insert(Figure::MemoryKept, kept.max(0.0) / f64::from(1 << 20));
    Ok(outcome)
}

fn elephant_and_mouse(ends: &Ends, time: Duration) -> io::Result<Outcome> {
    let (to, mouse_at) = (ends.to(Place::Far, ECHO)?, ends.mouse()?);
    let mouse = || load::ping_pong(mouse_at, to, time);
    let before = mouse()?;
    let (elephant, bulk_to) = (ends.client.clone(), ends.to(Place::Far, BULK)?);
    // Longer than the mouse, which begins at the same time.
    let until = Until::Elapsed(time.mul_f64(1.3));
    let (beside, carried) = std::thread::scope(|scope| {
        let carrying =
            scope.spawn(move || bulk::transfer(&elephant, bulk_to, ELEPHANT, Direction::Up, until));
        (mouse(), carrying.join())
    });
    let carried = carried.map_err(|_| io::Error::other("the elephant panicked"))??;
    let mut outcome = Outcome::disturbed(&before, &beside?);
    outcome.figures.insert(Figure::Throughput, carried * 8.0 / 1e9);
    Ok(outcome)
}

impl Outcome {
    fn of(seen: &Seen) -> Self {
        let percentiles = CURVE.iter().map(|&percentile| (percentile, seen.percentile(percentile)));
        let percentiles = percentiles.filter(|(_, time)| time.is_finite());
        Self {
            figures: BTreeMap::new(),
            percentiles: percentiles.collect(),
            failures: seen.failed,
            failure: seen.reason.clone(),
        }
    }

    fn timed(mut self, seen: &Seen, figures: &[(Figure, f64)]) -> Self {
        let timed = figures.iter().map(|&(figure, percentile)| (figure, seen.percentile(percentile)));
        self.figures.extend(timed);
        self
    }

    /// What each operation took of the proxies, too.
    fn costing(seen: &Seen, cpu: Option<f64>, figures: &[(Figure, f64)]) -> Self {
        let mut outcome = Self::of(seen).timed(seen, figures);
        let each = cpu.map(|cpu| cpu / seen.done as f64 * 1e6);
        outcome.figures.extend(each.map(|each| (Figure::CpuPerOperation, each)));
        outcome
    }

    fn at_rate(mut self, seen: &Seen) -> Self {
        self.figures.insert(Figure::Rate, seen.per_second());
        self
    }

    fn disturbed(before: &Seen, beside: &Seen) -> Self {
        let mut outcome = Self::of(beside).timed(beside, &[P99]);
        outcome.figures.insert(Figure::Disturbance, beside.percentile(99.0) / before.percentile(99.0));
        outcome.failures += before.failed;
        outcome
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let near = |place: &Place| if *place == Place::Near { ", same node" } else { "" };
        match self {
            Self::Bulk { streams, direction, place } => {
                let way = if *direction == Direction::Up { "sending" } else { "receiving" };
                write!(
                    f,
                    "bulk, {streams} stream{} {way}{}",
                    if *streams == 1 { "" } else { "s" },
                    near(place)
                )
            }
            Self::PingPong { place } => write!(f, "ping-pong of one byte{}", near(place)),
            Self::Requests { connections, place } => {
                write!(f, "HTTP, {connections} keep-alive connections{}", near(place))
            }
            Self::Paced { connections, rate } => write!(f, "HTTP at {rate}/s, {connections} connections"),
            Self::Connections { at_once } => write!(f, "new connections, {at_once} at once"),
            Self::Idle { connections } => write!(f, "{connections} idle connections"),
            Self::StalledReader => write!(f, "HTTP, {WELL_BEHAVED} connections beside a stalled reader"),
            Self::ElephantAndMouse => {
                write!(f, "ping-pong of one pod beside {ELEPHANT} bulk streams of another")
            }
        }
    }
}
