//! `/config_dump`: what each part of the process knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use xds_client::client::{Connection, Status};
use ztunnel_model::Service;
use ztunnel_model::codec::static_config::{
    EndpointView, PolicyView, ServiceView, StaticConfig, WorkloadView,
};

use super::feeds::Feeds;
use crate::admin::{self, Dump};
use crate::config::Config;
use crate::identity;
use crate::io::backend::Choice;
use crate::pod::View;
use crate::state::{self, Reader};

/// The keys of interop.md section 11.5.
pub(super) fn dump(
    config: &Config,
    io: Choice,
    feeds: &Feeds,
    identities: identity::Handle,
    view: View,
) -> Dump {
    let (reader, applied, discovery) = (feeds.reader.clone(), feeds.applied.clone(), feeds.discovery.clone());
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
        .part("io", move || json!(io))
        .part("certificates", move || json!(identities.certificates()))
        .part("workloadState", move || view.dump())
        .part("discovery", move || discovery.as_ref().map_or(Value::Null, discovery_view))
}

/// How the proxy is fed over xDS.
fn discovery_view(status: &watch::Receiver<Status>) -> Value {
    let status = status.borrow();
    let (state, since) = match status.connection {
        Connection::Connecting { since } => ("connecting", since),
        Connection::Connected { since } => ("connected", since),
        Connection::Waiting { since, .. } => ("waiting", since),
    };
    let types = status.types.iter().map(|one| {
        json!({
            "typeUrl": one.type_url.as_str(),
            "synced": one.synced,
            "resources": one.held,
            "responses": one.responses,
            "nacks": one.nacks,
            "lastRejection": one.last_rejection.as_ref().map(|last| format!("{}: {}", last.name, last.reason)),
        })
    });
    json!({
        "state": state,
        "seconds": since.elapsed().as_secs(),
        "lastError": status.last_error,
        "types": types.collect::<Vec<_>>(),
    })
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
