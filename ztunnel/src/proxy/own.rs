//! The pod's own workload: its record, or before that has arrived, what is known without it.
//!
//! A new pod speaks before anybody has told the control plane its address, by seconds on a node whose kubelet is busy. What it
//! opens does not wait: who it is, the agent has said, and the certificate follows from that; where it is, the other pods
//! of the node tell. What somebody opens to it does wait: the record names the policies that guard the pod.

use std::sync::Arc;
use std::time::Duration;

use ztunnel_model::workload::{HealthStatus, NetworkMode, TunnelProtocol, WorkloadType};
use ztunnel_model::{Text, Workload};

use super::{PodFacts, PodProxy, Shared};
use crate::state::Snapshot;

/// How long a connection to the pod waits for its record to arrive.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);

impl PodProxy {
    /// The record, or what can be said without it.
    pub(super) fn own_or_said(&self) -> Arc<Workload> {
        let Self { facts, shared, .. } = self;
        let snapshot = shared.reader.snapshot();
        let known = record(&snapshot, facts, shared.node.as_deref());
        known.unwrap_or_else(|| Arc::new(said(&snapshot, facts, shared)))
    }

    /// The record, which is waited for.
    pub(super) async fn own_record(&self) -> Option<Arc<Workload>> {
        let node = self.shared.node.as_deref();
        if let Some(workload) = record(&self.shared.reader.snapshot(), &self.facts, node) {
            return Some(workload);
        }
        let mut reader = self.shared.reader.clone();
        let arrival = async {
            self.ask_for_record().await;
            loop {
                if let Some(workload) = record(&reader.snapshot(), &self.facts, node) {
                    return Some(workload);
                }
                if !reader.changed().await {
                    return None;
                }
            }
        };
        tokio::time::timeout(RECORD_DEADLINE, arrival).await.ok().flatten()
    }

    /// Where the state holds only what was asked for.
    pub(super) async fn ask_for_record(&self) {
        let Some(demand) = &self.shared.demand else { return };
        for &ip in &self.facts.addresses {
            // Whatever the answer, the record itself is what is wanted.
            let _ = demand.owner(&self.shared.network, ip, &self.facts.namespace).await;
        }
    }
}

pub(super) fn record(snapshot: &Snapshot, facts: &PodFacts, node: Option<&str>) -> Option<Arc<Workload>> {
    snapshot.local_workload(&facts.namespace, &facts.name, &facts.service_account, node).cloned()
}

/// Its owner, and so the name that telemetry knows it by, stays unknown: a pod's own name would be a series of metrics
/// for each pod.
fn said(snapshot: &Snapshot, facts: &PodFacts, shared: &Shared) -> Workload {
    let neighbour = shared.node.as_deref().and_then(|node| snapshot.neighbour(node));
    let cluster_id = neighbour.map_or(&shared.cluster_id, |neighbour| &neighbour.cluster_id);
    Workload {
        uid: format!("{cluster_id}//Pod/{}/{}", facts.namespace, facts.name).as_str().into(),
        name: facts.name.as_str().into(),
        namespace: facts.namespace.as_str().into(),
        identity: facts.identity.clone(),
        addresses: facts.addresses.clone(),
        hostname: Text::default(),
        network: neighbour.map_or(&shared.network, |neighbour| &neighbour.network).clone(),
        protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: shared.node.as_deref().unwrap_or_default().into(),
        workload_type: WorkloadType::Pod,
        workload_name: Text::default(),
        canonical_name: Text::default(),
        canonical_revision: Text::default(),
        cluster_id: cluster_id.clone(),
        locality: neighbour.map(|neighbour| neighbour.locality.clone()).unwrap_or_default(),
        status: HealthStatus::Healthy,
        capacity: 1,
        native_tunnel: false,
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        authorization_policies: Arc::default(),
        services: Arc::default(),
    }
}
