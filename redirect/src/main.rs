//! `ztunnel-redirect`: the node agent, the only process with capabilities.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect::agent::{self, Config, Role};
use redirect::cni::{self, Enrolled, install};
use redirect::locate::Locator;
use redirect::netns::Netns;
use redirect::{source, status, succession, uninstall};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// A sandbox is answered by then; less than the plugin waits.
const ADDED: Duration = Duration::from_secs(20);

/// Captures the TCP of a node's pods and hands it to the proxy. Rules stay when it ends.
#[derive(Debug, Parser)]
#[command(name = "ztunnel-redirect", version, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Task>,

    #[command(flatten)]
    node: Node,

    /// Serve /pods, /metrics, /healthz/live and /healthz/ready over HTTP here.
    #[arg(long, env = "REDIRECT_STATUS_LISTEN", value_name = "ADDR:PORT")]
    status_listen: Option<SocketAddr>,

    #[command(flatten)]
    source: Option<Source>,

    #[command(flatten)]
    cni: Cni,

    /// This node, as Kubernetes calls it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    /// The only user that may connect.
    #[arg(long, env = "REDIRECT_PROXY_UID", value_name = "UID", default_value_t = 1337)]
    proxy_uid: u32,

    /// Unix socket on which stock ztunnels (Istio's) connect as they do to istio-cni; set their INPOD_UDS to it. The agent
    /// then installs rules only: ztunnels open the listeners in the pods, and a pod that none serves is closed. Proxies on
    /// `--socket` get listeners too, where no ztunnel holds the ports.
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", value_name = "PATH", conflicts_with = "inpod_uds")]
    ztunnel_uds_address: Option<PathBuf>,

    /// How often the rules of each pod are audited, besides at once when the kernel tells of a change: 1s to 5m.
    #[arg(long, env = "REDIRECT_AUDIT_PERIOD", value_name = "TIME", default_value = "5s", value_parser = period)]
    audit_period: Duration,

    /// The user that runs the kubelet: what it opens from this node to a captured pod is a probe, and passes.
    #[arg(long, env = "REDIRECT_PROBE_UID", value_name = "UID", default_value_t = 0)]
    probe_uid: u32,

    /// What to log.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

/// What it does instead of serving.
#[derive(Debug, Subcommand)]
enum Task {
    /// Takes everything out of the node that agents left there: rules, the CNI plugin and its entry, files. Says what it
    /// removed. The agent must have ended.
    Uninstall {
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        cni: Box<Cni>,
        /// A folder to remove in the end, if nothing else is in it; more than once for more.
        #[arg(long, value_name = "DIR")]
        remove_dir: Vec<PathBuf>,
    },
    /// Does nothing until it is told to end: what a pod runs whose work an init container has done.
    Rest,
}

#[derive(Debug, clap::Args)]
struct Node {
    /// Unix socket on which proxies connect.
    #[arg(
        long,
        env = "REDIRECT_SOCKET",
        value_name = "PATH",
        default_value = "/var/run/ztunnel/redirect.sock"
    )]
    socket: PathBuf,

    /// The node's own network namespace, into which the agent goes at once: /proc/1/ns/net where it shares the node's
    /// processes and not its network. Its status is served where it was before.
    #[arg(long, env = "REDIRECT_HOST_NETNS", value_name = "PATH")]
    host_netns: Option<PathBuf>,

    /// The node's /proc, where namespaces of pods are found that were there before the agent.
    #[arg(long, env = "REDIRECT_HOST_PROC", value_name = "DIR", default_value = "/proc")]
    host_proc: PathBuf,

    /// Where the container runtime leaves the pods' network namespaces.
    #[arg(long, env = "REDIRECT_NETNS_DIR", value_name = "DIR", default_value = "/var/run/netns")]
    netns_dir: PathBuf,
}

