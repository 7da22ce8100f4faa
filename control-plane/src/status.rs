//! What a human asks of the controller, as JSON over HTTP: `/policies`, `/mistakes`, `/clients`, `/certificates`. Read
//! only; meant for a loopback or a pod's own address.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
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
    pub mesh: View,
    pub clients: Clients,
    pub ca: Arc<Ca>,
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
    /// Counted from 1; 0 is the file itself.
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

async fn policies(State(sources): State<Sources>) -> Json<Vec<Policy>> {
    Json(sources.mesh.policies().into_iter().map(Policy::from).collect())
}

async fn mistakes(State(sources): State<Sources>) -> Json<Vec<Located>> {
    Json(sources.mesh.mistakes().iter().map(Located::from).collect())
}

async fn clients(State(sources): State<Sources>) -> Json<Value> {
    Json(json!({ "clients": sources.clients.list(), "counters": sources.clients.counters() }))
}

async fn certificates(State(sources): State<Sources>) -> Json<Value> {
    Json(json!({ "unexpired": sources.ca.unexpired(), "revoked": sources.ca.crl().borrow().revoked }))
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
