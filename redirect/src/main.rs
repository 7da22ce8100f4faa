//! `ztunnel-redirect`: the node agent, the only process with capabilities.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect::agent::{self, Config};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Captures the TCP of a node's pods and hands it to the proxy. Rules stay when it ends.
#[derive(Debug, Parser)]
#[command(name = "ztunnel-redirect", version)]
struct Args {
    /// Unix socket on which proxies connect.
    #[arg(
        long,
        env = "REDIRECT_SOCKET",
        value_name = "PATH",
        default_value = "/var/run/ztunnel/redirect.sock"
    )]
    socket: PathBuf,

    /// JSON file of the pods to capture; followed when it changes.
    #[arg(long, env = "REDIRECT_PODS", value_name = "FILE")]
    pods: PathBuf,

    /// The only user that may connect.
    #[arg(long, env = "REDIRECT_PROXY_UID", value_name = "UID", default_value_t = 1337)]
    proxy_uid: u32,

    /// Unix socket on which stock ztunnels (Istio's) connect as they do to istio-cni; set their INPOD_UDS to it. The agent
    /// then installs rules only: ztunnels open the listeners in the pods, and a pod that none serves is closed. Proxies on
    /// `--socket` get listeners too, where no ztunnel holds the ports.
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", value_name = "PATH")]
    ztunnel_uds_address: Option<PathBuf>,

    /// What to log.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter(EnvFilter::new(&args.log)).with_ansi(false).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent cannot run");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let config = Config {
            socket: args.socket,
            pods: args.pods,
            proxy_uid: args.proxy_uid,
            ztunnel_uds: args.ztunnel_uds_address,
        };
        tokio::select! {
            result = agent::run(config) => Ok(result?),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}