impl Node {
    /// Goes where the node's own rules are. Before there is another thread.
    fn enter(&self) -> Result<(), redirect::netns::Error> {
        self.host_netns.as_deref().map_or(Ok(()), |path| Netns::open(path)?.enter())
    }
}

/// The CNI plugin. All paths must be the same for the node and for this agent, but for the two folders and the plugin.
#[derive(Debug, clap::Args)]
struct Cni {
    /// The node's folder of CNI plugins, into which the plugin is installed.
    #[arg(long, env = "CNI_BIN_DIR", value_name = "DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,

    /// The node's folder of CNI configurations; the one that the container runtime takes gets the plugin's entry.
    #[arg(long, env = "CNI_CONF_DIR", value_name = "DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,

    /// The plugin to install [default: ztunnel-cni beside this program].
    #[arg(long, env = "CNI_PLUGIN", value_name = "FILE")]
    cni_plugin: Option<PathBuf>,

    /// Unix socket on which the plugin asks; served where it is named or the plugin is installed
    /// [default: /var/run/ztunnel/cni.sock].
    #[arg(long, env = "CNI_SOCKET", value_name = "PATH")]
    cni_socket: Option<PathBuf>,

    /// File of the enrolled namespaces, by which the plugin decides while the agent is away.
    #[arg(long, env = "ENROLLED", value_name = "FILE", default_value = cni::ENROLLED)]
    enrolled: PathBuf,

    /// Put a copy of the node's CNI configuration with the plugin's entry before all others (00-00-ztunnel.conflist), which
    /// counts too when another CNI has written its file anew at boot; or, with false, the entry into that file.
    #[arg(long, env = "CNI_OWN_LIST", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    cni_own_list: bool,

    /// Namespaces whose pods start even if that file cannot be read; the agent's own should be among them.
    #[arg(long, env = "CNI_EXEMPT", value_name = "NAMESPACE", value_delimiter = ',', default_value = cni::EXEMPT)]
    cni_exempt: Vec<String>,
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

    /// Follow the cluster whose pod this is, or that KUBECONFIG names: pods of this node that have the label
    /// istio.io/dataplane-mode=ambient, or whose namespace has it.
    #[arg(long, env = "REDIRECT_KUBERNETES", requires = "node_name")]
    kubernetes: bool,
}

impl Args {
    async fn config(self, status: Option<TcpListener>) -> Result<Config, Box<dyn std::error::Error>> {
        let Source { pods, inpod_uds, kubernetes } =
            self.source.expect("invariant: the parser demands one of the sources");
        // Of the other sources nobody decides about a sandbox, so the plugin goes by the enrolled namespaces.
        let (cni, placed) = self.cni.start()?.unzip();
        let role = match (pods, inpod_uds, self.ztunnel_uds_address) {
            (Some(pods), _, None) => Role::Capture { pods },
            (Some(pods), _, Some(socket)) => Role::DriveZtunnels { pods, socket },
            (None, Some(socket), _) => Role::BeneathIstioCni { socket },
            // As the environment may have it: REDIRECT_KUBERNETES=false.
            (None, None, _) if !kubernetes => {
                return Err("no source of pods: --pods, --inpod-uds or --kubernetes".into());
            }
            (None, None, socket) => {
                let source = source::kube::Config {
                    api: reflector::infer().await?,
                    timing: reflector::Timing::default(),
                    node: self.node_name.expect("invariant: the parser demands it with this source"),
                    locator: Locator { proc: self.node.host_proc, netns: self.node.netns_dir },
                    cni,
                };
                Role::Kubernetes { source: Box::new(source), socket }
            }
        };
        Ok(Config {
            socket: self.node.socket,
            proxy_uid: self.proxy_uid,
            role,
            audit_period: self.audit_period,
            probe_uid: self.probe_uid,
            status,
            placed,
        })
    }
}

