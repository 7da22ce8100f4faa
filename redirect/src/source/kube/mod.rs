//! Pods of this node that Kubernetes says belong to the mesh.
//!
//! Follows all namespaces (their metadata) and the pods of one node, decides who is enrolled (`enrolment` has the table), and
//! finds each one's network namespace. Labels count both ways at once, without a restart of a pod. While the API server is away
//! nothing changes: what is captured stays so.
//!
//! ```text
//!  followers ─▶ cluster ─▶ members ◀─▶ locate         (one look through the processes for all that wait)
//!  the plugin ─▶ adding ──────┤
//!                             ▼
//!                  update, as soon as the agent takes one: however much has happened, it is one list
//! ```
//!
//! The first whole list is told once everything was heard of and looked for; until then nothing that an earlier agent captured
//! is let go. A member whose namespace is not found is named as such, so that its rules stay.

mod adding;
mod cluster;
mod enrolment;
mod events;
mod mark;
mod members;
mod object;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use reflector::{Client, Follower, Timing, Told, Trouble};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use self::adding::{Adding, Answer, Next};
use self::cluster::Cluster;
use self::events::Events;
use self::mark::Marks;
use self::members::Members;
use self::object::{Kind, NAMESPACE, POD};
use super::{Ask, Notice, Served, Update};
use crate::cni::{self, Enrolled, Sandbox};
use crate::locate::{self, Located, Locator};

/// Objects that were heard of and not taken yet; the followers wait behind them.
const QUEUE: usize = 256;
/// How often it is looked whether namespaces are still there.
const PERIOD: Duration = Duration::from_secs(1);
/// Looks through the processes are no closer together.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// For one object of the API.
const ANSWER: Duration = Duration::from_secs(2);
/// Sandboxes that wait at a time: more than a node can have pods.
const MOST_ADDING: usize = 4096;

/// Whom to follow, and where.
pub struct Config {
    pub api: reflector::Config,
    pub timing: Timing,
    pub node: String,
    pub locator: Locator,
    pub cni: Option<Cni>,
}

/// What the plugin asks, and what it is told.
pub struct Cni {
    pub requests: mpsc::Receiver<cni::Request>,
    pub enrolled: Enrolled,
    /// A sandbox is answered by then; less than the plugin waits.
    pub deadline: Duration,
}

struct Source {
    client: Client,
    locator: Locator,
    cluster: Cluster,
    members: Members,
    events: Events,
    marks: Marks,
    enrolled: Option<Enrolled>,
    deadline: Duration,
    adding: HashMap<u64, Adding>,
    asks: VecDeque<Ask>,
    work: JoinSet<Done>,
    last_adding: u64,
    last_look: Instant,
    is_looking: bool,
    /// The members must be derived from the cluster again.
    stale: bool,
    /// The agent has not heard of what the members are now.
    untold: bool,
    /// The agent was told everything once.
    known: bool,
}

enum Done {
    Looked(Vec<(String, Result<Located, locate::Error>)>),
    Proved { adding: u64, uid: String, outcome: Result<Located, locate::Error> },
    Namespace { adding: u64, outcome: Result<Option<Value>, Trouble> },
    Pod { adding: u64, outcome: Result<Option<Value>, Trouble> },
}

/// Begins to follow until nobody listens.
pub fn start(
    config: Config,
    updates: mpsc::Sender<Update>,
    notices: mpsc::Receiver<Notice>,
    served: watch::Receiver<Served>,
) -> Result<(), reflector::Error> {
    let Config { api, timing, node, locator, cni } = config;
    let client = reflector::client(api)?;
    let (tell, told) = mpsc::channel(QUEUE);
    let mut followers = JoinSet::new();
    for (kind, resource) in [(Kind::Namespace, object::namespaces()), (Kind::Pod, object::pods_of(&node))] {
        followers.spawn(Follower::new(client.clone(), resource, timing, kind, tell.clone()).run());
    }
    let (requests, enrolled, deadline) = match cni {
        Some(Cni { requests, enrolled, deadline }) => (Some(requests), Some(enrolled), deadline),
        None => (None, None, Duration::ZERO),
    };
    let source = Source {
        events: Events::new(client.clone(), node),
        marks: Marks::new(client.clone(), served),
        client,
        locator,
        cluster: Cluster::default(),
        members: Members::default(),
        enrolled,
        deadline,
        adding: HashMap::new(),
        asks: VecDeque::new(),
        work: JoinSet::new(),
        last_adding: 0,
        last_look: Instant::now(),
        is_looking: false,
        stale: false,
        untold: true,
        known: false,
    };
    tokio::spawn(async move {
        let _followers = followers;
        source.run(Inputs { told, requests, notices }, updates).await;
    });
    Ok(())
}

