//! Worker threads. A connection lives and dies on one worker, so nothing on the data path is shared or locked.

use std::rc::Rc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::{memory, share};

/// Jobs are control work (pods that come and go, dumps), so a short queue is enough.
const QUEUED_JOBS: usize = 1024;
/// For a worker to come to a job between its connections.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

type Job<S> = Box<dyn FnOnce(&Rc<S>) + Send>;

/// The worker threads of the process. Dropping it ends them after the job at hand.
pub struct Workers<S> {
    queues: Vec<mpsc::Sender<Job<S>>>,
    threads: Vec<thread::JoinHandle<()>>,
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
    /// Starts `count` workers; `make` builds the state of each on its own thread.
    pub fn start<F>(count: usize, make: F) -> Result<Self, Error>
    where
        F: Fn(usize) -> S + Send + Clone + 'static,
    {
        let mut workers = Self { queues: Vec::new(), threads: Vec::new() };
        for index in 0..count.max(1) {
            let (queue, jobs) = mpsc::channel(QUEUED_JOBS);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Error::Start { index, source })?;
            let make = make.clone();
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || LocalSet::new().block_on(&runtime, visit(Rc::new(make(index)), jobs)))
                .map_err(|source| Error::Start { index, source })?;
            workers.queues.push(queue);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub fn count(&self) -> usize {
        self.queues.len()
    }

    /// Runs a job on one worker, inside its runtime: it may spawn local tasks.
    pub async fn run<F>(&self, index: usize, job: F) -> Result<(), Error>
    where
        F: FnOnce(&Rc<S>) + Send + 'static,
    {
        self.queues[index].send(Box::new(job)).await.map_err(|_| Error::Ended(index))
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
    pub fn stop(mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

async fn visit<S>(state: Rc<S>, mut jobs: mpsc::Receiver<Job<S>>) {
    tokio::task::spawn_local(memory::give_back());
    tokio::task::spawn_local(share::rounds());
    while let Some(job) = jobs.recv().await {
        job(&state);
    }
}
