//! `ztunnel-controller`: the mesh's xDS server and certificate authority as a process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use control_plane::ca::authenticate::{AnyOf, Authenticate, Nodes, Residents};
use control_plane::ca::server::Access;
use control_plane::ca::{Ca, Files, Folders};
use control_plane::mesh::{Planned, View};
use control_plane::object::Name;
use control_plane::source::kube::{
    Api, Candidate, Cluster, Error as ClusterError, Reporter, Reviewer, RootPublisher, SecretError,
    SigningSecret, Terms, Timing, Verdicts, Wanted,
};
use control_plane::{index, server, status, xds};
use nix::errno::Errno;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use ztunnel_model::Identity;

/// Name of the Lease of those who may lead.
const LEASE: &str = "ztunnel-controller";

/// Serves the mesh over TLS: delta xDS made of a Kubernetes cluster or manifests, and Istio's CreateCertificate.
#[derive(Debug, Parser)]
#[command(name = "ztunnel-controller", version)]
struct Args {
    /// Address and port to serve on.
    #[arg(long, env = "CONTROLLER_LISTEN", value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Folder of the signing material: tls.crt, tls.key, ca.crt (and extra-roots.pem), as cert-manager's secrets hold
    /// it. A root is made on the first start when there is none. Read again when it changes.
    #[arg(
        long,
        env = "CONTROLLER_CA_DIR",
        value_name = "DIR",
        required_unless_present = "ca_secret",
        conflicts_with = "ca_secret"
    )]
    ca_dir: Option<PathBuf>,

    /// With --kubernetes, in place of --ca-dir: the Secret of the signing material, in the same form. All replicas sign with
    /// it. A root is made when there is none. Read again when it changes.
    #[arg(
        long,
        env = "CONTROLLER_CA_SECRET",
        value_name = "NAMESPACE/NAME",
        value_parser = namespaced,
        requires = "kubernetes",
        requires = "ca_state_dir"
    )]
    ca_secret: Option<Name>,

    /// Folder for what the CA writes: root-cert.pem for the clients, ca-crl.pem for the proxies, its register, and what the
    /// Secret says: for this process alone, best in memory. [default: the folder of the signing material]
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

    /// With --kubernetes: take part in the election of the one controller that writes into the cluster: the root certificates
    /// for all namespaces, and the status and events of policies. Without it nothing but the Secret of the CA is ever written. Needs POD_NAMESPACE and POD_NAME.
    #[arg(
        long,
        env = "CONTROLLER_LEADER_ELECT",
        requires = "kubernetes",
        requires = "pod_namespace",
        requires = "pod_name"
    )]
    leader_elect: bool,

    /// Namespace of this controller's own pod: there is the Lease.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pod_namespace: Option<String>,

    /// Name of this controller's own pod, by which it is known in the election.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,

    /// Name of the ConfigMap in every namespace that holds the root certificates as root-cert.pem.
    #[arg(
        long,
        env = "CONTROLLER_ROOT_CONFIGMAP",
        value_name = "NAME",
        default_value = "istio-ca-root-cert"
    )]
    root_configmap: String,

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

    /// JSON file of the nodes and their tokens, for nodes that no cluster vouches for. `identities` that a node may ask for
    /// beside those of its meshed pods are for a mesh without manifests. Read again when it changes.
    #[arg(long, env = "CONTROLLER_NODES", value_name = "FILE", required_unless_present = "kubernetes")]
    nodes: Option<PathBuf>,

    /// With --kubernetes: the audience that a proxy's service account token must have.
    #[arg(long, env = "CONTROLLER_TOKEN_AUDIENCE", value_name = "NAME", default_value = "istio-ca")]
    token_audience: String,

    /// With --kubernetes: the service accounts that proxies run as. Whose token is of another one is refused.
    #[arg(
        long,
        env = "CONTROLLER_PROXY_ACCOUNTS",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        default_value = "ztunnel-system/ztunnel",
        value_parser = namespaced
    )]
    proxy_accounts: Vec<Name>,

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
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Secret(#[from] SecretError),
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
    let nodes = args.nodes.as_deref().map(Nodes::open).transpose()?.map(Arc::new);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(serve(args, nodes))
}

