//! `ztunnel-redirect`: the node agent, the only process with capabilities.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect::agent::{self, Config, Role};
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

    #[command(flatten)]
    source: Source,

    /// The only user that may connect.
    #[arg(long, env = "REDIRECT_PROXY_UID", value_name = "UID", default_value_t = 1337)]
    proxy_uid: u32,

    /// Unix socket on which stock ztunnels (Istio's) connect as they do to istio-cni; set their INPOD_UDS to it. The agent
    /// then installs rules only: ztunnels open the listeners in the pods, and a pod that none serves is closed. Proxies on
    /// `--socket` get listeners too, where no ztunnel holds the ports.
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", value_name = "PATH", conflicts_with = "inpod_uds")]
    ztunnel_uds_address: Option<PathBuf>,

    /// What to log.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Where the pods come from: exactly one.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// JSON file of the pods to capture; followed when it changes.
    #[arg(long, env = "REDIRECT_PODS", value_name = "FILE")]
    pods: Option<PathBuf>,

    /// Unix socket of istio-cni, to which the agent connects as a ztunnel does once a proxy is there. istio-cni then tells
    /// of the pods and writes the rules; the agent opens the sockets.
    #[arg(long, env = "INPOD_UDS", value_name = "PATH")]
    inpod_uds: Option<PathBuf>,
}

impl Args {
    fn config(self) -> Config {
        let role = match (self.source.pods, self.source.inpod_uds, self.ztunnel_uds_address) {
            (Some(pods), _, None) => Role::Capture { pods },
            (Some(pods), _, Some(socket)) => Role::DriveZtunnels { pods, socket },
            (None, socket, _) => {
                let socket = socket.expect("invariant: the parser demands one of the sources");
                Role::BeneathIstioCni { socket }
            }
        };
        Config { socket: self.socket, proxy_uid: self.proxy_uid, role }
    }
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
        let config = args.config();
        tokio::select! {
            result = agent::run(config) => Ok(result?),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}
