//! `ztunnelctl lab`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use ztunnel_lab::lab::{Error as LabError, Options};
use ztunnel_lab::{Lab, Manifests, namespace, tour};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Folder of Kubernetes manifests, whose edits are live, or one file of them; without it, the built-in lab
    #[arg(short, long, alias = "folder", value_name = "PATH", global = true)]
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
        /// Pod (NAME or NAMESPACE/NAME) or node
        #[arg(value_name = "POD")]
        target: String,
        /// Command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show nodes, pods, and what is wrong in the folder
    Status,
    /// Start what keeps the lab in step with its folder again, should it have ended; `up` starts it first
    Follow {
        /// Be it, rather than start it
        #[arg(long, hide = true)]
        foreground: bool,
    },
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
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot tell where this program lies: {0}")]
    Own(std::io::Error),
    #[error("{0}")]
    Namespace(#[from] namespace::Error),
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: std::io::Error },
    #[error("only the built-in lab has a tour; bring your own up with `lab up -f FOLDER`")]
    TourOfFolder,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match &arguments.action {
        None if arguments.file.is_some() => Err(Error::TourOfFolder),
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
        Some(Action::Follow { foreground: true }) => {
            ztunnel_lab::follow(&arguments.name)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Follow { foreground: false }) => follow(&arguments.name),
        Some(Action::Down) => {
            let was_up = Lab::down(&arguments.name)?;
            println!("lab \"{}\" {}", arguments.name, if was_up { "is down" } else { "was not up" });
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(arguments: &Arguments) -> Result<ExitCode, Error> {
    let manifests = match &arguments.file {
        None => Manifests::builtin(),
        Some(path) if path.is_file() && is_manifest(path) => one_file(path)?,
        Some(path) => Manifests::Folder(path.clone()),
    };
    let mut lab = Lab::up(&arguments.name, &manifests, Options::default())?;
    lab.start_follower(&std::env::current_exe().map_err(Error::Own)?)?;
    lab.keep();
    status(arguments)
}

fn follow(name: &str) -> Result<ExitCode, Error> {
    let mut lab = Lab::attach(name)?;
    let started = lab.start_follower(&std::env::current_exe().map_err(Error::Own)?)?;
    println!("the follower of lab \"{name}\" {}", if started { "is started" } else { "runs already" });
    Ok(ExitCode::SUCCESS)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|one| extension == *one))
}

/// As it is now: only a folder is followed.
fn one_file(path: &Path) -> Result<Manifests, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
    Ok(Manifests::Files(vec![(name, text)]))
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
