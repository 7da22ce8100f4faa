//! An API server that says what the test tells it to, over HTTP, to the byte. Kinds that a test does not ask for are empty,
//! and nothing happens to them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(super) const DEADLINE: Duration = Duration::from_secs(20);

type Scripted = Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Ask>>>>;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    scripted: Scripted,
    accepting: Option<JoinSet<()>>,
}

/// The requests for one kind, in the order in which they come.
pub(super) struct Asked(mpsc::UnboundedReceiver<Ask>);

/// A request that waits for its answer. Without one the connection is closed.
pub(super) struct Ask {
    /// What stands behind the `?`.
    pub(super) query: String,
    pub(super) accept: String,
    stream: TcpStream,
}

/// A watch. Broken off in the middle unless it is ended.
pub(super) struct Open(TcpStream);

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut server = Self { address, scripted: Scripted::default(), accepting: None };
        server.accept(listener);
        server
    }

    /// From now on the test answers what is asked of this kind.
    pub(super) fn asked(&self, plural: &str) -> Asked {
        let (requests, asked) = mpsc::unbounded_channel();
        self.scripted.lock().expect("no test panicked with it").insert(plural.to_owned(), requests);
        Asked(asked)
    }

    /// Nobody listens, and all connections are gone.
    pub(super) async fn go_away(&mut self) {
        if let Some(mut accepting) = self.accepting.take() {
            accepting.shutdown().await;
        }
    }

    pub(super) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free again");
        self.accept(listener);
    }

    fn accept(&mut self, listener: TcpListener) {
        let scripted = Arc::clone(&self.scripted);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&scripted)));
            }
        });
        self.accepting = Some(accepting);
    }
}

async fn serve(mut stream: TcpStream, scripted: Scripted) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).expect("a head is text");
    let target = head.split(' ').nth(1).expect("a request has a target");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let plural = path.rsplit('/').next().expect("there is a last one");
    let accept = head.lines().find_map(|line| line.strip_prefix("accept: ")).unwrap_or_default();
    let ask = Ask { query: query.to_owned(), accept: accept.to_owned(), stream };
    let requests = scripted.lock().expect("no test panicked with it").get(plural).cloned();
    match requests {
        Some(requests) => drop(requests.send(ask)),
        None if ask.is_watch() => {
            let _open = ask.open().await;
            std::future::pending::<()>().await;
        }
        None => ask.answer(200, &list("1", "", [])).await,
    }
}

impl Asked {
    pub(super) async fn next(&mut self) -> Ask {
        let next = timeout(DEADLINE, self.0.recv()).await.expect("nothing is asked");
        next.expect("the server is there as long as the test")
    }

    pub(super) async fn list(&mut self) -> Ask {
        let ask = self.next().await;
        assert!(!ask.is_watch(), "{}", ask.query);
        ask
    }

    /// A watch from this version.
    pub(super) async fn watch(&mut self, version: &str) -> Ask {
        let ask = self.next().await;
        let from = ask.query.split('&').find_map(|one| one.strip_prefix("resourceVersion="));
        assert!(ask.is_watch() && from == Some(version), "not from {version}: {}", ask.query);
        assert!(ask.query.contains("allowWatchBookmarks=true"), "{}", ask.query);
        ask
    }
}

impl Ask {
    pub(super) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    pub(super) async fn answer(self, status: u16, body: &Value) {
        self.send(status, &body.to_string(), 0).await;
    }

    pub(super) async fn refuse(self, status: u16, message: &str) {
        let body = json!({"kind": "Status", "status": "Failure", "message": message, "code": status});
        self.answer(status, &body).await;
    }

    /// Less than was announced.
    pub(super) async fn answer_half(self, body: &Value) {
        let text = body.to_string();
        self.send(200, &text[..text.len() / 2], text.len() - text.len() / 2).await;
    }

    pub(super) async fn send(mut self, status: u16, body: &str, missing: usize) {
        let length = body.len() + missing;
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        // Whoever asked may have given up.
        let _ = self.stream.write_all(format!("{head}{body}").as_bytes()).await;
    }

    pub(super) async fn open(mut self) -> Open {
        let head = "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = self.stream.write_all(head.as_bytes()).await;
        Open(self.stream)
    }
}

impl Open {
    pub(super) async fn event(&mut self, r#type: &str, object: Value) {
        self.line(&format!("{}\n", json!({"type": r#type, "object": object}))).await;
    }

    pub(super) async fn line(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.0.write_all(chunk.as_bytes()).await.expect("it is watched");
    }

    pub(super) async fn end(mut self) {
        self.0.write_all(b"0\r\n\r\n").await.expect("it is watched");
    }

    /// Until the other side has closed the connection.
    pub(super) async fn abandoned(mut self) {
        let mut byte = [0];
        let read = timeout(DEADLINE, self.0.read(&mut byte)).await.expect("it is watched for ever");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
}

/// As the API writes lists: its objects do not say what they are.
pub(super) fn list<const N: usize>(version: &str, next: &str, objects: [Value; N]) -> Value {
    json!({
        "kind": "SomeList", "apiVersion": "v1",
        "metadata": {"resourceVersion": version, "continue": next},
        "items": objects.to_vec(),
    })
}
