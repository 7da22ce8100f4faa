//! `ztunnel-controller`: the mesh's xDS server and certificate authority as a process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use control_plane::ca::authenticate::{Nodes, Residents};
use control_plane::ca::server::Access;
use control_plane::ca::{Ca, Files, Folders};
use control_plane::mesh::{Planned, View};
use control_plane::source::kube::{self, Cluster};
use control_plane::{index, server, status, xds};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use ztunnel_model::Identity;

/// Serves the mesh over TLS: delta xDS made of a Kubernetes cluster or manifests, and Istio's CreateCertificate.
#[derive(Debug, Parser)]
#[command(name = "ztunnel-controller", version)]
struct Args {
    /// Address and port to serve on.
    #[arg(long, env = "CONTROLLER_LISTEN", value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Folder of the signing material: tls.crt, tls.key, ca.crt (and extra-roots.pem), as cert-manager's secrets hold
    /// it. A root is made on the first start when there is none. Read again when it changes.
    #[arg(long, env = "CONTROLLER_CA_DIR", value_name = "DIR")]
    ca_dir: PathBuf,

    /// Folder for what the CA writes: root-cert.pem for the clients, ca-crl.pem for the proxies, its register. [default:
    /// the folder of the signing material]
    #[arg(long, env = "CONTROLLER_CA_STATE_DIR", value_name = "DIR")]
    ca_state_dir: Option<PathBuf>,

    /// YAML or JSON file of what is revoked: lists `serials` and `identities`. Read again when it changes. [default:
    /// revoked.yaml in the state folder]
    #[arg(long, env = "CONTROLLER_REVOKED", value_name = "FILE")]
    revoked: Option<PathBuf>,

    /// Follow a Kubernetes cluster through its API: the one whose pod this is, or the one of KUBECONFIG. Of an object that
    /// stands in a folder of manifests too, the folder's counts.
    #[arg(long, env = "CONTROLLER_KUBERNETES")]
    kubernetes: bool,

    /// Folder of Kubernetes manifests; may be given several times: of an object that stands in more than one, the last
    /// folder's counts. Followed while it changes. Without one and without --kubernetes there is no xDS.
    #[arg(long, env = "CONTROLLER_MANIFESTS", value_name = "DIR", value_delimiter = ',')]
    manifests: Vec<PathBuf>,

    /// SPIFFE trust domain of the mesh.
    #[arg(long, env = "CONTROLLER_TRUST_DOMAIN", value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,

    /// Name of the cluster, the first part of workload uids.
    #[arg(long, env = "CONTROLLER_CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes")]
    cluster_id: String,

    /// Namespace whose policies without a selector are for the whole mesh.
    #[arg(long, env = "CONTROLLER_ROOT_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,

    /// Address and port for /metrics (Prometheus), /healthz/live and /healthz/ready, and /policies, /mistakes, /clients and
    /// /certificates (JSON): HTTP, unprotected. None if it is not given.
    #[arg(long, env = "CONTROLLER_STATUS_LISTEN", value_name = "ADDR:PORT")]
    status_listen: Option<SocketAddr>,

    /// JSON file of the nodes and their tokens. `identities` that a node may ask for beside those of its meshed pods are
    /// for a mesh without manifests. Read again when it changes.
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
    Ca(#[from] control_plane::ca::running::Error),
    #[error(transparent)]
    Nodes(#[from] control_plane::ca::authenticate::Error),
    #[error(transparent)]
    Cluster(#[from] kube::Error),
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
    // What it would tell of each failed request, the source tells once.
    let filter = format!("kube_client=off,{}", args.log);
    let filter =
        EnvFilter::try_new(filter).map_err(|source| Error::Log { filter: args.log.clone(), source })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let state = args.ca_state_dir.clone().unwrap_or_else(|| args.ca_dir.clone());
    let revoked = args.revoked.clone().unwrap_or_else(|| state.join("revoked.yaml"));
    let ca =
        Arc::new(Ca::open(Files { folders: Folders { material: args.ca_dir.clone(), state }, revoked })?);
    let nodes = Arc::new(Nodes::open(&args.nodes)?);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(serve(args, ca, nodes))
}

async fn serve(args: Args, ca: Arc<Ca>, nodes: Arc<Nodes>) -> Result<(), Error> {
    let listener = bind(args.listen).await?;
    let address = listener.local_addr().unwrap_or(args.listen);
    let stop = stop()?;
    let stopped = || stop.clone().cancelled_owned();
    let config = server::Config { hosts: args.hosts, max_ttl: args.max_ttl };
    let planned = (args.kubernetes || !args.manifests.is_empty()).then(|| {
        let index = index::Config {
            trust_domain: args.trust_domain,
            cluster_id: args.cluster_id,
            root_namespace: args.root_namespace,
            ..index::Config::default()
        };
        let (writer, store) = xds::store();
        let service = xds::service(store, nodes.clone(), Arc::new(xds::Everything), xds::Limits::default());
        let (planned, mesh) = Planned::new(index, writer);
        (planned, mesh, service)
    });
    // Before the manifests are read: who asks whether this is ready is answered that it is not.
    if let Some(address) = args.status_listen {
        let discovery = planned
            .as_ref()
            .map(|(_, mesh, service)| status::Discovery { mesh: mesh.clone(), clients: service.clients() });
        let listener = bind(address).await?;
        let status_address = listener.local_addr().unwrap_or(address);
        tokio::spawn(status::serve(listener, status::Sources { ca: ca.clone(), discovery }, stopped()));
        tracing::info!(%status_address, "serving the status");
    }
    let (access, discovery) = match planned {
        None => (Access::of(nodes), None),
        Some((planned, mesh, service)) => {
            let cluster = if args.kubernetes { Some(Cluster::infer().await?) } else { None };
            let started = tokio::select! {
                started = planned.start_with(args.manifests.clone(), cluster) => started,
                () = stop.cancelled() => return Ok(()),
            };
            tokio::spawn(started.follow(ca.crl()));
            let residents = Arc::new(Either(mesh, nodes.clone()));
            (Access { authenticate: nodes, residents }, Some(service))
        }
    };
    let serving = tokio::spawn(server::serve(listener, ca, access, discovery, config, stopped()));
    tracing::info!(%address, ca_dir = %args.ca_dir.display(), kubernetes = args.kubernetes, manifests = args.manifests.len(), "ready");
    serving.await.expect("invariant: the server is neither aborted nor does it panic")?;
    tracing::info!("stopped");
    Ok(())
}

/// An identity lives on a node if the mesh or the nodes file says so.
struct Either(View, Arc<Nodes>);

impl Residents for Either {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        self.0.may_hold(node, identity) || self.1.may_hold(node, identity)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Cancelled by SIGTERM or SIGINT.
fn stop() -> Result<CancellationToken, Error> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stopping.cancel();
    });
    Ok(stop)
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
