//! The agent's socket: whoever does not belong there is refused, and nobody else notices.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;
use redirect::broker::server::{Incoming, Server};
use redirect::broker::wire::proto::{self, to_agent, to_proxy};
use redirect::client::{Client, Event};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(10);
/// The tests run as root.
const OWN_UID: u32 = 0;

struct Broker {
    path: PathBuf,
    said: mpsc::Receiver<Incoming>,
}

impl Broker {
    fn new(name: &str, proxy_uid: u32) -> Self {
        let path = std::env::temp_dir().join(format!("broker-{}-{name}.sock", std::process::id()));
        let server = Server::bind(&path, proxy_uid).expect("a socket in the temporary folder");
        let (say, said) = mpsc::channel(16);
        tokio::spawn(server.serve(say));
        Self { path, said }
    }

    fn connect(&self) -> Socket {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        socket.connect(&SockAddr::unix(&self.path).expect("a short path")).expect("the broker listens");
        socket.set_read_timeout(Some(DEADLINE)).expect("an option");
        socket
    }

    /// Sends one packet and returns the broker's last word before it ends the connection.
    async fn refusal(&self, packet: Vec<u8>) -> String {
        let mut socket = self.connect();
        let exchange = move || {
            // A broker that has refused already may have closed.
            let _ = socket.send(&packet);
            let mut answer = vec![0; 4096];
            let length = socket.read(&mut answer).unwrap_or_default();
            if length == 0 {
                return String::new();
            }
            let message =
                proto::ToProxy::decode(&answer[..length]).expect("a message of the protocol").message;
            assert_eq!(socket.read(&mut answer).unwrap_or_default(), 0, "the connection ends");
            match message {
                Some(to_proxy::Message::Refused(refused)) => refused.reason,
                other => panic!("{other:?} is no refusal"),
            }
        };
        tokio::task::spawn_blocking(exchange).await.expect("no panic")
    }

    /// A proxy that behaves is served all the while.
    async fn serves(&mut self) {
        let client = tokio::spawn({
            let path = self.path.clone();
            async move { Client::connect(&path, Vec::new()).await }
        });
        let joined = async {
            loop {
                match self.said.recv().await.expect("the broker lives") {
                    Incoming::Joined { queue, .. } => return queue,
                    _ => continue,
                }
            }
        };
        let queue = tokio::time::timeout(DEADLINE, joined).await.expect("a proxy joins");
        let mut client = client.await.expect("no panic").expect("a welcome");
        let message = to_proxy::Message::SnapshotSent(proto::SnapshotSent {});
        let sent = queue.try_send(redirect::broker::server::Outgoing { message, descriptors: Vec::new() });
        assert!(sent.is_ok());
        assert!(matches!(client.next().await, Ok(Event::SnapshotSent)));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(self.path.with_extension("lock"));
    }
}

fn hello(version: u32) -> Vec<u8> {
    let message = Some(to_agent::Message::Hello(proto::Hello { version, held: 0 }));
    proto::ToAgent { message }.encode_to_vec()
}

#[tokio::test]
async fn another_user_is_not_heard() {
    let mut broker = Broker::new("user", 4242);
    assert_eq!(broker.refusal(hello(1)).await, "", "closed without a word");
    assert!(broker.said.try_recv().is_err(), "nobody joined");
}

#[tokio::test]
async fn mistakes_end_their_own_connection_only() {
    let mut broker = Broker::new("mistakes", OWN_UID);
    assert!(broker.refusal(hello(99)).await.contains("version 99"));
    broker.serves().await;
    assert!(broker.refusal(b"\xff\xff\xff not protobuf".to_vec()).await.contains("not the expected message"));
    broker.serves().await;
    assert!(broker.refusal(vec![b'x'; 60_000]).await.contains("truncated"));
    broker.serves().await;
    let early = proto::ToAgent {
        message: Some(to_agent::Message::Refill(proto::Refill { uid: "u".into(), count: 1 })),
    };
    assert!(broker.refusal(early.encode_to_vec()).await.contains("not a Hello"));
    broker.serves().await;
}

#[tokio::test]
async fn a_live_agents_socket_is_not_taken_away() {
    let mut broker = Broker::new("taken", OWN_UID);
    let taken = Server::bind(&broker.path, OWN_UID).err().expect("it is in use");
    assert!(taken.to_string().contains("another agent"), "{taken}");
    broker.serves().await;
}

#[tokio::test]
async fn descriptors_where_none_belong_end_the_connection() {
    let mut broker = Broker::new("descriptors", OWN_UID);
    let socket = broker.connect();
    socket.send(&hello(1)).expect("sent");
    let ready =
        proto::ToAgent { message: Some(to_agent::Message::PodReady(proto::PodReady { uid: "u".into() })) };
    let bytes = ready.encode_to_vec();
    let descriptor = [std::os::fd::AsRawFd::as_raw_fd(&socket)];
    let sent = nix::sys::socket::sendmsg::<()>(
        descriptor[0],
        &[std::io::IoSlice::new(&bytes)],
        &[nix::sys::socket::ControlMessage::ScmRights(&descriptor)],
        nix::sys::socket::MsgFlags::empty(),
        None,
    );
    sent.expect("sent");
    let left = async {
        loop {
            match broker.said.recv().await.expect("the broker lives") {
                Incoming::Left { .. } => return,
                Incoming::Ready { .. } => panic!("the message was heard"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, left).await.expect("the connection ends");
    broker.serves().await;
}
