//! `ztunnelctl`: the human's command.

mod cluster;
mod lab;
mod mesh;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh::View;

#[derive(Debug, Parser)]
#[command(name = "ztunnelctl", version, about = "Works with the mesh of this machine or cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A mesh on this machine; without a subcommand, the tour that shows and checks what the mesh promises
    Lab(lab::Arguments),
    /// Whether a Kubernetes cluster can work, and what stands against it
    Preflight,
    /// Install into a Kubernetes cluster, or upgrade what is installed there
    Install(cluster::InstallArguments),
    /// Print what `install` applies, as YAML, for who applies it by other means
    Manifests(cluster::ManifestsArguments),
    /// Remove from a Kubernetes cluster; nothing is left behind
    Uninstall(cluster::UninstallArguments),
    /// The proxies: whether they are ready, how they are fed, and what they hold
    Status(mesh::StatusArguments),
    /// Workloads that the proxies know
    Workloads(mesh::Arguments),
    /// Services that the proxies know, with their endpoints
    Services(mesh::Arguments),
    /// Policies: what of each is enforced and why not all, which proxies hold it, and mistakes in their files
    Policies(mesh::PolicyArguments),
    /// Certificates that the proxies hold
    Certificates(mesh::Arguments),
}

fn main() -> ExitCode {
    let mesh = |view, arguments| mesh::run(view, &arguments).map_err(|error| error.to_string());
    let outcome = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments).map_err(|error| error.to_string()),
        Command::Preflight => cluster::preflight().map_err(|error| error.to_string()),
        Command::Install(arguments) => cluster::install(arguments).map_err(|error| error.to_string()),
        Command::Manifests(arguments) => cluster::manifests(&arguments).map_err(|error| error.to_string()),
        Command::Uninstall(arguments) => cluster::uninstall(arguments).map_err(|error| error.to_string()),
        Command::Status(arguments) if arguments.cluster => {
            cluster::status(arguments.mesh.output).map_err(|error| error.to_string())
        }
        Command::Status(arguments) => mesh(View::Status, arguments.mesh),
        Command::Workloads(arguments) => mesh(View::Workloads, arguments),
        Command::Services(arguments) => mesh(View::Services, arguments),
        Command::Policies(arguments) => mesh::policies(&arguments).map_err(|error| error.to_string()),
        Command::Certificates(arguments) => mesh(View::Certificates, arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ztunnelctl: {error}");
            ExitCode::FAILURE
        }
    }
}
