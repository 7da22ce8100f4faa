//! What the proxy tells about itself: metrics (interop.md sections 11.1 and 11.2), log lines (11.3), and `events`,
//! whose structs do both for everything that is both counted and logged.
//!
//! Owns names, labels and formats. Must not know sockets, routing or who serves the metrics: it is handed facts and
//! gives back text.

mod access_log;
mod certificates;
mod discovery;
pub mod events;
mod labels;
mod levels;
mod metrics;
pub mod names;
mod openmetrics;
mod pods;

use std::io;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;

pub use certificates::CertificateFacts;
pub use discovery::{DiscoveryFacts, TypeFacts};
pub use levels::{Levels, SpecError};
pub use metrics::{Metrics, OpenSocket};
pub use pods::PodMeters;

/// Lines that wait for stdout. When it is slow, further lines are dropped and counted: a log never holds up traffic.
const QUEUE: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("RUST_LOG={0:?} is not a list of LEVEL and SCOPE=LEVEL")]
    Filter(String),
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// The running log. Keep it until the process ends: dropping it writes out what is still queued.
#[derive(Debug)]
pub struct Log {
    pub levels: Levels,
    /// Hand this to [`Metrics::count_dropped_lines`].
    pub dropped: ErrorCounter,
    _writer: WorkerGuard,
}

/// Starts logging to stdout, once per process.
pub fn init(rust_log: &str, json: bool) -> Result<Log, Error> {
    let targets: Targets = rust_log.parse().map_err(|_| Error::Filter(rust_log.to_owned()))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .thread_name("log")
        .finish(io::stdout());
    let dropped = writer.error_counter();
    let (filter, handle) = reload::Layer::new(Targets::new());
    let subscriber =
        tracing_subscriber::registry().with(filter).with(access_log::layer(json, SystemTime, writer));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::AlreadySet)?;
    let levels = Levels::new(&targets, move |targets| handle.reload(targets).is_ok());
    Ok(Log { levels, dropped, _writer: guard })
}

/// Levels that are in force nowhere.
#[cfg(test)]
pub(crate) fn levels_for_tests(initial: &str) -> Levels {
    levels::tests::levels(initial).0
}