impl Cni {
    /// Begins to serve the plugin, where it is wanted.
    fn start(self) -> Result<Option<Started>, Box<dyn std::error::Error>> {
        let (named, enrolled) = (self.cni_socket.clone(), self.enrolled.clone());
        let install = self.install()?;
        let socket = named.or_else(|| install.as_ref().map(|install| install.socket.clone()));
        let Some(socket) = socket else { return Ok(None) };
        let (requests, placed) = cni::start(cni::Config { socket, install })?;
        let cni = source::kube::Cni { requests, enrolled: Enrolled::at(enrolled), deadline: ADDED };
        Ok(Some((cni, placed)))
    }

    fn install(self) -> Result<Option<install::Config>, std::io::Error> {
        let (Some(bin_dir), Some(conf_dir)) = (self.cni_bin_dir, self.cni_conf_dir) else { return Ok(None) };
        let plugin = match self.cni_plugin {
            Some(plugin) => plugin,
            None => std::env::current_exe()?.with_file_name("ztunnel-cni"),
        };
        let socket = self.cni_socket.unwrap_or_else(|| cni::SOCKET.into());
        let (enrolled, exempt, own_list) = (self.enrolled, self.cni_exempt, self.cni_own_list);
        Ok(Some(install::Config { bin_dir, conf_dir, plugin, socket, enrolled, exempt, own_list }))
    }
}

/// What the plugin asks, and whether it is in its place.
type Started = (source::kube::Cni, watch::Receiver<bool>);

/// Whole seconds or minutes.
fn period(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        _ => None,
    };
    let whole = seconds.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
    match whole {
        Some(whole) if (1..=300).contains(&whole) => Ok(Duration::from_secs(whole)),
        _ => Err("must be from 1s to 5m, as in 5s".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // What it would tell of each failed request, the source tells once.
    let filter = EnvFilter::new(format!("kube_client=off,{}", args.log));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let done = match args.command {
        Some(Task::Uninstall { node, cni, remove_dir }) => clean_up(node, *cni, remove_dir),
        Some(Task::Rest) => rest(),
        None => run(args),
    };
    match done {
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
    let stands_by = std::env::var_os(succession::STANDBY).is_some();
    // Where it began, for the one that begins anew.
    let home = Netns::open(Path::new("/proc/thread-self/ns/net"))?;
    let status = args.status_listen.map(status::listen).transpose()?;
    args.node.enter()?;
    let socket = args.node.socket.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async {
        if stands_by {
            let status = status.as_ref().map(TcpListener::try_clone).transpose()?;
            tokio::select! {
                served = serve(status) => served?,
                standing = succession::stand_by(&socket) => standing?,
            }
        }
        succession::take_over(&socket).await?;
        let config = args.config(status).await?;
        Ok(Some(agent::run(config).await?))
    };
    match runtime.block_on(until_told(work))? {
        None => Ok(()),
        Some(_succeeded) => {
            home.enter()?;
            let mut anew = Command::new(std::env::current_exe()?);
            Err(anew.args(std::env::args_os().skip(1)).env(succession::STANDBY, "true").exec().into())
        }
    }
}

/// Says that there is nothing to wait for, if anybody asks.
async fn serve(status: Option<TcpListener>) -> std::io::Result<()> {
    match status {
        Some(listener) => status::serve_done(listener).await,
        None => std::future::pending().await,
    }
}

/// Ends with the work, or by SIGTERM or SIGINT.
async fn until_told<T>(
    work: impl Future<Output = Result<Option<T>, Box<dyn std::error::Error>>>,
) -> Result<Option<T>, Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = work => result,
        _ = terminate.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
    }
}

fn clean_up(node: Node, cni: Cni, folders: Vec<PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    node.enter()?;
    let Node { socket, host_proc, netns_dir, .. } = node;
    let config =
        uninstall::Config { socket, proc: host_proc, netns: netns_dir, cni: cni.install()?, folders };
    for done in uninstall::uninstall(&config)? {
        println!("{done}");
    }
    Ok(())
}

fn rest() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_told(std::future::pending::<Result<Option<()>, _>>()))?;
    Ok(())
}
