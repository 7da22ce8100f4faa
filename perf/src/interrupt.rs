//! SIGINT and SIGTERM. They end a run of the lab between two scenarios, so that no namespace and no process is left behind.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the signals do not end the process.
    pub fn watched() -> io::Result<Self> {
        let interrupt = Self::default();
        let told = interrupt.clone();
        on_signal(move || {
            eprintln!("interrupted; the scenario at hand is the last");
            told.0.store(true, Ordering::Relaxed);
        })?;
        Ok(interrupt)
    }

    /// Where nothing is left behind they end it at once, also the first process of a container, which ignores them otherwise.
    pub fn ends() -> io::Result<()> {
        on_signal(|| std::process::exit(128 + Signal::SIGTERM as i32))
    }

    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn on_signal(then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let (mut first, mut second) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = first.recv() => {}, _ = second.recv() => {} }
        });
        then();
    });
    Ok(())
}
