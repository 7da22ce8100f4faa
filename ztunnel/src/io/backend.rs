//! By what applications' sockets are read and written: epoll, or io_uring where it was asked for and may be used.
//!
//! # Why epoll is the default
//!
//! Measured beside it (`perf`, variant `uring`; development build, 2 cores, Linux 6.18, cubic, medians of 3 rounds), the proxies'
//! CPU is 1.07x for a GB of bulk, 1.08x for an HTTP request, 1.12x for a ping-pong of one byte and 0.96x for a new connection;
//! rates differ by less than they vary, and an idle connection takes more memory. What a batch of operations saves in system
//! calls is spent again, as the code of tokio-uring goes: it waits in epoll for the ring, so what arrives wakes it, is received,
//! wakes it again by its completion, and the ring is entered each time before it sleeps. A ring that the worker sleeps in would
//! do without that; it would need timers, listeners and tunnels of its own.
//!
//! And io_uring is denied by the default seccomp profiles of container runtimes, and by security teams for what was found in it;
//! and tokio-uring can only end the process where the kernel has no memory to take an operation.

use serde::Serialize;

use super::uring;
use crate::config::IoBackend;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Epoll,
    Uring,
}

impl Backend {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// What is in force.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    pub asked: IoBackend,
    pub backend: Backend,
    /// Why it is not what was asked for.
    pub refused: Option<String>,
}

/// Tries what is asked for. A node must not lose its data path for it, so epoll takes the place of what is not to be had.
pub fn choose(asked: IoBackend) -> Choice {
    let tried = match asked {
        IoBackend::Auto | IoBackend::Epoll => Ok(Backend::Epoll),
        IoBackend::Uring => uring::probe().map(|()| Backend::Uring),
    };
    match tried {
        Ok(backend) => {
            tracing::info!(backend = backend.as_str(), "applications' sockets are read and written by");
            Choice { asked, backend, refused: None }
        }
        Err(error) => {
            tracing::warn!(%error, "IO_BACKEND=uring cannot be had here, and epoll is used; IO_BACKEND=epoll ends this warning");
            Choice { asked, backend: Backend::Epoll, refused: Some(error.to_string()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_in_force_where_it_can_be_had() {
        assert_eq!(choose(IoBackend::Auto).backend, Backend::Epoll, "what was measured to be the better one");
        assert_eq!(choose(IoBackend::Epoll).backend, Backend::Epoll);
        let choice = choose(IoBackend::Uring);
        assert_eq!((choice.backend, choice.refused), (Backend::Uring, None), "this machine allows io_uring");
    }
}
