//! Requests and answers in HTTP/1.1 (RFC 9112), as short as they may be: every server and client of the field could stand at either
//! end. An answer has 1 KiB of content.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Mutex, Semaphore, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout};
use ztunnel_lab::namespace::Namespace;

use super::{DEADLINE, Seen, bounded, runtime};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";
const END: &[u8] = b"\r\n\r\n";
const CONTENT: usize = 1024;
/// Connections that a server has at once; more of them wait.
const MOST: usize = 10_000;
/// A server ends after so long without a new connection, and a connection after so long.
const QUIET: Duration = Duration::from_secs(600);
/// After a connection could not be accepted.
const BACK_OFF: Duration = Duration::from_millis(100);

fn answer() -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {CONTENT}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + CONTENT, b'x');
    answer
}

/// Serves on each of these ports, on one thread.
pub fn serve(at: &Namespace, ports: &[u16]) -> io::Result<JoinHandle<()>> {
    accept_each(at, ports, answer_all)
}

/// Sends back what it gets, on one thread.
pub fn serve_echo(at: &Namespace, port: u16) -> io::Result<JoinHandle<()>> {
    accept_each(at, &[port], |mut stream| async move {
        stream.set_nodelay(true)?;
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => stream.write_all(&buffer[..count]).await?,
            }
        }
    })
}

/// Sends without end to whoever connects, on one thread.
pub fn serve_endless(at: &Namespace, port: u16) -> io::Result<JoinHandle<()>> {
    accept_each(at, &[port], |mut stream| async move {
        let block = vec![b'x'; 64 * 1024];
        loop {
            stream.write_all(&block).await?;
        }
    })
}

/// Until all ports are quiet.
fn accept_each<F: Future<Output = io::Result<()>> + 'static>(
    at: &Namespace,
    ports: &[u16],
    handle: impl Fn(TcpStream) -> F + Send + Clone + 'static,
) -> io::Result<JoinHandle<()>> {
    let listeners: Vec<_> = ports.iter().map(|&port| at.listen(port)).collect::<io::Result<_>>()?;
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    let runtime = runtime()?;
    Ok(std::thread::spawn(move || {
        LocalSet::new().block_on(&runtime, async move {
            let (room, last) = (Arc::new(Semaphore::new(MOST)), Rc::new(Cell::new(Instant::now())));
            let mut accepting = JoinSet::new();
            for listener in listeners {
                accepting.spawn_local(accept(listener, room.clone(), last.clone(), handle.clone()));
            }
            // The first that ends has seen that all are quiet.
            accepting.join_next().await;
        });
    }))
}

async fn accept<F: Future<Output = io::Result<()>> + 'static>(
    listener: std::net::TcpListener,
    room: Arc<Semaphore>,
    last: Rc<Cell<Instant>>,
    handle: impl Fn(TcpStream) -> F,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let next = async || {
        let place = Arc::clone(&room).acquire_owned().await;
        (place, listener.accept().await)
    };
    loop {
        let (place, stream) = match timeout(QUIET, next()).await {
            Ok((place, Ok((stream, _)))) => (place, stream),
            Ok((_, Err(_))) => {
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
            Err(_) if last.get().elapsed() < QUIET => continue,
            Err(_) => return Ok(()),
        };
        last.set(Instant::now());
        let handled = timeout(QUIET, handle(stream));
        tokio::task::spawn_local(async move {
            let _ = handled.await;
            drop(place);
        });
    }
}

async fn answer_all(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = answer();
    let (mut buffer, mut held) = ([0; 4096], 0);
    loop {
        match stream.read(&mut buffer[held..]).await? {
            0 => return Ok(()),
            count => held += count,
        }
        while let Some(at) = buffer[..held].windows(END.len()).position(|window| window == END) {
            stream.write_all(&answer).await?;
            buffer.copy_within(at + END.len()..held, 0);
            held -= at + END.len();
        }
    }
}

/// When the next request is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    /// When the one before is answered: a closed loop.
    Answered,
    /// So many a second over all connections, whatever becomes of them: an open loop. A request's time counts from when
    /// it was due, not from when a connection was free, so that a stall is seen in whole.
    Rate(f64),
}

