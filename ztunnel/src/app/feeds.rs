//! What feeds the state (a static configuration, an xDS server, or both) and who is told of what changes.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds_client::client::{Client, Handle, Sink, Status};
use xds_client::delta::{Settings, Terminations};
use xds_client::transport::Grpc;
use xds_client::{Mode, Rejection, TypeUrl, Update};
use ztunnel_model::codec::static_config::StaticConfig;
use ztunnel_model::workload::TunnelProtocol;
use ztunnel_model::{Identity, WorkloadUid};

use super::{Error, settings};
use crate::admin::Pending;
use crate::config::{Config, StaticSource};
use crate::identity;
use crate::state::discovery::{self, ADDRESS, AUTHORIZATION};
use crate::state::{self, Changes, Demand, Reader, Writer, feed};
use crate::telemetry::{DiscoveryFacts, Metrics, TypeFacts, events};
use crate::tls::revocation::Revocations;

/// CRLs of a control plane that has them: PEM. Not one of Istio's types.
const REVOCATION_LIST: &str = "type.googleapis.com/ztunnel.ca.RevocationList";

/// What the rest of the process has of the feeds.
pub(super) struct Feeds {
    pub(super) reader: Reader,
    /// The static configuration in force.
    pub(super) applied: Arc<ArcSwap<StaticConfig>>,
    /// `None` when the state holds everything anyway.
    pub(super) demand: Option<Demand>,
    /// `None` without an xDS server.
    pub(super) discovery: Option<watch::Receiver<Status>>,
    /// Becomes true once the state is whole; `None` when it is from the start.
    complete: Option<watch::Receiver<bool>>,
}

/// Who is told.
#[derive(Clone)]
pub(super) struct Audience {
    pub(super) metrics: Arc<Metrics>,
    pub(super) identities: identity::Handle,
    pub(super) revocations: Revocations,
    /// NODE_NAME.
    pub(super) node: Option<String>,
}

/// Starts the feeds; `pending` is dropped when the state is complete for the first time.
pub(super) fn start(
    config: &Config,
    audience: Audience,
    pending: Pending,
    stop: &CancellationToken,
) -> Result<Feeds, Error> {
    let (writer, reader) = state::on_node(config.node.name.as_deref());
    let writer = Rc::new(RefCell::new(writer));
    let metrics = audience.metrics.clone();
    let revocations = audience.revocations.clone();
    let news = Rc::new(News { audience, local: RefCell::default() });
    let applied = follow_static(config, &writer, &news)?;
    let discovery = match settings::discovery(&config.xds) {
        None => {
            if config.static_config.is_none() {
                tracing::warn!(
                    "XDS_ADDRESS is empty and there is no static configuration: no workload is known"
                );
            }
            drop(pending);
            None
        }
        Some(transport) => {
            let changed = discovery::Feed::new(writer, move |changes| news.tell(&changes));
            let sink = Both { state: changed, revocations };
            Some(follow_discovery(config, Grpc::new(transport)?, sink, pending, stop)?)
        }
    };
    let Some(Handle { demand, status, synced }) = discovery else {
        return Ok(Feeds { reader, applied, demand: None, discovery: None, complete: None });
    };
    let shown = status.clone();
    metrics.show_discovery(move || facts(&shown.borrow()));
    let demand = config.xds.on_demand.then(|| Demand::new(demand, reader.clone()));
    Ok(Feeds { reader, applied, demand, discovery: Some(status), complete: Some(synced) })
}

