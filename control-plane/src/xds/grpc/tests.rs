use std::collections::VecDeque;
use std::convert::Infallible;

use bytes::Bytes;

use super::*;

/// A body that comes in pieces, then ends, or waits for ever.
struct Pieces {
    pieces: VecDeque<Bytes>,
    ends: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn inbound(bytes: &[u8], piece: usize, ends: bool) -> Inbound<Pieces> {
    let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
    Inbound::new(Pieces { pieces, ends }, 1 << 20, Arc::new(Semaphore::new(1)))
}

fn framed(type_url: &str) -> Vec<u8> {
    let request =
        DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() }.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(request.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&request);
    bytes
}

#[tokio::test]
async fn requests_come_whole_however_they_are_cut() {
    let bytes = [framed("first"), framed(""), framed("third")].concat();
    for piece in 1..=bytes.len() {
        let mut inbound = inbound(&bytes, piece, true);
        for expected in ["first", "", "third"] {
            let incoming = inbound.message().await.unwrap().unwrap();
            assert_eq!(incoming.request.type_url, expected);
        }
        assert!(inbound.message().await.unwrap().is_none());
        assert!(inbound.deadline().is_none() && inbound.buffer.capacity() == 0, "nothing is kept");
    }
}

#[tokio::test]
async fn a_large_request_leaves_no_buffer_behind_and_waits_for_its_turn() {
    let large = framed(&"x".repeat(LARGE + 1));
    let mut first = inbound(&large, 16 * 1024, false);
    let incoming = first.message().await.unwrap().unwrap();
    assert!(incoming.place.is_some() && first.buffer.capacity() == 0);
    let mut second = inbound(&large, 16 * 1024, false);
    second.large = Arc::clone(&first.large);
    assert!(futures::FutureExt::now_or_never(second.message()).is_none(), "the first holds the only place");
    assert!(second.deadline().is_none(), "it is not its fault");
    assert!(second.buffer.len() < 32 * 1024, "no more is read");
    drop(incoming);
    assert!(second.message().await.unwrap().unwrap().place.is_some());
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let code = async |bytes: &[u8]| inbound(bytes, 7, true).message().await.err().map(|status| status.code());
    assert_eq!(code(&[1, 0, 0, 0, 0]).await, Some(tonic::Code::Unimplemented));
    assert_eq!(code(&[0, 0xff, 0, 0, 0]).await, Some(tonic::Code::ResourceExhausted));
    assert_eq!(code(&[0, 0, 0, 0, 2, 0xff, 0xff]).await, Some(tonic::Code::InvalidArgument));
    assert_eq!(code(&[0, 0, 0, 0, 9, 1]).await, Some(tonic::Code::Internal));
    assert_eq!(code(&[]).await, None);
}

#[tokio::test]
async fn a_request_that_is_begun_must_end() {
    let mut inbound = inbound(&framed("first")[..6], 10, false);
    assert!(inbound.deadline().is_none());
    assert!(futures::FutureExt::now_or_never(inbound.message()).is_none());
    assert!(inbound.deadline().is_some());
}
