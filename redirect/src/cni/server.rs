//! The socket on which plugins ask. Only root may: what it says decides whether a pod starts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::Socket;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Request;
use super::wire::{Answer, LONGEST_WAIT, MAX_PACKET, MAX_REASON, Question};
use crate::listener::{self, Listener};
use crate::packet::Packets;

/// More wait in the socket's backlog.
const MOST_CONNECTIONS: usize = 256;
/// For a plugin to ask once it is connected, and to take the answer.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(5);

pub struct Server {
    listener: Listener,
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
    #[error("no word from the plugin for {} s", PLUGIN_DEADLINE.as_secs())]
    Silent,
    #[error("the plugin closed the connection before it was answered")]
    Gone,
    #[error("nobody decides about pods now")]
    Nobody,
}

impl Server {
    /// Binds the socket; the file that an earlier agent left is replaced. Must be called on a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, listener::Error> {
        Ok(Self { listener: Listener::bind(path, None)? })
    }

    /// Accepts for ever.
    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let permit = connections.clone().acquire_owned().await.expect("invariant: it is never closed");
            let accepted = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a CNI plugin failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match getsockopt(&accepted, sockopt::PeerCredentials) {
                Ok(peer) if peer.uid() == 0 => {}
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), pid = peer.pid(), "CNI plugin refused: it is not root");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "CNI plugin refused: no peer credentials");
                    continue;
                }
            }
            let requests = requests.clone();
            tokio::spawn(async move {
                if let Err(error) = attend(accepted, &requests).await {
                    tracing::warn!(%error, "a CNI plugin was not answered");
                }
                drop(permit);
            });
        }
    }
}

async fn attend(socket: Socket, requests: &mpsc::Sender<Request>) -> Result<(), End> {
    let packets = Packets::new(socket.into())?;
    let asked = tokio::time::timeout(PLUGIN_DEADLINE, packets.receive(MAX_PACKET)).await;
    let packet = asked.map_err(|_| End::Silent)??.ok_or(End::Gone)?;
    if packet.truncated {
        return refuse(&packets, &format!("a request of more than {MAX_PACKET} bytes")).await;
    }
    let question = match serde_json::from_slice(&packet.bytes) {
        Ok(question) => question,
        Err(error) => return refuse(&packets, &format!("malformed request: {error}")).await,
    };
    say(&packets, &Answer::Taken).await?;
    let (answer, outcome) = oneshot::channel();
    let (request, pod, timeout_ms) = match question {
        Question::Add { sandbox, timeout_ms } => {
            let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
            (Request::Add { sandbox, answer }, pod, timeout_ms)
        }
        Question::Check { sandbox, timeout_ms } => {
            let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
            (Request::Check { sandbox, answer }, pod, timeout_ms)
        }
        Question::Del { container_id, namespace, name, uid } => {
            let told = requests.send(Request::Del { container_id, namespace, name, uid });
            let told = tokio::time::timeout(PLUGIN_DEADLINE, told).await;
            return match told {
                Ok(Ok(())) => say(&packets, &Answer::Done).await,
                Ok(Err(_)) | Err(_) => Err(End::Nobody),
            };
        }
    };
    let time = Duration::from_millis(timeout_ms).min(LONGEST_WAIT);
    let decided = async {
        requests.send(request).await.map_err(|_| End::Nobody)?;
        outcome.await.map_err(|_| End::Nobody)
    };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(time, decided) => outcome,
        // It says no more, so this is its end; whoever decides sees that nobody waits.
        _ = packets.receive(1) => return Err(End::Gone),
    };
    match outcome {
        Ok(decided) => match decided? {
            Ok(()) => say(&packets, &Answer::Done).await,
            Err(reason) => {
                tracing::error!(pod, reason, "the pod is not let through");
                refuse(&packets, &reason).await
            }
        },
        Err(_) => {
            let seconds = time.as_secs_f32();
            tracing::error!(pod, seconds, "the pod is not let through: no proxy serves it in time");
            refuse(&packets, &format!("no proxy serves the pod after {seconds:.1} s; see the agent's log"))
                .await
        }
    }
}

async fn refuse(packets: &Packets, reason: &str) -> Result<(), End> {
    let reason = reason[..reason.floor_char_boundary(MAX_REASON)].to_owned();
    say(packets, &Answer::Refused { reason }).await
}

async fn say(packets: &Packets, answer: &Answer) -> Result<(), End> {
    let bytes = serde_json::to_vec(answer).expect("invariant: an answer is plain text");
    let sent = tokio::time::timeout(PLUGIN_DEADLINE, packets.send(&bytes, &[])).await;
    Ok(sent.map_err(|_| End::Silent)??)
}
