//! Options of connected sockets.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Once};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How dead peers are noticed (interop.md section 1.3, KEEPALIVE_* and USER_TIMEOUT_ENABLED).
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub keepalive: Option<Keepalive>,
    pub user_timeout: Option<Duration>,
    /// Of the kernel's congestion controls, instead of the namespace's own.
    pub congestion: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
}

/// Sets the options that every relayed connection has. What a listener accepts has those of the listener, so there it is done
/// once.
///
/// TCP_NODELAY, because what is relayed has been gathered before, by the application or in a tunnel. Not TCP_QUICKACK: the answer mostly
/// carries the acknowledgement. Set after each read it took a quarter of the HTTP requests per second (28.6k and 30.5k instead of
/// 38.9k and 36.5k, 1.3 to 1.4 times the CPU of each), and gave a ping-pong nothing (p50 167 instead of 165 us).
pub fn prepare<'a>(socket: impl Into<SockRef<'a>>, options: &Options) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout)?;
    }
    if let Some(congestion) = &options.congestion {
        control_congestion(&socket, congestion);
    }
    Ok(())
}

/// A kernel that does not have it is no reason to lose connections.
fn control_congestion(socket: &SockRef<'_>, name: &str) {
    static TOLD: Once = Once::new();
    if let Err(error) = socket.set_tcp_congestion(name.as_bytes()) {
        TOLD.call_once(|| {
            tracing::warn!(
                %error,
                congestion = name,
                "this congestion control cannot be used, the pods' own is: LOCAL_CONGESTION_CONTROL must name one of \
                 net.ipv4.tcp_allowed_congestion_control"
            );
        });
    }
}

/// As [`prepare`] for a socket that a proxy with other settings may have prepared before.
pub fn prepare_anew<'a>(socket: impl Into<SockRef<'a>>, options: &Options) -> io::Result<()> {
    let socket = socket.into();
    socket.set_keepalive(false)?;
    socket.set_tcp_user_timeout(None)?;
    prepare(socket, options)
}

/// Says that nothing more comes (FIN), while the other direction goes on. A connection that is gone needs none.
pub fn end_sending<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    match socket.into().shutdown(Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        ended => ended,
    }
}

/// Makes the close that follows a reset (RFC 9293 section 3.10.7: unsent data is discarded, the peer sees RST).
pub fn reset_on_close<'a>(socket: impl Into<SockRef<'a>>) {
    if let Err(error) = socket.into().set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot turn the close into a reset");
    }
}
