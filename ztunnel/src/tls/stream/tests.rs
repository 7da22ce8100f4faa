use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use ztunnel_model::IdentitySet;

use super::*;
use crate::tls::test_ca::{TestCa, identity};
use crate::tls::{client, server};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const DEADLINE: Duration = Duration::from_secs(10);
/// Enough for several keys: tests replace them after a hundred records.
const MUCH: usize = 8_000_003;

type Stock = tokio_rustls::TlsStream<TcpStream>;

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let addr = listener.local_addr().expect("a bound listener has an address");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (dialled.expect("loopback connects"), accepted.expect("loopback accepts").0)
}

/// Our client and a stock server, or our server and a stock client.
async fn pair(ours_dials: bool) -> (Stream, Stock) {
    pair_with(ours_dials, None).await
}

/// The same, with records of the stock end that are no longer than `fragment`.
async fn pair_with(ours_dials: bool, fragment: Option<usize>) -> (Stream, Stock) {
    let ca = TestCa::new("root");
    let (cart, bank) = (ca.svid(CART), ca.svid(BANK));
    let expected = IdentitySet::one(identity(BANK));
    let (near, far) = tcp_pair().await;
    if ours_dials {
        let mut config = rustls::ServerConfig::clone(&bank.server_config());
        config.max_fragment_size = fragment;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (ours, stock) =
            tokio::join!(client::connect(&cart, &expected, near, DEADLINE), acceptor.accept(far));
        (ours.expect("accepted").0, Stock::from(stock.expect("accepted")))
    } else {
        let mut config = cart.client_config(&expected);
        config.max_fragment_size = fragment;
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let (ours, stock) = tokio::join!(server::accept(&bank, far, DEADLINE), connector.connect(name, near));
        (ours.expect("accepted").0, Stock::from(stock.expect("accepted")))
    }
}

fn text() -> Vec<u8> {
    (0..MUCH).map(|n| (n % 251) as u8).collect()
}

/// Sends much, then the end, and reads until the end.
async fn exchange<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = tokio::spawn(async move {
        write.write_all(&text()).await.expect("writing works");
        write.shutdown().await.expect("closing works");
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.expect("reading works");
    writer.await.expect("the writer ends");
    got
}

#[tokio::test]
async fn much_passes_both_ways_beside_stock_tls_through_several_keys() {
    for ours_dials in [true, false] {
        let (ours, mut stock) = pair(ours_dials).await;
        // New keys of theirs, with a request for new ones of ours.
        let refreshed = match &mut stock {
            Stock::Client(stream) => stream.get_mut().1.refresh_traffic_keys(),
            Stock::Server(stream) => stream.get_mut().1.refresh_traffic_keys(),
        };
        refreshed.expect("the handshake is over");
        let (got_ours, got_stock) = tokio::join!(exchange(ours), exchange(stock));
        assert!(got_ours == text() && got_stock == text(), "ours dials: {ours_dials}");
    }
}

#[tokio::test]
async fn a_handshake_in_many_small_records_is_understood() {
    for ours_dials in [true, false] {
        let (mut ours, mut stock) = pair_with(ours_dials, Some(40)).await;
        stock.write_all(&[7; 10_000]).await.expect("writing works");
        stock.shutdown().await.expect("closing works");
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.expect("reading works");
        assert!(got == [7; 10_000], "ours dials: {ours_dials}");
    }
}

/// What goes through here arrives byte by byte.
async fn dribbling(to: TcpStream) -> TcpStream {
    async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        while let Ok(byte) = from.read_u8().await {
            if to.write_u8(byte).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
    }
    let (near, inside) = tcp_pair().await;
    to.set_nodelay(true).expect("an option");
    inside.set_nodelay(true).expect("an option");
    let ((left_read, left_write), (right_read, right_write)) = (inside.into_split(), to.into_split());
    tokio::spawn(carry(left_read, right_write));
    tokio::spawn(carry(right_read, left_write));
    near
}

#[tokio::test]
async fn bytes_that_come_one_by_one_are_understood() {
    let ca = TestCa::new("root");
    let (cart, bank) = (ca.svid(CART), ca.svid(BANK));
    let expected = IdentitySet::one(identity(BANK));
    let (near, far) = tcp_pair().await;
    let near = dribbling(near).await;
    let (client, server) =
        tokio::join!(client::connect(&cart, &expected, near, DEADLINE), server::accept(&bank, far, DEADLINE));
    let (mut client, mut server) = (client.expect("accepted").0, server.expect("accepted").0);
    client.write_all(&[7; 1000]).await.expect("writing works");
    client.shutdown().await.expect("closing works");
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("reading works");
    assert!(got == [7; 1000]);
}

#[tokio::test]
async fn an_idle_stream_holds_no_buffer() {
    let (mut ours, mut stock) = pair(true).await;
    stock.write_all(b"ping").await.expect("writing works");
    stock.flush().await.expect("flushing works");
    let mut got = [0; 4];
    ours.read_exact(&mut got).await.expect("reading works");
    ours.write_all(b"pong").await.expect("writing works");
    ours.flush().await.expect("flushing works");
    stock.read_exact(&mut got).await.expect("reading works");
    tokio::select! {
        _ = ours.read_u8() => panic!("nothing was sent"),
        () = tokio::task::yield_now() => {}
    }
    assert!(ours.incoming.is_empty() && ours.outgoing.unsent().is_empty());
}

#[tokio::test]
async fn a_cut_is_an_error_and_a_close_is_not() {
    let (mut ours, stock) = pair(false).await;
    drop(stock);
    let cut = ours.read_u8().await.expect_err("a FIN without close_notify");
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);

    let (mut ours, mut stock) = pair(false).await;
    stock.shutdown().await.expect("closing works");
    assert_eq!(ours.read(&mut [0; 9]).await.expect("a clean end"), 0);
    ours.write_all(b"still open this way").await.expect("writing works");
    ours.shutdown().await.expect("closing works");
    let mut got = Vec::new();
    stock.read_to_end(&mut got).await.expect("a clean end");
    assert_eq!(got, b"still open this way");
    assert!(ours.write_all(b"more").await.is_err(), "nothing follows close_notify");
}

#[tokio::test]
async fn garbage_behind_the_handshake_is_answered_by_an_alert_and_ends_both_ways() {
    let (mut ours, mut stock) = pair(false).await;
    let tcp = match &mut stock {
        Stock::Client(stream) => stream.get_mut().0,
        Stock::Server(stream) => stream.get_mut().0,
    };
    tcp.write_all(&[23, 3, 3, 0, 40]).await.expect("writing works");
    tcp.write_all(&[7; 40]).await.expect("writing works");
    let first = ours.read_u8().await.expect_err("it does not decrypt");
    assert_eq!(first.kind(), io::ErrorKind::InvalidData);
    let again = ours.read_u8().await.expect_err("it stays broken");
    assert_eq!(first.to_string(), again.to_string());
    assert!(ours.write_all(b"x").await.is_err());
    let told = stock.read_u8().await.expect_err("an alert comes");
    assert!(told.to_string().contains("BadRecordMac"), "{told}");
}
