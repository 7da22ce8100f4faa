//! One connected ztunnel.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::plan::{Plan, Step};
use super::{Connected, Rosters, Said, Workload};
use crate::netns::Netns;
use crate::zds::wire::proto::{self, workload_request};
use crate::zds::wire::{self, Connection, MAX_MESSAGE, acknowledged, request};

/// For Hello, and for each answer.
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Session {
    number: u64,
    connection: Connection,
    rosters: Rosters,
    connected: Arc<Connected>,
    plan: Plan,
    say: mpsc::Sender<Said>,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error("no Hello within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("ZDS version {0} is not spoken here (this agent speaks 1)")]
    Version(i32),
    #[error("no answer to {0} within {n} s", n = DEADLINE.as_secs())]
    Unanswered(String),
    #[error("the answer to {0} is no acknowledgement")]
    NoAck(String),
    #[error("it refuses {0}: {1:?}")]
    Refused(String, String),
    #[error("a message that nobody asked for")]
    Unsolicited,
    #[error("the agent ends")]
    AgentEnds,
}

impl Session {
    pub(super) async fn attend(
        number: u64,
        socket: OwnedFd,
        rosters: Rosters,
        connected: Arc<Connected>,
        say: mpsc::Sender<Said>,
    ) {
        let connection = match Connection::new(socket) {
            Ok(connection) => connection,
            Err(error) => return tracing::warn!(%error, "ztunnel's connection not usable"),
        };
        let mut session = Self { number, connection, rosters, connected, plan: Plan::default(), say };
        let Err(end) = session.run().await;
        tracing::info!(ztunnel = number, reason = %end, "ztunnel disconnected");
        // The agent may have ended.
        let _ = session.say.send(Said::Left { ztunnel: number }).await;
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        let hello = tokio::time::timeout(DEADLINE, self.connection.receive::<proto::ZdsHello>());
        let hello = hello.await.map_err(|_| End::Silent)??;
        if hello.version() != proto::Version::V1 {
            return Err(End::Version(hello.version));
        }
        tracing::info!(ztunnel = self.number, "ztunnel connected");
        self.connected.send_if_modified(|all| all.insert(self.number));
        let mut connected = self.connected.subscribe();
        loop {
            let roster = self.rosters.borrow_and_update().clone();
            let newest = connected.borrow_and_update().last() == Some(&self.number);
            let step = match roster {
                Some(roster) => self.plan.next(&roster, newest),
                None => Step::Wait(None),
            };
            let Step::Wait(due) = step else {
                self.tell(step).await?;
                continue;
            };
            tokio::select! {
                changed = self.rosters.changed() => changed.map_err(|_| End::AgentEnds)?,
                changed = connected.changed() => changed.map_err(|_| End::AgentEnds)?,
                () = until(due) => {}
                // Whatever it is, nothing was to come.
                packet = self.connection.packet() => return Err(packet.map_or_else(End::Wire, |_| End::Unsolicited)),
            }
        }
    }

    async fn tell(&mut self, step: Step) -> Result<(), End> {
        match step {
            Step::Add(uid, workload) => self.add(uid, workload).await,
            Step::Keep(uid) => {
                let keep = workload_request::Payload::Keep(proto::KeepWorkload { uid: uid.clone() });
                self.insist(keep, format!("Keep of pod {uid}")).await?;
                self.plan.kept(uid);
                Ok(())
            }
            Step::Del(uid) => {
                let del = workload_request::Payload::Del(proto::DelWorkload { uid: uid.clone() });
                self.insist(del, format!("Del of pod {uid}")).await?;
                tracing::info!(ztunnel = self.number, pod = uid, "ztunnel told that the pod is gone");
                self.plan.deleted(&uid);
                Ok(())
            }
            Step::SnapshotSent => {
                let sent = workload_request::Payload::SnapshotSent(proto::SnapshotSent {});
                self.insist(sent, "SnapshotSent".to_owned()).await?;
                tracing::info!(ztunnel = self.number, "ztunnel knows every pod");
                self.plan.snapshot_sent();
                Ok(())
            }
            Step::Wait(_) => Ok(()),
        }
    }

    /// A refusal concerns this pod alone.
    async fn add(&mut self, uid: String, workload: Arc<Workload>) -> Result<(), End> {
        let outcome = self.offer(&uid, &workload).await?;
        let said = Said::Pod { ztunnel: self.number, uid: uid.clone(), outcome: outcome.clone() };
        self.say.send(said).await.map_err(|_| End::AgentEnds)?;
        match outcome {
            Ok(()) => {
                tracing::info!(ztunnel = self.number, pod = uid, "pod is served");
                self.plan.added(uid, workload);
            }
            Err(reason) => {
                let retry = self.plan.refused(uid.clone(), workload);
                let retry_ms = retry.wait().as_millis();
                tracing::error!(
                    ztunnel = self.number,
                    pod = uid,
                    ?reason,
                    retry_ms,
                    "pod not served; its connections are refused until it is"
                );
            }
        }
        Ok(())
    }

    async fn offer(&self, uid: &str, workload: &Workload) -> Result<Result<(), String>, End> {
        let netns = match workload.netns.reopen(workload.ident) {
            Ok(netns) => netns,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Workload { name, namespace, service_account, .. } = workload.clone();
        let info = proto::WorkloadInfo { name, namespace, service_account };
        let add = proto::AddWorkload { uid: uid.to_owned(), workload_info: Some(info) };
        let what = format!("Add of pod {uid}");
        match self.ask(workload_request::Payload::Add(add), Some(&netns), what).await {
            Err(End::Wire(wire::Error::TooLarge(bytes))) => Ok(Err(format!(
                "the pod's uid and names need {bytes} bytes, a ZDS message has at most {MAX_MESSAGE}"
            ))),
            Err(end) => Err(end),
            Ok(error) if error.is_empty() => Ok(Ok(())),
            Ok(error) => Ok(Err(error)),
        }
    }

    /// A ztunnel that refuses such a request has another notion of what it was told.
    async fn insist(&self, payload: workload_request::Payload, what: String) -> Result<(), End> {
        match self.ask(payload, None, what.clone()).await? {
            error if error.is_empty() => Ok(()),
            error => Err(End::Refused(what, error)),
        }
    }

    /// The text of the answer.
    async fn ask(
        &self,
        payload: workload_request::Payload,
        netns: Option<&Netns>,
        what: String,
    ) -> Result<String, End> {
        use std::os::fd::AsFd;
        self.connection.send(&request(payload), netns.map(AsFd::as_fd)).await?;
        let answer = self.connection.receive::<proto::WorkloadResponse>();
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(answer) => acknowledged(answer?).ok_or(End::NoAck(what)),
            Err(_) => Err(End::Unanswered(what)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connected.send_if_modified(|all| all.remove(&self.number));
    }
}

/// For ever if there is no such time.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
