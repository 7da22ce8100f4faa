//! The messages as prost generates them; everybody else sees the model.

/// WDS addresses: workloads and services.
#[expect(
    clippy::large_enum_variant,
    reason = "generated; an address is decoded once and taken apart at once"
)]
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

/// Authorization policies.
pub mod security {
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}
