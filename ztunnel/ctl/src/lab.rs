//! `ztunnelctl lab`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use ztunnel_lab::lab::{Error as LabError, Options};
use ztunnel_lab::{Lab, Spec, namespace, spec, tour};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Lab file; without it, the built-in lab
    #[arg(short, long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,

    /// Name of the lab; several may be up at once
    #[arg(long, default_value = "lab", global = true)]
    name: String,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the lab up and leave it up
    Up,
    /// Run a command inside a pod or a node
    Exec {
        /// Pod or node
        #[arg(value_name = "POD")]
        target: String,
        /// Command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show nodes and pods
    Status,
    /// Take the lab down; nothing is left behind
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("cannot read the lab file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Namespace(#[from] namespace::Error),
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: std::io::Error },
    #[error("only the built-in lab has a tour; bring your own up with `lab up -f FILE`")]
    TourOfFile,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match &arguments.action {
        None if arguments.file.is_some() => Err(Error::TourOfFile),
        None => {
            let report = tour::run(&arguments.name, arguments.output == Output::Table)?;
            if arguments.output == Output::Json {
                println!("{}", report.json());
            }
            Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Action::Up) => up(&arguments),
        Some(Action::Exec { target, command }) => exec(&arguments.name, target, command),
        Some(Action::Status) => status(&arguments),
        Some(Action::Down) => {
            let was_up = Lab::down(&arguments.name)?;
            println!("lab \"{}\" {}", arguments.name, if was_up { "is down" } else { "was not up" });
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(arguments: &Arguments) -> Result<ExitCode, Error> {
    let (text, file) = match &arguments.file {
        None => (spec::DEFAULT.to_owned(), "built-in".to_owned()),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
            (text, path.display().to_string())
        }
    };
    let spec = Spec::parse(&text, &file).map_err(LabError::Mistakes)?;
    Lab::up(&arguments.name, spec, Options::default())?.keep(&text)?;
    status(arguments)
}

fn exec(lab: &str, name: &str, command: &[String]) -> Result<ExitCode, Error> {
    let namespace = Lab::attach(lab)?.namespace_of(name)?;
    let (program, arguments) = command.split_first().expect("invariant: the command is required");
    let mut child = Command::new(program);
    child.args(arguments);
    let status = namespace::run(&namespace, move || child.status())?
        .map_err(|source| Error::Run { program: program.clone(), source })?;
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn status(arguments: &Arguments) -> Result<ExitCode, Error> {
    let status = Lab::attach(&arguments.name)?.status();
    match arguments.output {
        Output::Json => println!("{}", status.json()),
        Output::Table => print!("{status}"),
    }
    Ok(ExitCode::SUCCESS)
}
