//! Puts the process together and takes it apart. The only place that sees the whole configuration.
//!
//! The main thread is the control thread: certificates, pods, state, admin, metrics. The workers carry connections.

mod alone;
mod dump;
mod feeds;
mod limits;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::json;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Readiness};
use crate::config::{self, Config};
use crate::identity;
use crate::io::load::Loads;
use crate::io::worker::Workers;
use crate::io::{backend, priority, privileges};
use crate::pod;
use crate::pod::manager::Local;
use crate::shutdown::{self, Drain};
use crate::state::feed;
use crate::telemetry::{self, CertificateFacts, Log, Metrics};
use crate::tls::revocation::Revocations;
use feeds::Audience;

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
    #[error(transparent)]
    Discovery(#[from] xds_client::transport::Error),
    #[error(transparent)]
    Node(#[from] xds_client::node::Error),
    #[error("CA_ADDRESS \"{0}\" is not a URI")]
    CaAddress(String),
    #[error(transparent)]
    Alone(#[from] alone::Error),
    #[error("CA_ADDRESS is empty: without a CA no pod has a certificate")]
    NoCa,
}

/// Runs until the drain is over.
pub fn run() -> Result<ExitCode, Error> {
    let config = config::load()?;
    if alone::is_wanted(&config) {
        let _log = telemetry::init(&config.telemetry.rust_log, config.telemetry.json)?;
        return runtime()?.block_on(alone::run(&config)).map_err(Error::from);
    }
    // Before any thread is started: what this one gives up, only its later children lack too.
    if !config.allow_privileges {
        privileges::drop_all()?;
    }
    let log = telemetry::init(&config.telemetry.rust_log, config.telemetry.json)?;
    if config.allow_privileges {
        tracing::warn!("running with whatever privileges it was given, as told by ALLOW_PRIVILEGES");
    }
    privileges::raise_open_files();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %json!(config), "starting");
    LocalSet::new().block_on(&runtime()?, control(config, log)).map(|()| ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
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

    let stop = CancellationToken::new();
    let revocations = Revocations::default();
    if let Some(path) = &config.identity.crl_path {
        tokio::task::spawn_local(revocations.clone().follow_file(path.clone()));
    }
    let (manager, identities) = identity::Manager::new(settings::identity(&config)?, revocations.clone());
    tokio::task::spawn_local(manager.run(stop.clone()));
    let audience = Audience {
        metrics: metrics.clone(),
        identities: identities.clone(),
        revocations,
        node: config.node.name.clone(),
    };
    let feeds = feeds::start(&config, audience, state_pending, &stop)?;
    let shown = identities.clone();
    metrics.show_certificates(move || certificate_facts(&shown));

    let io = backend::choose(config.io_backend);
    metrics.show_io_backend(io.backend.as_str());
    let loads = Arc::new(Loads::new(config.workers, config.worker_rule.most()));
    let workers = Arc::new(Workers::start(loads, io.backend, |_| Local::default())?);
    metrics.workers.set(i64::try_from(workers.count()).unwrap_or(i64::MAX));
    priority::yield_to_workers();
    let shared = Arc::new(settings::shared(&config, &feeds, metrics.clone(), drain.clone()));
    let sizes = limits::follow(&config, shared.clone());
    let (pods, view) = pod::Manager::new(
        workers.clone(),
        shared,
        identities.clone(),
        config.node.trust_domain.clone(),
        config.redirect_socket.clone(),
        sizes,
        move || drop(pods_pending),
    );
    // A proxy that knows a part of the mesh would take the rest of it for the outside. Until then connections wait in the
    // listeners' queues.
    let complete = feeds.complete();
    let pods = tokio::task::spawn_local(async move {
        complete.await;
        pods.run().await;
    });

    let dump = Arc::new(dump::dump(&config, io, &feeds, identities, view));
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

fn certificate_facts(identities: &identity::Handle) -> CertificateFacts {
    let identity::Counters { fetched, failed, expired, revoked, held } = identities.counters();
    let now = SystemTime::now();
    let seconds = |end: SystemTime| match end.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(over) => i64::try_from(over.duration().as_secs()).map_or(i64::MIN, |over| -over),
    };
    let expiries = identities.ends().into_iter().map(|(identity, end)| (identity, seconds(end))).collect();
    CertificateFacts { fetched, failed, expired, revoked, held, expiries }
}
