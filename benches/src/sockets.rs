//! Connections over loopback, and the proxy's relay between two of them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use ztunnel::relay::{Side, relay, tcp};

/// How long an end waits for the other, when it is not a runtime's.
const DEADLINE: Duration = Duration::from_secs(60);

/// One as a worker has it.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Both ends of a connection.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("it connects");
    let (far, _) = listener.accept().expect("it was connected to");
    for end in [&near, &far] {
        end.set_nodelay(true).expect("an option");
        end.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
        end.set_write_timeout(Some(DEADLINE)).expect("a timeout above zero");
    }
    (near, far)
}

/// For a runtime.
pub fn asynchronous(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).expect("an option");
    tokio::net::TcpStream::from_std(stream).expect("a runtime is here")
}

/// The relay between two connections, until both directions ended.
pub async fn relayed(near: TcpStream, far: TcpStream) {
    let (mut near, mut far) = (asynchronous(near), asynchronous(far));
    let near = tcp::halves(&mut near, Side::Application);
    relay(near, tcp::halves(&mut far, Side::Far), |_| {}, |_| {}).await.expect("clean ends");
}

/// Sends messages of this length back, until there is no other.
pub fn echo(mut stream: TcpStream, length: usize) {
    let mut buffer = vec![0; length];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer).expect("whoever asked reads the answer");
    }
}
