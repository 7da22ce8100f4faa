//! A response before it is bytes: it shares what it sends with the store.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use xds_client::proto::DeltaDiscoveryResponse;

use super::store::Entry;

/// What a gRPC message begins with: a flag (not compressed) and the length.
const PREFIX: usize = 5;

/// What removing a name takes beside the name itself.
const REMOVAL: usize = 4;

/// How much of the store is looked at before others get their turn.
const STRETCH: usize = 8192;

/// About how much is encoded at a time: what a connection takes at once.
const PIECE: usize = 64 * 1024;

/// A place among the first answers that are longer than others.
pub type Room = OwnedSemaphorePermit;

/// One `DeltaDiscoveryResponse`.
#[derive(Debug)]
pub struct Response {
    pub(super) type_url: Arc<str>,
    pub(super) nonce: String,
    pub(super) sequence: u64,
    pub(super) batch: Batch,
    /// Held until the last of it is encoded.
    pub(super) room: Option<Room>,
}

/// A response on its way: what is not sent yet is shared with the store, not copied.
#[derive(Debug)]
pub(super) struct Pieces {
    begin: Vec<u8>,
    entries: std::vec::IntoIter<Arc<Entry>>,
    rest: Option<Vec<u8>>,
    _room: Option<Room>,
}

/// What a response says, up to about a number of bytes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) set: Vec<Arc<Entry>>,
    pub(super) removed: Vec<Arc<str>>,
    bytes: usize,
    limit: usize,
    full: bool,
    /// How much more may be looked at in one go, for others to get their turn.
    looks: usize,
}

impl Response {
    /// The message as gRPC frames it, in pieces.
    pub(super) fn into_pieces(self) -> Pieces {
        let rest = DeltaDiscoveryResponse {
            system_version_info: self.sequence.to_string(),
            type_url: self.type_url.to_string(),
            nonce: self.nonce,
            removed_resources: self.batch.removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
        .encode_to_vec();
        let length = self.batch.set.iter().map(|entry| entry.encoded.len()).sum::<usize>() + rest.len();
        let mut begin = Vec::with_capacity(PREFIX);
        begin.push(0);
        // Only one resource of 4 GiB could be longer, and protobuf has none.
        begin.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        Pieces { begin, entries: self.batch.set.into_iter(), rest: Some(rest), _room: self.room }
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

impl Iterator for Pieces {
    type Item = Bytes;

    /// The allocation is its own, so that nothing of the store outlives its way to the client.
    fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::from(&std::mem::take(&mut self.begin)[..]);
        while piece.len() < PIECE {
            let Some(entry) = self.entries.next() else {
                piece.extend_from_slice(&self.rest.take().unwrap_or_default());
                break;
            };
            piece.extend_from_slice(&entry.encoded);
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

impl Batch {
    pub(super) fn new(limit: usize) -> Self {
        Self { set: Vec::new(), removed: Vec::new(), bytes: 0, limit, full: false, looks: STRETCH }
    }

    /// The same batch, to be gone on with.
    pub(super) fn again(self, limit: usize) -> Self {
        Self { limit, full: false, looks: STRETCH, ..self }
    }

    /// Something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
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
    pub(super) fn is_full_for(&mut self, length: usize) -> bool {
        self.full = !self.is_empty() && self.bytes + length > self.limit;
        self.full
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}
