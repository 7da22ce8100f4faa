//! `ztunnelctl`: the human's command.

mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    let Arguments { command: Command::Lab(arguments) } = Arguments::parse();
    match lab::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ztunnelctl: {error}");
            ExitCode::FAILURE
        }
    }
}
