//! Worker threads. A connection lives and dies on one worker, so nothing on the data path is shared or locked.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::backend::Backend;
use super::load::Loads;
use super::{memory, share, slice, uring};

/// Jobs are control work (pods that come and go, dumps) and connections that another worker accepted, so a short queue is
/// enough.
const QUEUED_JOBS: usize = 1024;
/// For a worker to come to a job between its connections.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What a worker does with its state, besides its connections.
pub type Job<S> = Box<dyn FnOnce(&Rc<S>) + Send>;

/// The worker threads of the process. Dropping it ends them after the job at hand.
pub struct Workers<S> {
    /// More may come while the process runs, none goes.
    queues: RwLock<Vec<mpsc::Sender<Job<S>>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    make: Arc<dyn Fn(usize) -> S + Send + Sync>,
    loads: Arc<Loads>,
    backend: Backend,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start worker {index}: {source}")]
    Start { index: usize, source: std::io::Error },
    #[error("worker {0} has ended")]
    Ended(usize),
    #[error("worker {0} did not answer within {ANSWER_DEADLINE:?}")]
    Silent(usize),
}

impl<S: 'static> Workers<S> {
    /// Starts as many workers as are active; `make` builds the state of each on its own thread.
    pub fn start<F>(loads: Arc<Loads>, backend: Backend, make: F) -> Result<Self, Error>
    where
        F: Fn(usize) -> S + Send + Sync + 'static,
    {
        let (queues, threads) = (RwLock::default(), Mutex::default());
        let workers = Self { queues, threads, make: Arc::new(make), loads, backend };
        workers.grow(workers.loads.active())?;
        Ok(workers)
    }

    pub fn loads(&self) -> &Arc<Loads> {
        &self.loads
    }

    /// Those that run, active or not.
    pub fn count(&self) -> usize {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Starts what is missing to `count`, or to as many as there can be.
    pub fn grow(&self, count: usize) -> Result<(), Error> {
        for index in self.count()..count.min(self.loads.most()) {
            let (queue, thread) = self.one(index).map_err(|source| Error::Start { index, source })?;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            self.queues.write().unwrap_or_else(PoisonError::into_inner).push(queue);
        }
        Ok(())
    }

    fn one(&self, index: usize) -> std::io::Result<(mpsc::Sender<Job<S>>, thread::JoinHandle<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUED_JOBS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (make, loads, backend) = (self.make.clone(), self.loads.clone(), self.backend);
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            loads.is_worker(index);
            slice::begin(loads, index);
            let work = async { visit(Rc::new(make(index)), jobs).await };
            match ring(index, backend) {
                Some(ring) => ring.block_on(work),
                None => LocalSet::new().block_on(&runtime, work),
            }
        })?;
        Ok((queue, thread))
    }

    fn queue(&self, index: usize) -> Option<mpsc::Sender<Job<S>>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }

    /// Runs a job on one worker, inside its runtime: it may spawn local tasks.
    pub async fn run<F>(&self, index: usize, job: F) -> Result<(), Error>
    where
        F: FnOnce(&Rc<S>) + Send + 'static,
    {
        let queue = self.queue(index).ok_or(Error::Ended(index))?;
        queue.send(Box::new(job)).await.map_err(|_| Error::Ended(index))
    }

    /// The same without waiting; a job that finds no room comes back.
    pub fn try_run(&self, index: usize, job: Job<S>) -> Result<(), Job<S>> {
        let Some(queue) = self.queue(index) else { return Err(job) };
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Closed(job) => job,
        })
    }

    /// Runs a job on one worker and brings its answer.
    pub async fn call<T, F>(&self, index: usize, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Rc<S>) -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.run(index, move |state| drop(answer.send(job(state)))).await?;
        match tokio::time::timeout(ANSWER_DEADLINE, answered).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(Error::Ended(index)),
            Err(_) => Err(Error::Silent(index)),
        }
    }

    /// Asks every worker for a value; those that give none are left out.
    pub async fn ask<T, F>(&self, question: F) -> Vec<T>
    where
        T: Send + 'static,
        F: Fn(&Rc<S>) -> T + Send + Clone + 'static,
    {
        let mut answers = Vec::new();
        for index in 0..self.count() {
            answers.extend(self.call(index, question.clone()).await);
        }
        answers
    }

    /// Ends the workers, dropping whatever they still hold.
    pub fn stop(self) {
        let Self { queues, threads, .. } = self;
        drop(queues);
        for thread in threads.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

/// Made on the worker's own thread. Where it fails the worker does without: it must not be missing.
fn ring(index: usize, backend: Backend) -> Option<uring::Runtime> {
    let made = (backend == Backend::Uring).then(uring::Runtime::new)?;
    made.inspect_err(|error| tracing::warn!(%error, index, "a worker has no io_uring and uses epoll")).ok()
}

async fn visit<S>(state: Rc<S>, mut jobs: mpsc::Receiver<Job<S>>) {
    tokio::task::spawn_local(memory::give_back());
    tokio::task::spawn_local(share::rounds());
    while let Some(job) = jobs.recv().await {
        job(&state);
    }
}
