//! `ztunnelctl status`, `workloads`, `services`, `policies` and `certificates`: what the proxies know, read from their
//! administration interfaces. Every view is made of all nodes at once, so that a node that has not heard of something
//! stands out. `policies` joins that with what the controller says of each.

mod certificates;
mod controller;
mod policies;
mod proxies;
mod services;
mod status;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod workloads;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use ztunnel_lab::Lab;
use ztunnel_lab::lab::Error as LabError;

use controller::{Address, Controller};
use proxies::Proxy;
use table::Table;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Lab whose proxies are asked
    #[arg(long, default_value = "lab")]
    lab: String,

    /// Only this node's proxy; may be given several times
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,

    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    pub mesh: Arguments,

    /// Instead: the nodes of the cluster that KUBECONFIG names, and the pods there that are not surely captured or served
    #[arg(long, conflicts_with_all = ["lab", "node", "namespace"])]
    pub cluster: bool,
}

#[derive(Debug, Args)]
pub struct PolicyArguments {
    #[command(flatten)]
    mesh: Arguments,

    /// Where the controller serves its status (its --status-listen), reached from where this command runs. Without it
    /// the lab's controller is asked, inside the lab; with it no lab has to be up
    #[arg(long, env = "CONTROLLER_STATUS", value_name = "HOST:PORT")]
    controller: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug)]
pub enum View {
    Status,
    Workloads,
    Services,
    Certificates,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("there is no node \"{name}\"; there are {known}")]
    Node { name: String, known: String },
    #[error("no proxy answered: {0}")]
    Silent(String),
    #[error("{0}, and no proxy answered")]
    Controller(String),
}

/// Prints a view. Fails if no proxy answered, and says of the others who did not.
pub fn run(view: View, arguments: &Arguments) -> Result<ExitCode, Error> {
    let proxies = proxies::of_lab(&Lab::attach(&arguments.lab)?, &arguments.node)?;
    let silent = silent(&proxies);
    if silent.len() == proxies.len() && !matches!(view, View::Status) {
        return Err(Error::Silent(silent.join(", ")));
    }
    tell_silent(&silent);
    let in_scope = |namespace: &str| arguments.includes(namespace);
    match view {
        View::Status => print(&status::rows(&proxies), arguments.output),
        View::Workloads => print(&workloads::rows(&proxies, in_scope), arguments.output),
        View::Services => print(&services::rows(&proxies, in_scope), arguments.output),
        View::Certificates => print(&certificates::rows(&proxies, in_scope), arguments.output),
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what the controller says of the policies and what the proxies hold of them; the one without the other, if need
/// be, but then it is no success.
pub fn policies(PolicyArguments { mesh, controller }: &PolicyArguments) -> Result<ExitCode, Error> {
    let lab = match Lab::attach(&mesh.lab) {
        Ok(lab) => Some(lab),
        Err(error @ LabError::Down(_)) if controller.is_some() => {
            eprintln!("ztunnelctl: no proxy is asked: {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let proxies = lab.as_ref().map_or(Ok(Vec::new()), |lab| proxies::of_lab(lab, &mesh.node))?;
    let silent = silent(&proxies);
    tell_silent(&silent);
    let answer = match (controller, &lab) {
        (Some(given), _) => Controller::ask(Address::Given(given))
            .map_err(|error| format!("no answer from the controller at {given}: {error}")),
        (None, Some(lab)) => Controller::ask(Address::Lab(lab))
            .map_err(|error| format!("no answer from the controller of the lab: {error}")),
        (None, None) => {
            Err("no lab is up whose controller could be asked; name one by --controller".to_owned())
        }
    };
    let complete = answer.is_ok() && silent.is_empty();
    if let Err(error) = &answer {
        if silent.len() == proxies.len() {
            return Err(Error::Controller(error.clone()));
        }
        eprintln!("ztunnelctl: {error}; this is what the proxies hold");
    }
    let report = policies::report(answer, &proxies, |namespace| mesh.includes(namespace));
    match mesh.output {
        Output::Json => println!("{}", json(&report)),
        Output::Table => {
            print!("{}", report.table());
            if !report.mistakes().is_empty() {
                println!("\nMistakes in policies; none of them opens anything:");
                report.mistakes().iter().for_each(|mistake| println!("  {mistake}"));
            }
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    fn includes(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|only| only == namespace)
    }
}

fn silent(proxies: &[Proxy]) -> Vec<&str> {
    proxies.iter().filter(|proxy| proxy.dump.is_none()).map(|proxy| proxy.node.as_str()).collect()
}

fn tell_silent(silent: &[&str]) {
    if !silent.is_empty() {
        eprintln!("ztunnelctl: no answer from the proxy of {}", silent.join(", "));
    }
}

/// A line of a table, and an object of its JSON form.
trait Row: Serialize {
    const COLUMNS: &'static [&'static str];

    fn cells(&self) -> Vec<String>;
}

fn print<R: Row>(rows: &[R], output: Output) {
    match output {
        Output::Json => println!("{}", json(rows)),
        Output::Table => {
            let mut table = Table::new(R::COLUMNS);
            rows.iter().for_each(|row| table.add(row.cells()));
            print!("{table}");
        }
    }
}

pub(crate) fn json<T: Serialize + ?Sized>(what: &T) -> String {
    serde_json::to_string_pretty(what).expect("invariant: rows are texts, numbers and lists")
}

/// Which of the asked proxies know a thing.
fn known_to(nodes: &[String], proxies: &[Proxy]) -> String {
    let answered = proxies.iter().filter(|proxy| proxy.dump.is_some()).count();
    if nodes.len() == answered { "all".to_owned() } else { nodes.join(",") }
}
