//! What a relay of TCP connections promises, on either backend.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, coop};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::io::share::{Account, as_one_of};
use crate::io::{pipe, uring};

const DEADLINE: Duration = Duration::from_secs(20);
/// A socket of which nobody takes anything for so long is full.
const FULL: Duration = Duration::from_millis(200);

/// Fails where io_uring is not to be had: what is not tested is not promised.
fn on_both<F: Future<Output = ()>>(test: impl Fn() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let checked = async |is_uring| {
        assert_eq!(uring::is_running(), is_uring);
        timeout(DEADLINE, test()).await.expect("within the deadline");
    };
    LocalSet::new().block_on(&runtime, checked(false));
    uring::probe().expect("this machine allows io_uring");
    uring::Runtime::new().expect("a ring").block_on(checked(true));
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let (one, other) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (one.expect("connected"), other.expect("accepted").0)
}

/// An application and another, with a relay between them.
struct Relayed {
    client: TcpStream,
    server: TcpStream,
    counts: Rc<[Cell<usize>; 2]>,
    /// Ends it as policy does.
    cut: CancellationToken,
    task: JoinHandle<Option<Result<(), Broken>>>,
}

async fn relayed() -> Relayed {
    let ((client, near), (far, server)) = (pair().await, pair().await);
    let counts = Rc::<[Cell<usize>; 2]>::default();
    let cut = CancellationToken::new();
    let (counted, told) = (counts.clone(), cut.clone());
    let task = tokio::task::spawn_local(async move {
        let (mut app, mut far) = (Connection::new(near), Connection::new(far));
        let count = |way: usize| {
            let counted = counted.clone();
            move |bytes| counted[way].set(counted[way].get() + bytes)
        };
        let ended = tokio::select! {
            ended = app.relay_to(&mut far, count(0), count(1)) => Some(ended),
            () = told.cancelled() => None,
        };
        if ended.is_none() {
            [&app, &far].into_iter().for_each(Connection::reset_on_close);
        }
        ended
    });
    Relayed { client, server, counts, cut, task }
}

async fn all_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("a clean end");
    bytes
}

