//! Puts the process together and takes it apart. The only place that sees the whole configuration.
//!
//! The main thread is the control thread: certificates, pods, state, admin, metrics. The workers carry connections.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use ztunnel_model::Service;
use ztunnel_model::codec::static_config::{
    EndpointView, PolicyView, ServiceView, StaticConfig, WorkloadView,
};

use crate::admin::{self, Dump, Readiness};
use crate::config::{self, Config, StaticSource};
use crate::hbone;
use crate::identity;
use crate::io::privileges;
use crate::io::worker::Workers;
use crate::net::socket::{Keepalive, Options};
use crate::pod::manager::Local;
use crate::pod::{self, View};
use crate::proxy::Shared;
use crate::shutdown::{self, Drain};
use crate::state::{self, Reader, feed};
use crate::telemetry::{self, Log, Metrics};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    #[error("cannot start the control runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    Workers(#[from] crate::io::worker::Error),
    #[error(transparent)]
    Feed(#[from] feed::Error),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error("CA_ADDRESS \"{0}\" is not a URI")]
    CaAddress(String),
    #[error("CA_ADDRESS is empty: without a CA no pod has a certificate")]
    NoCa,
}

/// Runs until the drain is over.
pub fn run() -> Result<(), Error> {
    let config = config::load()?;
    // Before any thread is started: what this one gives up, only its later children lack too.
    let privileges = privileges::drop_all();
    let log = telemetry::init(&config.telemetry.rust_log, config.telemetry.json)?;
    match privileges {
        Err(error) if config.allow_privileges => tracing::warn!(%error, "running with privileges, as told"),
        result => result?,
    }
    privileges::raise_open_files();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %json!(config), "starting");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    LocalSet::new().block_on(&runtime, control(config, log))
}

async fn control(config: Config, log: Log) -> Result<(), Error> {
    let drain = Drain::new(config.drain.deadline);
    let signals = shutdown::signals(drain.clone()).map_err(Error::Signals)?;
    tokio::spawn(signals);
    let metrics = Arc::new(Metrics::new(&config.telemetry.build_tag));
    metrics.count_dropped_lines(log.dropped.clone());
    let readiness = Readiness::default();
    let (state_pending, pods_pending) =
        (readiness.register("state manager"), readiness.register("workload proxy manager"));
    let listeners = admin::Listeners::bind(&config.admin).await?;

    let (reader, static_config) = feed_state(&config)?;
    drop(state_pending);
    let stop = CancellationToken::new();
    let (manager, identities) = identity::Manager::new(identity_config(&config)?);
    tokio::task::spawn_local(manager.run(stop.clone()));

    let workers = Arc::new(Workers::start(config.workers, |_| Local::default())?);
    let shared = Arc::new(shared(&config, reader.clone(), metrics.clone(), drain.clone()));
    let (pods, view) = pod::Manager::new(
        workers.clone(),
        shared,
        identities.clone(),
        config.node.trust_domain.clone(),
        config.redirect_socket.clone(),
        move || drop(pods_pending),
    );
    let pods = tokio::task::spawn_local(pods.run());

    let dump = Arc::new(dump(&config, reader, static_config, identities, view));
    let sources =
        admin::Sources { dump, metrics, levels: log.levels.clone(), readiness, drain: drain.clone() };
    let serving = tokio::task::spawn_local(listeners.serve(sources, stop.clone()));

    let outcome = drain.drained().await;
    tracing::info!(?outcome, "stopping");
    pods.abort();
    let _ = pods.await;
    if let Ok(workers) = Arc::try_unwrap(workers) {
        workers.stop();
    }
    stop.cancel();
    let _ = serving.await;
    Ok(())
}

type Applied = Arc<arc_swap::ArcSwap<StaticConfig>>;

/// The first state; a file is followed from then on.
fn feed_state(config: &Config) -> Result<(Reader, Applied), Error> {
    let (mut writer, reader) = state::new();
    let applied: Applied = Arc::default();
    match &config.static_config {
        None => tracing::warn!("no static configuration (LOCAL_XDS_PATH, LOCAL_XDS): no workload is known"),
        Some(StaticSource::Inline(text)) => {
            applied.store(Arc::new(feed::apply_text(&mut writer, text, "LOCAL_XDS")?));
        }
        Some(StaticSource::Path(path)) => {
            let (watched, first) = feed::Watched::start(&mut writer, Path::new(path))?;
            applied.store(Arc::new(first));
            let shown = applied.clone();
            tokio::task::spawn_local(
                watched.follow(writer, move |config| shown.store(Arc::new(config.clone()))),
            );
        }
    }
    Ok((reader, applied))
}

