//! SIGINT and SIGTERM end a run between two scenarios, so that no namespace and no process is left behind.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the signals do not end the process.
    pub fn watched() -> io::Result<Self> {
        let interrupt = Self::default();
        let told = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let (mut first, mut second) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        drop(guard);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = first.recv() => {}, _ = second.recv() => {} }
                eprintln!("interrupted; the scenario at hand is the last");
                told.0.store(true, Ordering::Relaxed);
            });
        });
        Ok(interrupt)
    }

    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
