//! `ztunnelctl status`, `workloads`, `services`, `policies` and `certificates`: what the proxies know, read from their
//! administration interfaces. Every view is made of all nodes at once, so that a node that has not heard of something
//! stands out.

mod certificates;
mod policies;
mod proxies;
mod services;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod workloads;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use ztunnel_lab::lab::Error as LabError;

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
    output: Output,
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
    Policies,
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
}

/// Prints a view. Fails if no proxy answered, and says of the others who did not.
pub fn run(view: View, arguments: &Arguments) -> Result<ExitCode, Error> {
    let proxies = proxies::of_lab(&arguments.lab, &arguments.node)?;
    let silent: Vec<&str> =
        proxies.iter().filter(|proxy| proxy.dump.is_none()).map(|proxy| proxy.node.as_str()).collect();
    if silent.len() == proxies.len() && !matches!(view, View::Status) {
        return Err(Error::Silent(silent.join(", ")));
    }
    if !silent.is_empty() {
        eprintln!("ztunnelctl: no answer from the proxy of {}", silent.join(", "));
    }
    let in_scope = |namespace: &str| arguments.namespace.as_deref().is_none_or(|only| only == namespace);
    match view {
        View::Status => print(&status::rows(&proxies), arguments.output),
        View::Workloads => print(&workloads::rows(&proxies, in_scope), arguments.output),
        View::Services => print(&services::rows(&proxies, in_scope), arguments.output),
        View::Policies => print(&policies::rows(&proxies, in_scope), arguments.output),
        View::Certificates => print(&certificates::rows(&proxies, in_scope), arguments.output),
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line of a table, and an object of its JSON form.
trait Row: Serialize {
    const COLUMNS: &'static [&'static str];

    fn cells(&self) -> Vec<String>;
}

fn print<R: Row>(rows: &[R], output: Output) {
    match output {
        Output::Json => {
            let text = serde_json::to_string_pretty(rows);
            println!("{}", text.expect("invariant: rows are texts, numbers and lists"));
        }
        Output::Table => {
            let mut table = Table::new(R::COLUMNS);
            rows.iter().for_each(|row| table.add(row.cells()));
            print!("{table}");
        }
    }
}

/// Which of the asked proxies know a thing.
fn known_to(nodes: &[String], proxies: &[Proxy]) -> String {
    let answered = proxies.iter().filter(|proxy| proxy.dump.is_some()).count();
    if nodes.len() == answered { "all".to_owned() } else { nodes.join(",") }
}
