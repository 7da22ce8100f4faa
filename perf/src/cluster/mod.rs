//! A run in somebody's cluster: a Job that orders, and for each variant a pod that serves and one that runs the clients.
//!
//! ```text
//!            ┌────────────── Job: perf cluster ◀──────────────┐
//!      dials │ orders, figures                                │
//!  client of a variant: perf pod ═══ the load ═══▶ server of it: perf pod
//! ```
//!
//! No pod is privileged, and none sees the proxies. A variant must be what it is called: before each of its rounds both of its pods
//! look whether a mesh listens inside them.

mod orders;
mod pod;
mod roll;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use self::orders::{Answer, Hello, Order};
use self::roll::Roll;
use crate::bed::{Bed, Measured};
use crate::figures::{Pod, Role, Run};
use crate::interrupt::Interrupt;
use crate::load::DEADLINE;
use crate::run::Plan;
use crate::scenario::{Outcome, Scenario};
use crate::suite::Suite;
use crate::variant::Kind;

pub use self::pod::{PodArguments, attend};

/// Whose name says what its pods must see.
const VARIANTS: [(&str, Kind); 2] = [("unmeshed", Kind::Direct), ("meshed", Kind::Ours)];
const ROLES: [Role; 2] = [Role::Client, Role::Server];
const CAPTURED: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// In which every client of a scenario has given up.
const GIVEN_UP: Duration = DEADLINE.saturating_mul(4);

#[derive(Debug, Args)]
pub struct ClusterArguments {
    /// Where the pods dial in
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9011")]
    listen: SocketAddr,

    #[arg(long, value_enum, default_value_t = Suite::Quick)]
    suite: Suite,

    /// How often each variant is measured
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// How long all pods may take to come, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait: u64,

    /// The report as JSON too, in the last line: what `perf compare` reads
    #[arg(long)]
    json: bool,
}

/// What was measured; whoever is not what its variant says ends the run.
pub fn run(arguments: &ClusterArguments) -> Result<Run, Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(arguments.listen)
        .map_err(|error| format!("--listen {}: {error}", arguments.listen))?;
    let seats: Vec<_> = VARIANTS.into_iter().flat_map(|(name, _)| ROLES.map(|role| (name, role))).collect();
    let roll = Roll::called(listener, seats.clone());
    let until = Instant::now() + Duration::from_secs(arguments.wait);
    let mut hellos: Vec<Hello> = Vec::new();
    for seat in seats {
        let present = roll.wait(seat, until.saturating_duration_since(Instant::now()))?;
        hellos.push(present.hello.clone());
    }
    let [first, ..] = &hellos[..] else { return Err("nothing is measured".into()) };
    let mut scenarios = arguments.suite.scenarios();
    scenarios.retain(Scenario::fits_a_pair);
    let plan = Plan {
        suite: arguments.suite,
        scenarios,
        rounds: arguments.rounds.into(),
        variants: VARIANTS.map(|(name, kind)| pair(name, kind, roll.clone())).into(),
        machine: first.machine.clone(),
        congestion: congestion(&hellos),
        pods: hellos.iter().map(Hello::pod).collect::<Vec<Pod>>(),
    };
    eprintln!("about {:.0?}, {} variants, {} rounds", plan.takes(), plan.variants.len(), plan.rounds);
    Ok(plan.run(&Interrupt::default())?)
}

impl ClusterArguments {
    pub fn wants_json(&self) -> bool {
        self.json
    }
}

/// All that the pods have.
fn congestion(hellos: &[Hello]) -> String {
    let mut names: Vec<&str> = hellos.iter().map(|hello| hello.congestion.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" and ")
}

/// The client and the server of a variant.
struct Pair {
    name: &'static str,
    kind: Kind,
    roll: Arc<Roll>,
    /// Until a pod that has just started is captured.
    patience: Duration,
}

fn pair(name: &'static str, kind: Kind, roll: Arc<Roll>) -> Box<dyn Measured> {
    Box::new(Pair { name, kind, roll, patience: CAPTURED })
}

impl Pair {
    /// Waits until a pod is captured, or is not, as its variant says.
    fn look(&self, role: Role) -> io::Result<()> {
        let (expected, until) = (self.kind == Kind::Ours, Instant::now() + self.patience);
        loop {
            match self.roll.order((self.name, role), &Order::Look, DEADLINE)? {
                Answer::Captured(captured) if captured == expected => return Ok(()),
                Answer::Captured(_) if Instant::now() >= until => break,
                Answer::Captured(_) => std::thread::sleep(LOOK),
                other => return Err(io::Error::other(format!("{other:?} is no answer to a look"))),
            }
        }
        let (name, role) = (self.name, role.name());
        Err(io::Error::other(match expected {
            true => format!(
                "the {name} {role} is in no mesh: nobody listens on port 15008 inside it; see whether a mesh is \
                 installed on its node, and `kubectl describe pod`"
            ),
            false => format!(
                "the {name} {role} is in a mesh: somebody listens on port 15008 inside it; see its labels and its namespace's"
            ),
        }))
    }
}

