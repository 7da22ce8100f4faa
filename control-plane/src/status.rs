//! What is asked of the controller over HTTP. Read only; meant for a loopback or a pod's own address.
//!
//! | Path | Answer |
//! |---|---|
//! | `/policies` | what became of each policy, why not all of it, and on how many workloads (JSON) |
//! | `/mistakes` | what is wrong in the cluster's objects and the manifests, with place, line, column and path (JSON) |
//! | `/clients` | who is connected over xDS and how it gets on (JSON) |
//! | `/certificates` | how many are unexpired, and revoked (JSON) |
//! | `/metrics` | all of it in numbers, for Prometheus: see [`metrics`] |
//! | `/healthz/live` | 200 as long as the process answers |
//! | `/healthz/ready` | 200 once the cluster and the manifests were read and while the CA can sign; else 503 and the reason |

pub mod metrics;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::ca::Ca;
use crate::index::PolicyStatus;
use crate::mesh::View;
use crate::source::file::Mistake;
use crate::xds::clients::Clients;

/// How long answers in progress are waited for at the stop.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Where the answers come from.
#[derive(Clone)]
pub struct Sources {
    pub ca: Arc<Ca>,
    /// `None` of a certificate authority alone.
    pub discovery: Option<Discovery>,
}

/// What there is beside the CA.
#[derive(Clone)]
pub struct Discovery {
    pub mesh: View,
    pub clients: Clients,
}

impl Sources {
    /// What the index says; nothing while it is being built for the first time, which nobody shall wait for.
    fn mesh(&self) -> Option<&View> {
        self.discovery.as_ref().filter(|one| one.clients.is_complete()).map(|one| &one.mesh)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    kind: &'static str,
    namespace: Arc<str>,
    name: Arc<str>,
    /// `enforced`, `partly enforced` or `not enforced`.
    status: String,
    /// Names of the resources that it became.
    resources: Vec<Arc<str>>,
    reasons: Vec<String>,
    /// How many workloads it applies to.
    workloads: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Located {
    file: String,
    /// Counted from 1; 0 is the file itself, or an object of the cluster.
    document: usize,
    line: usize,
    column: usize,
    path: String,
    reason: String,
    /// What the document describes; null where it does not say so.
    object: Option<Described>,
}

#[derive(Serialize)]
struct Described {
    kind: &'static str,
    namespace: Arc<str>,
    name: Arc<str>,
}

/// Serves until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    sources: Sources,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/policies", get(policies))
        .route("/mistakes", get(mistakes))
        .route("/clients", get(clients))
        .route("/certificates", get(certificates))
        .route("/metrics", get(metrics))
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
        .with_state(sources);
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.await;
        drop(stopping);
    });
    let late = async {
        let _ = stopped.await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        served = async { serving.await } => served,
        () = late => Ok(()),
    }
}

/// Until there is something to serve: alive, and not ready. No connection outlives its answer, so that none is answered so
/// for longer.
pub async fn wait(listener: TcpListener, reason: &'static str) -> std::io::Result<()> {
    let live = || async { ([(CONNECTION, "close")], "live\n") };
    let not_ready = move || async move {
        let reason = format!("not ready: {reason}\n");
        (StatusCode::SERVICE_UNAVAILABLE, [(CONNECTION, "close")], reason)
    };
    axum::serve(listener, Router::new().route("/healthz/live", get(live)).fallback(not_ready)).await
}

async fn policies(State(sources): State<Sources>) -> Json<Vec<Policy>> {
    let statuses = sources.mesh().map(View::policies).unwrap_or_default();
    Json(statuses.into_iter().map(Policy::from).collect())
}

async fn mistakes(State(sources): State<Sources>) -> Json<Vec<Located>> {
    let mistakes = sources.mesh().map(View::mistakes).unwrap_or_default();
    Json(mistakes.iter().map(Located::from).collect())
}

async fn clients(State(sources): State<Sources>) -> Json<Value> {
    let clients = sources.discovery.as_ref().map(|one| &one.clients);
    let (list, counters) = clients.map(|clients| (clients.list(), clients.counters())).unzip();
    Json(json!({ "clients": list.unwrap_or_default(), "counters": counters.unwrap_or_default() }))
}

async fn certificates(State(sources): State<Sources>) -> Json<Value> {
    Json(json!({ "unexpired": sources.ca.unexpired(), "revoked": sources.ca.crl().borrow().revoked }))
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&sources, SystemTime::now()))
}

/// The process answers, which is all that a restart could mend.
async fn live() -> &'static str {
    "live\n"
}

/// What is waited for before anybody is to be sent here.
async fn ready(State(sources): State<Sources>) -> (StatusCode, String) {
    let index = sources.discovery.as_ref().is_some_and(|one| !one.clients.is_complete());
    let index = index.then(|| "the cluster and the manifests are not read yet".to_owned());
    let pending: Vec<String> = index.into_iter().chain(sources.ca.cannot_sign(SystemTime::now())).collect();
    match pending.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", pending.join("; "))),
    }
}

impl From<PolicyStatus> for Policy {
    fn from(status: PolicyStatus) -> Self {
        Self {
            status: status.enforcement.to_string(),
            kind: status.kind,
            namespace: status.namespace,
            name: status.name,
            resources: status.resources,
            reasons: status.reasons.iter().map(ToString::to_string).collect(),
            workloads: status.workloads,
        }
    }
}

impl From<&Mistake> for Located {
    fn from(Mistake { document, at, object }: &Mistake) -> Self {
        Self {
            file: at.file.clone(),
            document: *document,
            line: at.line,
            column: at.column,
            path: at.path.clone(),
            reason: at.reason.clone(),
            object: object.as_ref().map(|key| Described {
                kind: key.kind.as_str(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            }),
        }
    }
}