fn shared(config: &Config, reader: Reader, metrics: Arc<Metrics>, drain: Drain) -> Shared {
    Shared {
        reader,
        metrics,
        node: config.node.name.clone(),
        hbone: hbone::Settings {
            stream_window: config.hbone.stream_window,
            connection_window: config.hbone.connection_window,
            frame_size: config.hbone.frame_size,
            max_streams: config.hbone.max_streams as usize,
            unused_release: config.hbone.unused_release,
        },
        sockets: Options {
            keepalive: config.sockets.keepalive.as_ref().map(|keepalive| Keepalive {
                time: keepalive.time,
                interval: keepalive.interval,
                retries: keepalive.retries,
            }),
            user_timeout: config.sockets.user_timeout,
        },
        original_source: config.sockets.original_source,
        response_baggage: config.response_baggage,
        policy_at_info: config.telemetry.policy_info,
        drain,
        stocks: crate::net::stock::Budget::default(),
    }
}

fn identity_config(config: &Config) -> Result<identity::Config, Error> {
    let written = &config.identity;
    let address = written.ca_address.clone().ok_or(Error::NoCa)?;
    Ok(identity::Config {
        ca_address: address.parse().map_err(|_| Error::CaAddress(address))?,
        ca_root: match &written.ca_root {
            config::RootSource::File(path) => identity::RootSource::Path(path.clone()),
            config::RootSource::System => identity::RootSource::System,
            config::RootSource::Inline(pem) => identity::RootSource::Inline(pem.clone()),
        },
        alt_hostname: written.alt_hostname.clone(),
        headers: written
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .collect(),
        token: written.token.as_ref().map(|token| match token {
            config::TokenSource::File(path) => identity::TokenSource::Path(path.clone()),
            config::TokenSource::Literal(secret) => {
                identity::TokenSource::Literal(secret.expose().to_owned())
            }
        }),
        cluster_id: written.cluster_id.clone(),
        secret_ttl: written.secret_ttl,
    })
}

/// The keys of interop.md section 11.5.
fn dump(config: &Config, reader: Reader, applied: Applied, identities: identity::Handle, view: View) -> Dump {
    let (workloads, services, policies, staged) = (reader.clone(), reader.clone(), reader.clone(), reader);
    let shown = json!(config);
    Dump::new()
        .part("workloads", move || {
            workloads.snapshot().workloads().map(|workload| json!(WorkloadView::from(&**workload))).collect()
        })
        .part("services", move || {
            let snapshot = services.snapshot();
            let view = |service: &Arc<Service>| {
                ServiceView::new(service, snapshot.endpoints(&service.key).iter().map(endpoint_view))
            };
            snapshot.services().map(|service| json!(view(service))).collect()
        })
        .part("policies", move || {
            policies.snapshot().policies().map(|policy| json!(PolicyView::from(&**policy))).collect()
        })
        .part("stagedServices", move || staged_services(&staged))
        .part("staticConfig", move || static_dump(&applied.load()))
        .part("version", admin::version)
        .part("config", move || shown.clone())
        .part("certificates", move || json!(identities.certificates()))
        .part("workloadState", move || view.dump())
}

fn staged_services(reader: &Reader) -> Value {
    let snapshot = reader.snapshot();
    let staged = snapshot.staged().map(|(key, endpoints)| {
        let endpoints: BTreeMap<_, _> = endpoints.iter().map(endpoint_view).collect();
        (key.to_string(), json!(endpoints))
    });
    Value::Object(staged.collect())
}

fn endpoint_view(endpoint: &state::Endpoint) -> (String, EndpointView) {
    let uid = endpoint.workload.uid.to_string();
    (uid, EndpointView::new(&endpoint.workload, &endpoint.ports))
}

fn static_dump(config: &StaticConfig) -> Value {
    json!({
        "workloads": config.workloads.iter().map(WorkloadView::from).collect::<Vec<_>>(),
        "services": config.services.iter().map(|service| ServiceView::new(service, [])).collect::<Vec<_>>(),
        "policies": config.policies.iter().map(PolicyView::from).collect::<Vec<_>>(),
    })
}
