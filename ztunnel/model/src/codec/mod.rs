//! Between the model and its written forms: WDS protobuf (`workload`, `service`, `policy`) and the static
//! configuration (`static_config`, read through `located`).
//!
//! A resource that cannot be read exactly is refused; nothing is dropped that would make a policy wider. Defaults are
//! filled in here, so that nobody behind a codec meets an empty text where a name belongs.
//!
//! Knows nothing of where the bytes come from, nor of other resources: whether a reference leads anywhere is the
//! reader's business.

#[cfg(test)]
mod arbitrary;
mod fields;
pub mod interner;
pub mod located;
pub mod policy;
pub mod proto;
pub mod service;
pub mod static_config;
#[cfg(test)]
mod tests;
pub mod workload;

use std::sync::Arc;

use prost::Message;

pub use interner::Interner;

use crate::{Service, Workload};

/// What stands for an absent trust domain.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// What stands for an absent service account.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// What stands for an absent cluster.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Weight of an endpoint that names none.
pub const DEFAULT_CAPACITY: u32 = 1;

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {reason}")]
pub struct Error {
    field: String,
    value: String,
    reason: String,
}

impl Error {
    pub(crate) fn new(field: impl Into<String>, value: impl ToString, reason: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), reason: reason.into() }
    }

    /// Path of the field inside the resource, for example `rules[0].clauses[1].matches[0].source_ips[2]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    pub(crate) fn within(mut self, parent: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => parent.to_owned(),
            field if field.starts_with('[') => format!("{parent}{field}"),
            field => format!("{parent}.{field}"),
        };
        self
    }
}

/// One resource of the address type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
}

impl Address {
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Self::decode_sharing(bytes, &mut Interner::default())
    }

    /// What the resource has in common with others that were decoded with the same interner, it shares with them.
    pub fn decode_sharing(bytes: &[u8], interner: &mut Interner) -> Result<Self, Error> {
        let message = proto::workload::Address::decode(bytes).map_err(|error| undecodable(bytes, &error))?;
        match message.r#type {
            Some(proto::workload::address::Type::Workload(message)) => {
                Ok(Self::Workload(Arc::new(workload::from_proto(message, interner)?)))
            }
            Some(proto::workload::address::Type::Service(message)) => {
                Ok(Self::Service(Arc::new(service::from_proto(message)?)))
            }
            None => Err(Error::new("type", "absent", "an address is a workload or a service")),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let r#type = match self {
            Self::Workload(workload) => {
                proto::workload::address::Type::Workload(workload::to_proto(workload))
            }
            Self::Service(service) => proto::workload::address::Type::Service(service::to_proto(service)),
        };
        proto::workload::Address { r#type: Some(r#type) }.encode_to_vec()
    }
}

fn undecodable(bytes: &[u8], error: &prost::DecodeError) -> Error {
    Error::new("resource", format!("{} bytes", bytes.len()), error.to_string())
}