impl Measured for Pair {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn measures(&self, _: &Scenario) -> bool {
        true
    }

    fn bed(&self) -> Result<Box<dyn Bed + '_>, Box<dyn std::error::Error>> {
        ROLES.into_iter().try_for_each(|role| self.look(role))?;
        Ok(Box::new(self))
    }
}

impl Bed for &Pair {
    fn run(&self, scenario: &Scenario, time: Duration) -> io::Result<Outcome> {
        // It may have been started again, with another address.
        let server = self.roll.wait((self.name, Role::Server), DEADLINE)?.hello.address;
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let order = Order::Run { scenario: *scenario, milliseconds, server };
        match self.roll.order((self.name, Role::Client), &order, scenario.takes(time) + GIVEN_UP)? {
            Answer::Ran(outcome) => Ok(outcome),
            Answer::Failed(why) => Err(io::Error::other(why)),
            other @ Answer::Captured(_) => Err(io::Error::other(format!("{other:?} is no answer to a run"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::orders::Line;
    use super::*;
    use crate::machine::Machine;

    /// A Job, and pods that dial it and answer each order.
    fn job(pods: &'static [(&'static str, Role)], answer: fn(Order) -> Answer) -> Arc<Roll> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("it is bound");
        let roll =
            Roll::called(listener, VARIANTS.iter().flat_map(|one| ROLES.map(|role| (one.0, role))).collect());
        for &(variant, role) in pods {
            let mut line = Line::new(TcpStream::connect(to).expect("it listens")).expect("a socket");
            let hello = Hello {
                variant: variant.to_owned(),
                role,
                node: "n".to_owned(),
                machine: Machine::own(),
                address: line.own_address().expect("connected"),
                congestion: "cubic".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            line.say(&hello, DEADLINE).expect("said");
            std::thread::spawn(move || {
                while let Ok(order) = line.hear(DEADLINE) {
                    line.say(&answer(order), DEADLINE).expect("said");
                }
            });
        }
        roll
    }

    fn of(name: &'static str, kind: Kind, roll: &Arc<Roll>) -> Pair {
        Pair { name, kind, roll: roll.clone(), patience: Duration::ZERO }
    }

    const MESHED: &[(&str, Role)] = &[("meshed", Role::Client), ("meshed", Role::Server)];

    #[test]
    fn a_variant_is_what_it_is_called_or_is_not_measured() {
        let told = |pair: &Pair| pair.bed().err().map(|error| error.to_string()).unwrap_or_default();
        let roll = job(MESHED, |_| Answer::Captured(true));
        assert_eq!(told(&of("meshed", Kind::Ours, &roll)), "");
        let roll = job(MESHED, |_| Answer::Captured(false));
        let error = told(&of("meshed", Kind::Ours, &roll));
        assert!(error.contains("meshed client is in no mesh"), "{error}");
        let roll = job(&[("unmeshed", Role::Client)], |_| Answer::Captured(true));
        let error = told(&of("unmeshed", Kind::Direct, &roll));
        assert!(error.contains("unmeshed client is in a mesh"), "{error}");
    }

    #[test]
    fn the_client_runs_a_scenario_to_the_server() {
        let roll = job(MESHED, |order| match order {
            Order::Look => Answer::Captured(true),
            Order::Run { server, .. } if server.is_loopback() => {
                Answer::Ran(Outcome { failures: 7, ..Outcome::default() })
            }
            Order::Run { .. } => Answer::Failed("where?".to_owned()),
        });
        let pair = of("meshed", Kind::Ours, &roll);
        let outcome = pair.bed().expect("captured").run(&Scenario::StalledReader, Duration::ZERO);
        assert_eq!(outcome.expect("it ran").failures, 7);
    }

    #[test]
    fn who_does_not_come_is_named() {
        let roll = job(&[("other", Role::Client)], |_| Answer::Captured(true));
        let missing =
            roll.wait(("meshed", Role::Server), Duration::from_millis(20)).err().expect("nobody came");
        assert!(missing.to_string().contains("the meshed server did not come"), "{missing}");
    }
}
