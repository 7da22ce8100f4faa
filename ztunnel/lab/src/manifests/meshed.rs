//! Which pods are meshed. The controller's own index says it, so there is no second rule that could differ.

use std::collections::BTreeSet;
use std::path::Path;

use control_plane::index::{Config, Index};
use control_plane::source::file;
use ztunnel_model::codec::Address;
use ztunnel_model::workload::TunnelProtocol;

/// Uids of the meshed workloads of a folder of completed manifests.
pub(crate) fn meshed(folder: &Path) -> BTreeSet<String> {
    let (_, objects, _) = file::Folder::open(folder);
    let changes = Index::new(Config::default()).apply(objects);
    let addresses = changes.set.iter().filter_map(|resource| Address::decode(&resource.body).ok());
    let workloads = addresses.filter_map(|address| match address {
        Address::Workload(workload) => Some(workload),
        Address::Service(_) => None,
    });
    let meshed = workloads.filter(|workload| workload.protocol == TunnelProtocol::Hbone);
    meshed.map(|workload| workload.uid.to_string()).collect()
}