async fn serve(args: Args, nodes: Option<Arc<Nodes>>) -> Result<(), Error> {
    let listener = bind(args.listen).await?;
    let address = listener.local_addr().unwrap_or(args.listen);
    let status_listener = match args.status_listen {
        Some(address) => Some(StatusListener::bind(address).await?),
        None => None,
    };
    let stop = stop()?;
    let stopped = || stop.clone().cancelled_owned();
    let api = if args.kubernetes { Some(Api::infer().await?) } else { None };
    let ca = tokio::select! {
        ca = open_ca(&args, api.as_ref(), status_listener.as_ref()) => ca?,
        () = stop.cancelled() => return Ok(()),
    };
    let config = server::Config { hosts: args.hosts, max_ttl: args.max_ttl };
    let mut knowing: Vec<Arc<dyn Authenticate>> = Vec::new();
    if let Some(nodes) = &nodes {
        knowing.push(nodes.clone());
    }
    if let Some(api) = &api {
        let reviewer = Reviewer::new(api.clone(), args.token_audience, args.proxy_accounts);
        knowing.push(Arc::new(reviewer));
    }
    let authenticate = Arc::new(AnyOf(knowing));
    let planned = (args.kubernetes || !args.manifests.is_empty()).then(|| {
        let index = index::Config {
            trust_domain: args.trust_domain,
            cluster_id: args.cluster_id,
            root_namespace: args.root_namespace,
            await_redirection: args.kubernetes,
            ..index::Config::default()
        };
        let (writer, store) = xds::store();
        let service =
            xds::service(store, authenticate.clone(), Arc::new(xds::Everything), xds::Limits::default());
        let (planned, mesh) = Planned::new(index, writer);
        (planned, mesh, service)
    });
    // Before the manifests are read: who asks whether this is ready is answered that it is not.
    if let Some(StatusListener { listener, .. }) = status_listener {
        let discovery = planned
            .as_ref()
            .map(|(_, mesh, service)| status::Discovery { mesh: mesh.clone(), clients: service.clients() });
        tokio::spawn(status::serve(listener, status::Sources { ca: ca.clone(), discovery }, stopped()));
    }
    let duties = match (&planned, &api) {
        (Some((_, mesh, _)), Some(api)) if args.leader_elect => {
            let me = (args.pod_namespace.unwrap_or_default(), args.pod_name.unwrap_or_default());
            Some(Duties::new(api, me, args.root_configmap, mesh.clone(), ca.clone()))
        }
        _ => None,
    };
    let mut leading = None;
    let (residents, discovery): (Arc<dyn Residents>, _) = match planned {
        None => (Arc::new(Either(None, nodes)), None),
        Some((planned, mesh, service)) => {
            let cluster = api.as_ref().map(|api| Cluster::open(api, Timing::default()));
            let started = tokio::select! {
                started = planned.start_with(args.manifests.clone(), cluster) => started,
                () = stop.cancelled() => return Ok(()),
            };
            tokio::spawn(started.follow(ca.crl()));
            leading = duties.map(|duties| tokio::spawn(duties.run(stop.clone())));
            (Arc::new(Either(Some(mesh), nodes)), Some(service))
        }
    };
    let access = Access { authenticate, residents };
    let serving = tokio::spawn(server::serve(listener, ca, access, discovery, config, stopped()));
    tracing::info!(%address, kubernetes = args.kubernetes, manifests = args.manifests.len(), "ready");
    serving.await.expect("invariant: the server is neither aborted nor does it panic")?;
    if let Some(leading) = leading {
        // The lease is released, or left to run out.
        let _ = leading.await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// What one controller does for all of them.
struct Duties {
    candidate: Candidate,
    publisher: Mutex<RootPublisher>,
    reporter: Mutex<Reporter>,
}

impl Duties {
    fn new(
        api: &Api,
        (namespace, pod): (String, String),
        configmap: String,
        mesh: View,
        ca: Arc<Ca>,
    ) -> Self {
        let lease = Name::new(namespace.as_str(), LEASE);
        let candidate = Candidate::new(api.clone(), lease, pod.clone(), Terms::default());
        let (policies, namespaces) = (mesh.clone(), mesh.clone());
        let verdicts = Verdicts { changes: mesh.changes(), all: Box::new(move || policies.verdicts()) };
        let reporter = Mutex::new(Reporter::new(api.clone(), pod, verdicts));
        let wanted = Wanted {
            changes: [mesh.changes(), ca.changes()],
            roots: Box::new(move || ca.authority().root()),
            namespaces: Box::new(move || namespaces.namespaces()),
        };
        let publisher = Mutex::new(RootPublisher::new(api.clone(), configmap, namespace, wanted));
        Self { candidate, publisher, reporter }
    }

    async fn run(self, stop: CancellationToken) {
        let Self { candidate, publisher, reporter } = self;
        let acts = || async {
            let (mut publisher, mut reporter) = (publisher.lock().await, reporter.lock().await);
            tokio::join!(publisher.run(), reporter.run());
        };
        candidate.run(stop, acts).await;
    }
}

/// With the material of its folder, or of its Secret, which is waited for.
async fn open_ca(args: &Args, api: Option<&Api>, status: Option<&StatusListener>) -> Result<Arc<Ca>, Error> {
    let (material, state) = match (&args.ca_secret, api) {
        (Some(at), Some(api)) => {
            let state = args.ca_state_dir.clone().unwrap_or_default();
            let material = state.join("secret");
            let mut secret = SigningSecret::new(api.clone(), at.clone(), material.clone())?;
            let waiting = status.map(|status| status.wait("the CA's Secret is not read yet")).transpose()?;
            secret.complete().await;
            drop(waiting);
            tokio::spawn(secret.follow());
            (material, state)
        }
        _ => {
            let material = args.ca_dir.clone().unwrap_or_default();
            (material.clone(), args.ca_state_dir.clone().unwrap_or(material))
        }
    };
    let revoked = args.revoked.clone().unwrap_or_else(|| state.join("revoked.yaml"));
    Ok(Arc::new(Ca::open(Files { folders: Folders { material, state }, revoked })?))
}

/// An identity lives on a node if the mesh or the nodes file says so.
struct Either(Option<View>, Option<Arc<Nodes>>);

impl Residents for Either {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        let Self(mesh, nodes) = self;
        mesh.as_ref().is_some_and(|mesh| mesh.may_hold(node, identity))
            || nodes.as_ref().is_some_and(|nodes| nodes.may_hold(node, identity))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.0.as_ref().map(View::changes)
    }
}

/// Twice the same one: for the time before there is something to serve, and for the time from then on.
struct StatusListener {
    address: SocketAddr,
    listener: TcpListener,
}

impl StatusListener {
    async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let listener = bind(address).await?;
        let status_address = listener.local_addr().unwrap_or(address);
        tracing::info!(%status_address, "serving the status");
        Ok(Self { address, listener })
    }

    /// Serves that nothing is served yet, until what this gives is dropped.
    fn wait(&self, reason: &'static str) -> Result<JoinSet<()>, Error> {
        let failed = |source| Error::Listen { address: self.address, source };
        let twin = self.listener.as_fd().try_clone_to_owned().map_err(failed)?;
        let twin = TcpListener::from_std(twin.into()).map_err(failed)?;
        let mut waiting = JoinSet::new();
        waiting.spawn(async move { drop(status::wait(twin, reason).await) });
        Ok(waiting)
    }
}

/// `[::]` means every address, also where the kernel has no IPv6.
async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| Error::Listen { address, source })
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

fn namespaced(text: &str) -> Result<Name, String> {
    let is_label = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_label(name) => Ok(Name::new(namespace, name)),
        _ => Err(format!("\"{text}\" is not NAMESPACE/NAME such as ztunnel-system/ztunnel")),
    }
}
