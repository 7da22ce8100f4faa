//! Follows what the process may use: CPUs and memory of a container can be changed while it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, Host};
use crate::proxy::Shared;

const PERIOD: Duration = Duration::from_secs(5);

/// Keeps the budgets of memory in force, and tells how many workers there should be.
pub(super) fn follow(config: &Config, shared: Arc<Shared>) -> watch::Receiver<usize> {
    let (workers, memory) = (config.worker_rule.clone(), config.memory);
    let (tell, sizes) = watch::channel(config.workers);
    tokio::task::spawn_local(async move {
        let mut limit = None;
        loop {
            let now = Host::memory_limit();
            let (process, pod) = memory.budgets(now);
            shared.memory.set(process, pod);
            if now != limit {
                limit = now;
                tracing::info!(limit, process, pod, "budgets of memory, in bytes");
            }
            let count = workers.count(Host::cpus());
            tell.send_if_modified(|known| std::mem::replace(known, count) != count);
            tokio::time::sleep(PERIOD).await;
        }
    });
    sizes
}
