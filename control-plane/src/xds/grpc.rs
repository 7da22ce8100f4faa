//! gRPC messages in HTTP/2 bodies, with buffers that live no longer than a message.
//!
//! tonic's own keep for each stream an allocation of the size of the largest message that passed: a first request that
//! lists all that a client holds, and a response of the first synchronisation. Both are over in the first second of a
//! stream that then idles for weeks.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tonic::Status;
use xds_client::proto::DeltaDiscoveryRequest;

use super::response::{Pieces, Response};

/// What a message begins with: a flag and the length.
const PREFIX: usize = 5;

/// A longer request waits until few others of its size are being read and compared.
pub(super) const LARGE: usize = 256 * 1024;

/// How long a request may take from its first byte to its last.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

type Admission = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// The requests of a stream.
pub(super) struct Inbound<B> {
    body: B,
    buffer: BytesMut,
    limit: usize,
    large: Arc<Semaphore>,
    admission: Option<Admission>,
    permit: Option<OwnedSemaphorePermit>,
    /// When the request that is being read must have come.
    deadline: Option<Instant>,
}

/// A request, and its place among the large ones if it is one.
pub(super) struct Incoming {
    pub(super) request: DeltaDiscoveryRequest,
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The responses of a stream, encoded when the connection can take them, and its end.
pub(super) struct Outbound<P> {
    responses: mpsc::Receiver<Response>,
    /// The one that is being sent.
    pieces: Option<Pieces>,
    /// Counts what the connection has taken.
    taken: Arc<AtomicUsize>,
    end: Arc<OnceLock<Status>>,
    ended: bool,
    /// What is held for as long as the client's stream exists.
    _place: P,
}

impl<B> Inbound<B>
where
    B: Body + Unpin,
    B::Data: Buf,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(body: B, limit: usize, large: Arc<Semaphore>) -> Self {
        let buffer = BytesMut::new();
        Self { body, buffer, limit, large, admission: None, permit: None, deadline: None }
    }

    /// When the stream is to be given up, because a request was begun and not ended.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The next request (boxed, for a task that waits to be small), or none if the client has said its last. Nothing is lost if the future is dropped.
    pub(super) async fn message(&mut self) -> Result<Option<Box<Incoming>>, Status> {
        loop {
            if let Some(length) = self.length()? {
                self.admit(length).await;
                if self.buffer.len() >= PREFIX + length {
                    return self.take(length).map(Some);
                }
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended in the middle of a request")),
                Some(Err(error)) => return Err(Status::cancelled(format!("the stream broke: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.append(data);
                    }
                }
            }
        }
    }

    /// The length of the message that the buffer begins with.
    fn length(&self) -> Result<Option<usize>, Status> {
        let Some(&[flag, a, b, c, d]) = self.buffer.first_chunk() else { return Ok(None) };
        if flag != 0 {
            return Err(Status::unimplemented("requests must not be compressed"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            let limit = self.limit;
            return Err(Status::resource_exhausted(format!(
                "a request of {length} bytes is longer than the {limit} that are taken"
            )));
        }
        Ok(Some(length))
    }

    async fn admit(&mut self, length: usize) {
        if length <= LARGE || self.permit.is_some() {
            return;
        }
        self.deadline = None;
        let large = &self.large;
        let admission = self.admission.get_or_insert_with(|| {
            let large = Arc::clone(large);
            Box::pin(async move { large.acquire_owned().await.ok() })
        });
        self.permit = admission.await;
        self.admission = None;
        self.deadline = Some(Instant::now() + REQUEST_DEADLINE);
    }

    fn append(&mut self, mut data: B::Data) {
        if self.deadline.is_none() && data.has_remaining() {
            self.deadline = Some(Instant::now() + REQUEST_DEADLINE);
        }
        self.buffer.reserve(data.remaining());
        while data.has_remaining() {
            let chunk = data.chunk();
            self.buffer.extend_from_slice(chunk);
            let length = chunk.len();
            data.advance(length);
        }
    }

    fn take(&mut self, length: usize) -> Result<Box<Incoming>, Status> {
        self.buffer.advance(PREFIX);
        let request = DeltaDiscoveryRequest::decode((&mut self.buffer).take(length))
            .map_err(|error| Status::invalid_argument(format!("a request is unreadable: {error}")))?;
        // A copy of what follows, if anything does, lets go of the allocation.
        self.buffer = BytesMut::from(&self.buffer[..]);
        self.deadline = (!self.buffer.is_empty()).then(|| Instant::now() + REQUEST_DEADLINE);
        Ok(Box::new(Incoming { request, place: self.permit.take() }))
    }
}

impl<P> Outbound<P> {
    /// `end` is to be set before the sender of the responses is dropped.
    pub(super) fn new(
        responses: mpsc::Receiver<Response>,
        taken: Arc<AtomicUsize>,
        end: Arc<OnceLock<Status>>,
        place: P,
    ) -> Self {
        Self { responses, pieces: None, taken, end, ended: false, _place: place }
    }

    fn trailers(&self) -> HeaderMap {
        let unsaid =
            || Status::internal("the stream's task ended unexpectedly; see the log of the controller");
        let status = self.end.get().cloned().unwrap_or_else(unsaid);
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
        }
        trailers
    }
}

impl<P: Unpin> Body for Outbound<P> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = loop {
            if let Some(piece) = self.pieces.as_mut().and_then(Iterator::next) {
                self.taken.fetch_add(1, Ordering::Relaxed);
                break Frame::data(piece);
            }
            self.pieces = None;
            match ready!(self.responses.poll_recv(cx)) {
                Some(response) => self.pieces = Some(response.into_pieces()),
                None => {
                    self.ended = true;
                    break Frame::trailers(self.trailers());
                }
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests;
