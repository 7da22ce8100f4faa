//! `ztunnelctl preflight`, `install`, `manifests`, `uninstall` and `status --cluster`: a cluster that KUBECONFIG names.
//!
//! What an installation consists of is in `deploy/`; nothing is changed before the cluster was looked at.

mod install;
mod manifests;
mod preflight;
mod status;
mod uninstall;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reflector::{Client, Trouble};

use crate::mesh::Output;

/// For one request.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct InstallArguments {
    /// Image of agent, proxy and controller
    #[arg(long, value_name = "IMAGE", default_value = manifests::IMAGE)]
    image: String,

    /// Ask the API server whether it would take everything, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Wait until controller and node pods are ready
    #[arg(long)]
    wait: bool,

    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    /// Install although preflight found what stands against it
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct ManifestsArguments {
    /// Image of agent, proxy and controller
    #[arg(long, value_name = "IMAGE", default_value = manifests::IMAGE)]
    image: String,
}

#[derive(Debug, Args)]
pub struct UninstallArguments {
    /// Image whose agent cleans the nodes up; by default the one that is installed
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// Remove the definitions of the policies too, and with them every policy; those of Istio are left alone
    #[arg(long)]
    delete_policies: bool,

    /// How long the nodes may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cluster(#[from] reflector::Error),
    #[error("{what}: {trouble}")]
    Api { what: String, trouble: Trouble },
    #[error("the cluster cannot work yet, and nothing was changed; --force installs all the same")]
    Unfit,
    #[error(
        "these nodes need an overlay (the note above), and nothing was changed; --force installs what suits other nodes"
    )]
    Overlay,
    #[error("no node pod in namespace {SYSTEM}: it is not installed here", SYSTEM = manifests::SYSTEM)]
    NotInstalled,
    #[error("not ready within {0:?}: {1}")]
    Late(Duration, String),
    #[error("no runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

pub fn install(arguments: InstallArguments) -> Result<ExitCode, Error> {
    run(async |client| install::run(&client, arguments).await)
}

pub fn manifests(arguments: &ManifestsArguments) -> Result<ExitCode, serde_saphyr::ser::Error> {
    for object in manifests::definitions().into_iter().chain(manifests::parts(&arguments.image)) {
        println!("---\n{}", serde_saphyr::to_string(&object.value)?.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

pub fn uninstall(arguments: UninstallArguments) -> Result<ExitCode, Error> {
    run(async |client| uninstall::run(&client, arguments).await)
}

pub fn status(output: Output) -> Result<ExitCode, Error> {
    run(async |client| status::run(&client, output).await)
}

pub fn preflight() -> Result<ExitCode, Error> {
    run(async |client| {
        let findings = preflight::look(&client).await?;
        Ok(if preflight::tell(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn run(work: impl AsyncFnOnce(Client) -> Result<ExitCode, Error>) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { work(reflector::client(reflector::infer().await?)?).await })
}

/// Names what was asked for in what went wrong.
fn of<T>(what: impl Into<String>, answer: Result<T, Trouble>) -> Result<T, Error> {
    answer.map_err(|trouble| Error::Api { what: what.into(), trouble })
}