struct Inputs {
    told: mpsc::Receiver<(Kind, Told)>,
    requests: Option<mpsc::Receiver<cni::Request>>,
    notices: mpsc::Receiver<Notice>,
}

impl Source {
    async fn run(mut self, mut inputs: Inputs, updates: mpsc::Sender<Update>) {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Vec::with_capacity(QUEUE);
        loop {
            let due = self.due();
            tokio::select! {
                _ = inputs.told.recv_many(&mut heard, QUEUE) => {
                    for (kind, told) in heard.drain(..) {
                        self.cluster.take(kind, told);
                    }
                    self.stale = true;
                }
                Some(request) = next(&mut inputs.requests) => self.requested(request),
                Some(Ok(done)) = self.work.join_next() => self.done(done),
                () = self.marks.wait() => {}
                Some(notice) = inputs.notices.recv() => drop(self.say(notice)),
                permit = updates.reserve(), if self.has_news() => match permit {
                    Ok(permit) => permit.send(self.update()),
                    Err(_) => return,
                },
                () = sleep_until(due), if self.waits() => {}
                _ = tick.tick() => {
                    self.untold |= self.members.look_after();
                    self.events.forget_others(&self.cluster);
                }
            }
            self.step();
        }
    }

    /// Does whatever follows from what is known now.
    fn step(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.reconcile();
        }
        let adding: Vec<u64> = self.adding.keys().copied().collect();
        for id in adding {
            self.advance(id);
        }
        if std::mem::take(&mut self.stale) {
            self.reconcile();
        }
        self.marks.reconcile(&self.cluster, &self.members);
        if !self.is_looking && Instant::now() >= self.last_look + BETWEEN_LOOKS {
            let wanted = self.members.due();
            if !wanted.is_empty() {
                self.is_looking = true;
                let locator = self.locator.clone();
                self.work.spawn(async move { Done::Looked(locator.find(wanted).await) });
            }
        }
    }

    fn reconcile(&mut self) {
        let (differ, notices) = self.members.reconcile(&self.cluster);
        self.untold |= differ;
        self.say_all(notices);
        if let Some(enrolled) = self.enrolled.as_mut().filter(|_| self.cluster.knows_namespaces()) {
            enrolled.publish(&self.cluster.enrolled());
        }
    }

    fn requested(&mut self, request: cni::Request) {
        match request {
            cni::Request::Add { sandbox, answer } | cni::Request::Check { sandbox, answer } => {
                if self.adding.len() >= MOST_ADDING {
                    return answered(answer, Err("too many sandboxes wait for the agent".to_owned()));
                }
                self.last_adding += 1;
                let deadline = Instant::now() + self.deadline;
                self.adding.insert(self.last_adding, Adding::new(sandbox, answer, deadline));
            }
            cni::Request::Del { container_id, namespace, name, uid } => {
                let known = self.cluster.pod_named(&namespace, &name, uid.as_deref());
                if let Some(uid) = known.map(|pod| pod.uid.clone()) {
                    self.untold |= self.members.sandbox_gone(&uid, &container_id);
                    self.stale |= self.cluster.unlearn_pod(&uid);
                }
                self.adding.retain(|_, adding| adding.sandbox.container_id != container_id);
            }
        }
    }

    /// One step of a sandbox that waits.
    fn advance(&mut self, id: u64) {
        let Some(adding) = self.adding.get_mut(&id).filter(|adding| !adding.busy) else { return };
        let Sandbox { namespace, name, netns, addresses, .. } = &adding.sandbox;
        let client = self.client.clone();
        let patience = ANSWER.min(adding.deadline.saturating_duration_since(Instant::now()));
        match adding.next(&self.cluster) {
            Next::Wait if !adding.answer.is_closed() => return,
            Next::Wait | Next::Pass => return self.finish(id, Ok(())),
            Next::Fail(why) => return self.finish(id, Err(why)),
            Next::AskNamespace => {
                let path = format!("/api/v1/namespaces/{namespace}");
                self.work.spawn(async move {
                    let outcome = reflector::get(&client, &path, NAMESPACE, patience).await;
                    Done::Namespace { adding: id, outcome }
                });
            }
            Next::AskPod => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                self.work.spawn(async move {
                    let outcome = reflector::get(&client, &path, POD, patience).await;
                    Done::Pod { adding: id, outcome }
                });
            }
            Next::Capture(uid) => {
                let (locator, netns, addresses) = (self.locator.clone(), netns.clone(), addresses.clone());
                self.work.spawn(async move {
                    let outcome = locator.prove(&netns, &addresses).await;
                    Done::Proved { adding: id, uid, outcome }
                });
            }
        }
        adding.busy = true;
    }

    fn finish(&mut self, id: u64, outcome: Result<(), String>) {
        if let Some(adding) = self.adding.remove(&id) {
            answered(adding.answer, outcome);
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Looked(outcomes) => {
                (self.is_looking, self.last_look) = (false, Instant::now());
                let mut notices = Vec::new();
                for (uid, outcome) in outcomes {
                    self.untold |= self.members.looked(&uid, outcome, &mut notices);
                }
                self.say_all(notices);
            }
            Done::Namespace { adding, outcome } => {
                self.stale = true;
                let Some(adding) = self.adding.get_mut(&adding) else { return };
                adding.busy = false;
                let before = self.enrolled.as_ref();
                let enrolled = before.is_some_and(|before| before.contains(&adding.sandbox.namespace));
                adding.heard_of_namespace(outcome, enrolled, &mut self.cluster);
            }
            Done::Pod { adding, outcome } => {
                self.stale = true;
                let Some(adding) = self.adding.get_mut(&adding) else { return };
                adding.busy = false;
                adding.heard_of_pod(outcome, &mut self.cluster);
            }
            Done::Proved { adding, uid, outcome } => self.proved(adding, uid, outcome),
        }
    }

    fn proved(&mut self, id: u64, uid: String, outcome: Result<Located, locate::Error>) {
        let Some(Adding { sandbox, answer, deadline, .. }) = self.adding.remove(&id) else { return };
        match outcome {
            Err(error) => answered(answer, Err(error.to_string())),
            // It left the mesh meanwhile.
            Ok(_) if !self.members.contains(&uid) => answered(answer, Ok(())),
            Ok(located) => {
                self.members.place(&uid, located, sandbox.container_id);
                let (ask, outcome) = oneshot::channel();
                self.asks.push_back(Ask { uid, answer: ask });
                let waited = self.deadline;
                tokio::spawn(async move {
                    let outcome = match timeout_at(deadline, outcome).await {
                        Ok(Ok(outcome)) => outcome,
                        Ok(Err(_)) => Err("the agent ends".to_owned()),
                        Err(_) => Err(format!("no proxy serves the pod after {waited:?}")),
                    };
                    answered(answer, outcome);
                });
            }
        }
    }

    fn has_news(&self) -> bool {
        !self.asks.is_empty() || self.untold && self.may_complete()
    }

    fn may_complete(&self) -> bool {
        self.known || self.cluster.is_complete() && self.members.settled()
    }

    fn update(&mut self) -> Update {
        self.known = self.may_complete();
        // What was told for the sake of a question was not everything.
        self.untold = !self.known;
        let (pods, unlocated) = self.members.told();
        Update { pods, unlocated, complete: self.known, ask: self.asks.pop_front() }
    }

    fn waits(&self) -> bool {
        !self.adding.is_empty() || !self.is_looking && self.members.next_look().is_some()
    }

    fn due(&self) -> Instant {
        let adding = self.adding.values().filter(|adding| !adding.busy).map(Adding::due).min();
        let look = self.members.next_look().filter(|_| !self.is_looking);
        let look = look.map(|due| due.max(self.last_look + BETWEEN_LOOKS));
        let far = Instant::now() + PERIOD;
        adding.into_iter().chain(look).min().unwrap_or(far)
    }

    fn say_all(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            let (uid, warning, message) = (notice.uid.clone(), notice.warning, notice.message.clone());
            match self.say(notice) {
                true if warning => tracing::warn!(pod = uid, "{message}"),
                true => tracing::info!(pod = uid, "{message}"),
                false => {}
            }
        }
    }

    /// Returns whether it is news.
    fn say(&mut self, notice: Notice) -> bool {
        self.cluster.pod(&notice.uid).is_some_and(|pod| self.events.say(notice, pod))
    }
}

async fn next(requests: &mut Option<mpsc::Receiver<cni::Request>>) -> Option<cni::Request> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

fn answered(answer: Answer, outcome: Result<(), String>) {
    // The plugin may have given up.
    let _ = answer.send(outcome);
}