/// So many connections, kept alive, for so long. Opening them is not counted.
pub fn requests(
    from: &Namespace,
    to: SocketAddr,
    connections: usize,
    arrival: Arrival,
    time: Duration,
) -> io::Result<Seen> {
    clients(from, connections, arrival, time, move |turn| async move {
        // One that cannot be opened fails with its first request.
        let mut stream = bounded(open(to)).await.ok();
        let mut buffer = answer();
        let until = turn.begin().await;
        loop {
            let started = match arrival {
                Arrival::Answered if Instant::now() >= until => return,
                Arrival::Answered => Instant::now(),
                Arrival::Rate(_) => match turn.dues.lock().await.recv().await {
                    Some(due) => due,
                    None => return,
                },
            };
            let outcome = bounded(one(&mut stream, to, &mut buffer)).await;
            if outcome.is_err() {
                stream = None;
            }
            turn.seen.borrow_mut().note(outcome.map(|()| started.elapsed()));
        }
    })
}

/// A connection for each request, so many at once, for so long. Each client goes from one server to the next.
pub fn connect_each(from: &Namespace, to: &[SocketAddr], at_once: usize, time: Duration) -> io::Result<Seen> {
    let to = to.to_vec();
    clients(from, at_once, Arrival::Answered, time, move |turn| {
        let servers = to.clone();
        async move {
            let mut buffer = answer();
            let until = turn.begin().await;
            for to in servers.into_iter().cycle() {
                let started = Instant::now();
                if started >= until {
                    return;
                }
                let outcome = bounded(one(&mut None, to, &mut buffer)).await;
                turn.seen.borrow_mut().note(outcome.map(|()| started.elapsed()));
            }
        }
    })
}

async fn one(stream: &mut Option<TcpStream>, to: SocketAddr, buffer: &mut [u8]) -> io::Result<()> {
    let stream = match stream {
        Some(stream) => stream,
        none => none.insert(open(to).await?),
    };
    stream.write_all(REQUEST).await?;
    stream.read_exact(buffer).await.map(drop)
}

async fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the clients of one load share.
struct Turn {
    ready: Barrier,
    time: Duration,
    dues: Mutex<mpsc::UnboundedReceiver<Instant>>,
    seen: RefCell<Seen>,
}

impl Turn {
    /// When all clients are ready; returns when they end.
    async fn begin(&self) -> Instant {
        self.ready.wait().await;
        Instant::now() + self.time
    }
}

/// Runs clients on one thread.
fn clients<F: Future<Output = ()> + 'static>(
    from: &Namespace,
    count: usize,
    arrival: Arrival,
    time: Duration,
    client: impl Fn(Rc<Turn>) -> F + Send + 'static,
) -> io::Result<Seen> {
    from.run(move || {
        let (runtime, all) = (runtime()?, LocalSet::new());
        let (tell, dues) = mpsc::unbounded_channel();
        let (ready, seen) = (Barrier::new(count + 1), RefCell::default());
        let turn = Rc::new(Turn { ready, time, dues: Mutex::new(dues), seen });
        runtime.block_on(all.run_until(async {
            let each: Vec<_> = (0..count).map(|_| tokio::task::spawn_local(client(turn.clone()))).collect();
            let until = turn.begin().await;
            let from = until - time;
            match arrival {
                Arrival::Rate(rate) => drop(std::thread::spawn(move || pace(from, until, rate, &tell))),
                Arrival::Answered => drop(tell),
            }
            for one in each {
                one.await.map_err(io::Error::other)?;
            }
            turn.seen.borrow_mut().elapsed = from.elapsed();
            io::Result::Ok(())
        }))?;
        Ok(turn.seen.take())
    })
}

/// Tells when each request is due, then. A thread of its own, because a runtime's timers have no more than milliseconds.
fn pace(from: Instant, until: Instant, rate: f64, tell: &mpsc::UnboundedSender<Instant>) {
    for number in 0_u32.. {
        let due = from + Duration::from_secs_f64(f64::from(number) / rate);
        if due >= until {
            return;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if tell.send(due).is_err() {
            return;
        }
    }
}

/// Opens a connection to an endless sender and reads nothing of it while `work` runs.
pub fn stall<T>(from: &Namespace, to: SocketAddr, work: impl FnOnce() -> T) -> io::Result<T> {
    let mut stream = from.connect(to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    // A proxy accepts before it has reached the sender.
    stream.read_exact(&mut [0])?;
    let done = work();
    match stream.peek(&mut [0])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(done),
    }
}
