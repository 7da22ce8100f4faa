//! `ztunnel-controller`: the mesh's certificate authority as a process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use control_plane::ca::authenticate::Nodes;
use control_plane::ca::{Authority, server};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves the mesh's certificate authority (Istio's CreateCertificate) over TLS.
#[derive(Debug, Parser)]
#[command(name = "ztunnel-controller", version)]
struct Args {
    /// Address and port to serve on.
    #[arg(long, env = "CONTROLLER_LISTEN", value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Folder of the root: root-cert.pem for the clients, root-key.pem for nobody else. Made on the first start.
    #[arg(long, env = "CONTROLLER_CA_DIR", value_name = "DIR")]
    ca_dir: PathBuf,

    /// JSON file of the nodes, their tokens and the identities each may ask for. Read again when it changes.
    #[arg(long, env = "CONTROLLER_NODES", value_name = "FILE")]
    nodes: PathBuf,

    /// A name or address under which clients reach this server. May be given several times.
    #[arg(
        long = "host",
        env = "CONTROLLER_HOSTS",
        value_name = "NAME-OR-IP",
        value_delimiter = ',',
        required = true
    )]
    hosts: Vec<String>,

    /// The longest lifetime of a certificate: a number with s, m, h or d.
    #[arg(long, env = "CONTROLLER_MAX_TTL", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    max_ttl: Duration,

    /// What to log.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--log {filter}: {source}")]
    Log { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error(transparent)]
    Authority(#[from] control_plane::ca::authority::Error),
    #[error(transparent)]
    Nodes(#[from] control_plane::ca::authenticate::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot catch signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("no runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Server(#[from] server::Error),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel-controller: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Error> {
    let filter =
        EnvFilter::try_new(&args.log).map_err(|source| Error::Log { filter: args.log.clone(), source })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let authority = Authority::create_or_load(&args.ca_dir)?;
    let nodes = Nodes::open(&args.nodes)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .map_err(|source| Error::Listen { address: args.listen, source })?;
        let address = listener.local_addr().unwrap_or(args.listen);
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
        };
        tracing::info!(%address, ca_dir = %args.ca_dir.display(), hosts = args.hosts.join(","), "ready");
        let config = server::Config { hosts: args.hosts, max_ttl: args.max_ttl };
        server::serve(listener, authority, nodes, config, stop).await?;
        tracing::info!("stopped");
        Ok(())
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration such as 24h, 90m or 20s");
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit),
        _ => (text, 's'),
    };
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let seconds =
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)?;
    let year = 366 * 24 * 3600;
    if seconds == 0 || seconds > year {
        return Err(format!("\"{text}\" is not between a second and a year"));
    }
    Ok(Duration::from_secs(seconds))
}