impl Feeds {
    /// Resolves once the state is whole for the first time.
    pub(super) fn complete(&self) -> impl Future<Output = ()> + use<> {
        let complete = self.complete.clone();
        async move {
            let Some(mut complete) = complete else { return };
            // It never will be when the feed is stopped.
            if complete.wait_for(|complete| *complete).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

fn follow_static(
    config: &Config,
    writer: &Rc<RefCell<Writer>>,
    news: &Rc<News>,
) -> Result<Arc<ArcSwap<StaticConfig>>, Error> {
    let applied: Arc<ArcSwap<StaticConfig>> = Arc::default();
    let show = |next: feed::Applied, applied: &ArcSwap<StaticConfig>, news: &News| {
        news.tell(&next.changes);
        applied.store(Arc::new(next.config));
    };
    match &config.static_config {
        None => {}
        Some(StaticSource::Inline(text)) => {
            let first = feed::apply_text(&mut writer.borrow_mut(), text, "LOCAL_XDS")?;
            show(first, &applied, news);
        }
        Some(StaticSource::Path(path)) => {
            let (watched, first) = feed::Watched::start(&mut writer.borrow_mut(), Path::new(path))?;
            show(first, &applied, news);
            let (shown, news) = (applied.clone(), news.clone());
            tokio::task::spawn_local(watched.follow(writer.clone(), move |next| show(next, &shown, &news)));
        }
    }
    Ok(applied)
}

fn follow_discovery(
    config: &Config,
    transport: Grpc,
    sink: impl Sink + 'static,
    pending: Pending,
    stop: &CancellationToken,
) -> Result<Handle, Error> {
    let mut types = vec![
        (TypeUrl::from(ADDRESS), if config.xds.on_demand { Mode::OnDemand } else { Mode::Wildcard }),
        (TypeUrl::from(AUTHORIZATION), Mode::Wildcard),
    ];
    if config.xds.revocations {
        types.push((TypeUrl::from(REVOCATION_LIST), Mode::Wildcard));
    }
    let settings = Settings::new(settings::node(&config.xds.node).to_proto()?, types);
    let (client, handle) = Client::new(settings, transport, sink);
    tokio::task::spawn_local(client.run(stop.clone().cancelled_owned()));
    let mut synced = handle.synced.clone();
    tokio::task::spawn_local(async move {
        if synced.wait_for(|synced| *synced).await.is_ok() {
            tracing::info!("the state is complete");
        }
        drop(pending);
    });
    Ok(handle)
}

/// The state, and beside it the CRLs.
struct Both<S> {
    state: S,
    revocations: Revocations,
}

impl<S: Sink> Sink for Both<S> {
    fn apply(&mut self, update: &mut Update) -> Vec<Rejection> {
        if *update.type_url() != *REVOCATION_LIST {
            return self.state.apply(update);
        }
        let deliver = |body: &[u8]| {
            let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
            self.revocations.deliver(text).map_err(|error| error.to_string())
        };
        let (delivered, rejected) = update.decode(|_, body| deliver(body));
        for crls in delivered {
            tracing::info!(crls = crls.value, "revocations delivered");
        }
        rejected
    }

    fn synced(&mut self) {
        self.state.synced();
    }
}

/// Tells those whose work depends on the state.
struct News {
    audience: Audience,
    /// Meshed workloads of this node.
    local: RefCell<HashMap<WorkloadUid, Identity>>,
}

impl News {
    fn tell(&self, changes: &Changes) {
        let Audience { metrics, identities, node, .. } = &self.audience;
        metrics.policies_missing.set(i64::try_from(changes.missing.count).unwrap_or(i64::MAX));
        for missing in &changes.missing.new {
            events::PolicyMissing { workload: &missing.workload, policy: &missing.policy }.emit(metrics);
        }
        let Some(node) = node else { return };
        let mut local = self.local.borrow_mut();
        let mut differs = false;
        for change in &changes.workloads {
            let (before, after) = change.on_node(node);
            if let Some(before) = before {
                differs |= local.remove(&before.uid).is_some();
            }
            if let Some(after) = after.filter(|after| after.protocol == TunnelProtocol::Hbone) {
                local.insert(after.uid.clone(), after.identity.clone());
                differs = true;
            }
        }
        // A workload of this node may come before its pod; its certificate is then fetched ahead (interop.md section 5.6).
        if differs {
            identities.prefetch(&local.values().cloned().collect::<HashSet<_>>());
        }
    }
}

fn facts(status: &Status) -> DiscoveryFacts {
    let Terminations { connection_error, error, reconnect, complete } = status.counters.terminations;
    DiscoveryFacts {
        connected: status.is_connected(),
        terminations: [
            ("ConnectionError", connection_error),
            ("Error", error),
            ("Reconnect", reconnect),
            ("Complete", complete),
        ],
        types: status
            .types
            .iter()
            .map(|one| TypeFacts {
                type_url: one.type_url.to_string(),
                messages: one.responses,
                bytes: one.bytes,
                held: one.held,
                rejected: one.rejected,
            })
            .collect(),
    }
}
