//! A response before it is bytes: it shares what it sends with the store.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use xds_client::proto::DeltaDiscoveryResponse;

use super::store::Entry;

/// What a gRPC message begins with: a flag (not compressed) and the length.
const PREFIX: usize = 5;

/// What removing a name takes beside the name itself.
const REMOVAL: usize = 4;

/// How much of the store is looked at before others get their turn.
const STRETCH: usize = 8192;

/// One `DeltaDiscoveryResponse`.
#[derive(Debug)]
pub struct Response {
    pub(super) type_url: Arc<str>,
    pub(super) nonce: String,
    pub(super) sequence: u64,
    pub(super) batch: Batch,
}

/// What a response says, up to about a number of bytes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) set: Vec<Arc<Entry>>,
    pub(super) removed: Vec<Arc<str>>,
    bytes: usize,
    limit: usize,
    /// How much more may be looked at in one go, for others to get their turn.
    looks: usize,
}

impl Response {
    /// The message as gRPC frames it. The allocation is its own, so that nothing of it outlives its way to the client.
    pub fn encode(&self) -> Bytes {
        let rest = DeltaDiscoveryResponse {
            system_version_info: self.sequence.to_string(),
            type_url: self.type_url.to_string(),
            nonce: self.nonce.clone(),
            removed_resources: self.batch.removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let length =
            self.batch.set.iter().map(|entry| entry.encoded.len()).sum::<usize>() + rest.encoded_len();
        let mut bytes = BytesMut::with_capacity(PREFIX + length);
        bytes.put_u8(0);
        // Only one resource of 4 GiB could be longer, and protobuf has none.
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        self.batch.set.iter().for_each(|entry| bytes.put_slice(&entry.encoded));
        let _ = rest.encode(&mut bytes);
        bytes.freeze()
    }

    /// About how long the message is.
    pub fn bytes(&self) -> usize {
        self.batch.bytes
    }

    pub fn resources(&self) -> usize {
        self.batch.set.len()
    }

    pub fn removed(&self) -> usize {
        self.batch.removed.len()
    }
}

impl Batch {
    pub(super) fn new(limit: usize) -> Self {
        Self { set: Vec::new(), removed: Vec::new(), bytes: 0, limit, looks: STRETCH }
    }

    pub(super) fn set(&mut self, entry: &Arc<Entry>) {
        self.bytes += entry.encoded.len();
        self.set.push(Arc::clone(entry));
    }

    pub(super) fn remove(&mut self, name: Arc<str>) {
        self.bytes += name.len() + REMOVAL;
        self.removed.push(name);
    }

    /// Counts one look; false if that was enough for now.
    pub(super) fn look(&mut self) -> bool {
        self.looks = self.looks.saturating_sub(1);
        self.looks > 0
    }

    /// Whether another of some length is for the next response. One always fits.
    pub(super) fn is_full_for(&self, length: usize) -> bool {
        !self.is_empty() && self.bytes + length > self.limit
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}
