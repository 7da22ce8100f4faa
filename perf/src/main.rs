//! `perf`: what this project's proxy does beside direct TCP, a plain relay and the proxies of others, on one machine, in one command.
//!
//! ```text
//! suite ─▶ plan ─▶ rounds: variant ─▶ bed ─▶ scenario ─▶ load ─▶ figures ─▶ report
//! ```
//!
//! A bed is the lab's, or, with less to compare, a pair of pods of somebody's cluster.
//!
//! Knows nothing of a proxy's inside: it measures processes and what their users see.

mod bed;
mod check;
mod cluster;
mod compare;
mod figures;
mod interrupt;
mod load;
mod machine;
mod peer;
mod progress;
mod relay;
mod report;
mod run;
mod scenario;
mod suite;
mod usage;
mod variant;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bed::Measured;
use crate::bed::lab::InLab;
use crate::check::Against;
use crate::cluster::{ClusterArguments, PodArguments};
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::peer::Peer;
use crate::run::Plan;
use crate::suite::Suite;
use crate::variant::Variant;

#[derive(Debug, Parser)]
#[command(
    name = "perf",
    version,
    about = "Measures the proxy beside direct TCP, a plain relay, and others' proxies"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a suite and write report.json, report.md and report.html; needs root
    Run(RunArguments),
    /// Run a suite in a cluster, with and without a mesh, between pods that run `perf pod`, and print the table (deploy/benchmark)
    Cluster(ClusterArguments),
    /// Be a pod of `perf cluster`: serve, or run its clients
    Pod(PodArguments),
    /// Two reports beside each other
    Compare {
        /// report.json of the run before
        before: PathBuf,
        /// report.json of the run after
        after: PathBuf,
    },
    /// Whether a report keeps what perf/SPECIFICATION.md promises; fails where it does not
    Check {
        /// report.json of a run
        report: PathBuf,
        /// Against the margins that CI fails beyond, which noise does not reach, instead of the promises
        #[arg(long)]
        margins: bool,
    },
    /// Copy bytes from ports to addresses: what a relay does that does nothing else
    #[command(hide = true)]
    Relay {
        #[arg(required = true)]
        routes: Vec<relay::Route>,
    },
}

#[derive(Debug, Args)]
struct RunArguments {
    #[arg(long, value_enum, default_value_t = Suite::Quick)]
    suite: Suite,

    /// A proxy of somebody else, as a file describes it (perf/peers/istio.toml); more than once for more
    #[arg(long, value_name = "NAME=FILE.toml")]
    peer: Vec<String>,

    /// This proxy once more, with other settings: "NAME=VARIABLE=VALUE", more variables after commas; more than once for more
    #[arg(long, value_name = "NAME=VARIABLE=VALUE")]
    ours: Vec<String>,

    /// Where the reports are written
    #[arg(long, value_name = "DIR", default_value = "perf-report")]
    output: PathBuf,

    /// How often each variant gets a new bed
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// Congestion control of every namespace
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    congestion: String,

    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Cluster(arguments) => cluster(&arguments),
        Command::Pod(arguments) => pod(&arguments),
        Command::Compare { before, after } => compare(&before, &after),
        Command::Check { report, margins } => {
            check(&report, if margins { Against::Margins } else { Against::Promises })
        }
        Command::Relay { routes } => relay::run(&routes).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &RunArguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut variants = vec![Variant::Direct, Variant::Relay, Variant::ours()];
    if arguments.suite != Suite::Smoke {
        variants.extend([Variant::Plain, Variant::uring()]);
    }
    if arguments.suite == Suite::Full {
        variants.extend(Variant::workers(Machine::own().cores));
    }
    for ours in &arguments.ours {
        variants.push(Variant::ours_with(ours)?);
    }
    for peer in &arguments.peer {
        variants.push(Variant::Peer(Peer::read(peer)?));
    }
    let names: BTreeSet<&str> = variants.iter().map(Variant::name).collect();
    if names.len() < variants.len() {
        return Err("two variants have one name".into());
    }
    let mut scenarios = arguments.suite.scenarios();
    if let Some(only) = &arguments.only {
        scenarios.retain(|scenario| scenario.to_string().contains(only));
        if scenarios.is_empty() {
            return Err(
                format!("no scenario of the suite {} contains {only:?}", arguments.suite.name()).into()
            );
        }
    }
    allowed(&arguments.congestion)?;
    let output = &arguments.output;
    // Now, so that a run that cannot be written fails before it takes its time.
    std::fs::create_dir_all(output).map_err(|error| format!("{}: {error}", output.display()))?;
    allow_descriptors()?;
    let measured = |variant| -> Box<dyn Measured> {
        Box::new(InLab { variant, congestion: arguments.congestion.clone() })
    };
    let plan = Plan {
        suite: arguments.suite,
        scenarios,
        rounds: arguments.rounds.into(),
        variants: variants.into_iter().map(measured).collect(),
        machine: Machine::own(),
        congestion: arguments.congestion.clone(),
        pods: Vec::new(),
    };
    eprintln!("about {:.0?}, {} variants, {} rounds", plan.takes(), plan.variants.len(), plan.rounds);
    let run = plan.run(&Interrupt::watched()?)?;
    println!("{}", report::table(&run));
    report::write(&run, output).map_err(|error| format!("{}: {error}", output.display()))?;
    println!("{}", output.join("report.html").display());
    Ok(())
}

/// Clients and servers of many connections are in one process.
fn allow_descriptors() -> std::io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

fn cluster(arguments: &ClusterArguments) -> Result<(), Box<dyn std::error::Error>> {
    Interrupt::ends()?;
    let run = cluster::run(arguments)?;
    println!("\n{}", report::text(&run));
    if arguments.wants_json() {
        println!("{}", report::json(&run)?);
    }
    match run.samples.iter().map(|sample| sample.failures).sum::<u64>() {
        0 => Ok(()),
        failures => Err(format!("{failures} failures").into()),
    }
}

fn pod(arguments: &PodArguments) -> Result<(), Box<dyn std::error::Error>> {
    Interrupt::ends()?;
    allow_descriptors()?;
    Ok(cluster::attend(arguments)?)
}

/// What a namespace may choose is what the first one allows; cubic the lab allows itself.
fn allowed(congestion: &str) -> Result<(), String> {
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = std::fs::read_to_string(ALLOWED).map_err(|error| format!("{ALLOWED}: {error}"))?;
    match congestion == "cubic" || allowed.split_whitespace().any(|name| name == congestion) {
        true => Ok(()),
        false => Err(format!("congestion control {congestion:?} is not among {ALLOWED}: {}", allowed.trim())),
    }
}

fn compare(before: &Path, after: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", compare::table(&read(before)?, &read(after)?));
    Ok(())
}

fn check(report: &Path, against: Against) -> Result<(), Box<dyn std::error::Error>> {
    let (run, promises) = (read(report)?, check::promises()?);
    if against == Against::Promises {
        check::fit(&run)?;
    }
    let verdicts = check::verdicts(&run, &promises, against);
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let broken = verdicts.iter().filter(|verdict| verdict.is_broken()).count();
    match (broken, verdicts.iter().any(check::Verdict::was_measured)) {
        (0, true) => Ok(()),
        (0, false) => Err("nothing that is promised was measured".into()),
        _ => Err(format!("{broken} of {} promises broken", verdicts.len()).into()),
    }
}

fn read(path: &Path) -> Result<figures::Run, String> {
    report::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