async fn is_reset(mut stream: TcpStream) {
    let error = loop {
        match stream.read(&mut [0; 4096]).await {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
}

async fn echo(relayed: &mut Relayed, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    relayed.client.write_all(bytes).await.expect("sent");
    relayed.server.read_exact(&mut back).await.expect("it arrives");
    relayed.server.write_all(&back).await.expect("sent");
    relayed.client.read_exact(&mut back).await.expect("it comes back");
    assert_eq!(back, bytes);
}

#[test]
fn each_direction_ends_by_itself_and_is_counted() {
    on_both(async || {
        let mut ends = relayed().await;
        ends.client.write_all(b"hello").await.expect("sent");
        ends.client.shutdown().await.expect("half-closed");
        assert_eq!(all_of(&mut ends.server).await, b"hello");
        ends.server.write_all(b"a longer answer").await.expect("sent");
        drop(ends.server);
        assert_eq!(all_of(&mut ends.client).await, b"a longer answer");
        assert!(matches!(ends.task.await, Ok(Some(Ok(())))));
        assert_eq!(ends.counts.each_ref().map(Cell::get), [5, 15]);
    });
}

#[test]
fn much_arrives_unharmed_both_ways_at_once() {
    const LENGTH: usize = 20_000_000;
    on_both(async || {
        let ends = relayed().await;
        let sent: Vec<u8> =
            (0..LENGTH as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut tasks = Vec::new();
        for stream in [ends.client, ends.server] {
            let (mut read, mut write) = stream.into_split();
            let (bytes, expected) = (sent.clone(), sent.clone());
            tasks.push(tokio::task::spawn_local(async move {
                write.write_all(&bytes).await.expect("sent");
                write.shutdown().await.expect("half-closed");
                drop(write);
            }));
            tasks.push(tokio::task::spawn_local(async move {
                let mut found = Vec::new();
                read.read_to_end(&mut found).await.expect("a clean end");
                assert!(found == expected, "{} bytes came, and they differ", found.len());
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        assert!(matches!(ends.task.await, Ok(Some(Ok(())))));
        assert_eq!(ends.counts.each_ref().map(Cell::get), [LENGTH, LENGTH]);
    });
}

#[test]
fn a_reset_is_carried_both_ways() {
    on_both(async || {
        let mut ends = relayed().await;
        echo(&mut ends, b"x").await;
        reset(ends.client);
        is_reset(ends.server).await;
        assert!(matches!(ends.task.await, Ok(Some(Ok(())))), "an ordinary way to end");
        let ends = relayed().await;
        reset(ends.server);
        is_reset(ends.client).await;
    });
}

#[test]
fn a_reset_after_a_half_close_is_carried_although_the_other_side_is_silent() {
    on_both(async || {
        let mut ends = relayed().await;
        ends.client.shutdown().await.expect("half-closed");
        assert_eq!(ends.server.read(&mut [0]).await.expect("a clean end"), 0);
        // The other direction has moved since, and is still watched.
        ends.server.write_all(b"x").await.expect("sent");
        ends.client.read_exact(&mut [0]).await.expect("received");
        reset(ends.client);
        assert!(matches!(ends.task.await, Ok(Some(Ok(())))));
        let gone = async { while ends.server.write_all(b"x").await.is_ok() {} };
        gone.await;
    });
}

#[test]
fn a_relay_that_is_cut_resets_both_ends_at_once_whatever_is_in_flight() {
    on_both(async || {
        let mut idle = relayed().await;
        echo(&mut idle, b"x").await;
        idle.cut.cancel();
        is_reset(idle.client).await;
        is_reset(idle.server).await;

        let stuck = relayed().await;
        fill(&stuck.client).await;
        stuck.cut.cancel();
        is_reset(stuck.client).await;
        is_reset(stuck.server).await;
        assert_eq!(pipe::lent(), 0);
    });
}

/// Nobody reads, so that at some time nothing more is taken.
async fn fill(stream: &TcpStream) -> usize {
    let (bytes, mut sent) = (vec![7; 1 << 20], 0);
    while let Ok(writable) = timeout(FULL, stream.writable()).await {
        writable.expect("it lives");
        sent += stream.try_write(&bytes).unwrap_or(0);
    }
    sent
}

#[test]
fn a_relay_that_is_dropped_closes_both_ends() {
    on_both(async || {
        let mut ends = relayed().await;
        echo(&mut ends, b"x").await;
        ends.task.abort();
        assert!(all_of(&mut ends.client).await.is_empty());
        assert!(all_of(&mut ends.server).await.is_empty());
    });
}

/// More than a ring has buffers for, and more again after what was in flight was dropped.
#[test]
fn many_connections_speak_at_once_again_and_again() {
    on_both(async || {
        for _ in 0..4 {
            let mut many = Vec::new();
            for _ in 0..150 {
                many.push(relayed().await);
            }
            for ends in &mut many {
                ends.client.write_all(b"ping").await.expect("sent");
            }
            for ends in &mut many {
                ends.server.read_exact(&mut [0; 4]).await.expect("it arrives");
            }
            for ends in &mut many {
                ends.client.write_all(b"lost").await.expect("sent");
                ends.cut.cancel();
            }
        }
        echo(&mut relayed().await, b"x").await;
    });
}

#[test]
fn few_connections_keep_a_large_buffer_and_none_that_has_ended() {
    on_both(async || {
        let mut many = Vec::new();
        for _ in 0..20 {
            many.push(relayed().await);
        }
        let bytes = vec![7; 300_000];
        for ends in &mut many {
            let Relayed { client, server, .. } = ends;
            let mut back = vec![0; bytes.len()];
            let (sent, read) = tokio::join!(client.write_all(&bytes), server.read_exact(&mut back));
            sent.expect("sent");
            read.expect("it arrives");
        }
        assert!(uring::lent() <= 8, "{} are lent", uring::lent());
        for Relayed { client, server, task, .. } in many {
            drop((client, server));
            assert!(matches!(task.await, Ok(Some(Ok(())))));
        }
        while uring::lent() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

/// More than there are pipes for.
#[test]
fn few_connections_keep_a_pipe_and_none_that_moves_or_has_ended() {
    on_both(async || {
        let mut many = Vec::new();
        for _ in 0..12 {
            let ends = relayed().await;
            let sent = fill(&ends.client).await;
            many.push((ends, sent));
        }
        let all = if uring::is_running() { 0 } else { 8 };
        assert_eq!(pipe::lent(), all);
        for (Relayed { mut client, mut server, task, counts, .. }, sent) in many {
            client.shutdown().await.expect("half-closed");
            assert!(all_of(&mut server).await == vec![7; sent]);
            assert_eq!(counts[0].get(), sent);
            drop((client, server));
            assert!(matches!(task.await, Ok(Some(Ok(())))));
        }
        assert_eq!(pipe::lent(), 0);
    });
}

#[test]
fn a_reset_is_carried_although_much_is_on_its_way() {
    on_both(async || {
        let ends = relayed().await;
        fill(&ends.client).await;
        reset(ends.server);
        is_reset(ends.client).await;
        assert!(matches!(ends.task.await, Ok(Some(Ok(())))), "an ordinary way to end");
        assert_eq!(pipe::lent(), 0);
    });
}

/// It is not carried on as such (RFC 6093 section 6), and all that stands before and after it is.
#[test]
fn urgent_data_holds_nothing_up() {
    const LENGTH: usize = 4 << 20;
    on_both(async || {
        let Relayed { mut client, mut server, task, .. } = relayed().await;
        let bytes = vec![7; LENGTH];
        let send = async {
            for _ in 0..4 {
                client.write_all(&bytes).await.expect("sent");
                client.writable().await.expect("it lives");
                SockRef::from(&client).send_out_of_band(b"!").expect("sent");
            }
            client.write_all(b"the end").await.expect("sent");
            client.shutdown().await.expect("half-closed");
        };
        let ((), read) = tokio::join!(send, all_of(&mut server));
        assert_eq!(read.iter().filter(|byte| **byte == 7).count(), 4 * LENGTH);
        assert!(read.ends_with(b"the end"));
        drop((client, server));
        assert!(matches!(task.await, Ok(Some(Ok(())))));
    });
}

#[test]
fn bytes_move_although_the_worker_never_sleeps() {
    on_both(async || {
        let account = Account::new(|_| {});
        let busy = tokio::task::spawn_local(as_one_of(&account, async {
            // It uses up each turn, and is to run again at once.
            loop {
                coop::consume_budget().await;
            }
        }));
        let mut ends = relayed().await;
        for _ in 0..20 {
            echo(&mut ends, b"x").await;
        }
        busy.abort();
    });
}
