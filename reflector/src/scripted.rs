//! An API server that says what the test tells it to, over HTTP, to the byte. Kinds that a test does not ask for are empty,
//! nothing happens to them, and what is made of them is taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub const DEADLINE: Duration = Duration::from_secs(20);

type Scripted = Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Ask>>>>;

pub struct Server {
    pub address: SocketAddr,
    scripted: Scripted,
    accepting: Option<JoinSet<()>>,
}

/// The requests for one kind, in the order in which they come.
pub struct Asked(mpsc::UnboundedReceiver<Ask>);

/// A request that waits for its answer. Without one the connection is closed.
pub struct Ask {
    /// Of what is to be made; null where nothing is.
    pub body: Value,
    pub path: String,
    /// What stands behind the `?`.
    pub query: String,
    pub accept: String,
    stream: TcpStream,
}

/// A watch. Broken off in the middle unless it is ended.
pub struct Open(TcpStream);

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut server = Self { address, scripted: Scripted::default(), accepting: None };
        server.accept(listener);
        server
    }

    pub fn config(&self) -> Config {
        Config::new(format!("http://{}", self.address).parse().expect("it is an address"))
    }

    /// From now on the test answers what is asked of this kind, or of the one object at a path.
    pub fn asked(&self, plural_or_path: &str) -> Asked {
        let (requests, asked) = mpsc::unbounded_channel();
        self.scripted.lock().expect("no test panicked with it").insert(plural_or_path.to_owned(), requests);
        Asked(asked)
    }

    /// Nobody listens, and all connections are gone.
    pub async fn go_away(&mut self) {
        if let Some(mut accepting) = self.accepting.take() {
            accepting.shutdown().await;
        }
    }

    pub async fn come_back(&mut self) {
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
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut body = vec![0; field("content-length: ").parse().unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let target = head.split(' ').nth(1).expect("a request has a target");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let plural = path.rsplit('/').next().expect("there is a last one");
    let ask = Ask {
        body: serde_json::from_slice(&body).unwrap_or_default(),
        path: path.to_owned(),
        query: query.to_owned(),
        accept: field("accept: ").to_owned(),
        stream,
    };
    let requests = {
        let scripted = scripted.lock().expect("no test panicked with it");
        scripted.get(path).or_else(|| scripted.get(plural)).cloned()
    };
    match requests {
        Some(requests) => drop(requests.send(ask)),
        None if ask.is_watch() => {
            let _open = ask.open().await;
            std::future::pending::<()>().await;
        }
        None if !ask.body.is_null() => {
            let made = ask.body.clone();
            ask.answer(201, &made).await;
        }
        // namespaces/NAMESPACE/PLURAL/NAME
        None if path.split('/').rev().nth(3) == Some("namespaces") => ask.refuse(404, "not found").await,
        None => ask.answer(200, &list("1", "", [])).await,
    }
}

impl Asked {
    pub async fn next(&mut self) -> Ask {
        let next = timeout(DEADLINE, self.0.recv()).await.expect("nothing is asked");
        next.expect("the server is there as long as the test")
    }

    /// Leaves without an answer what was asked and not taken.
    pub fn forget(&mut self) {
        while self.0.try_recv().is_ok() {}
    }

    pub async fn list(&mut self) -> Ask {
        let ask = self.next().await;
        assert!(!ask.is_watch(), "{}", ask.query);
        ask
    }

    /// A watch from this version.
    pub async fn watch(&mut self, version: &str) -> Ask {
        let ask = self.next().await;
        let from = ask.query.split('&').find_map(|one| one.strip_prefix("resourceVersion="));
        assert!(ask.is_watch() && from == Some(version), "not from {version}: {}", ask.query);
        assert!(ask.query.contains("allowWatchBookmarks=true"), "{}", ask.query);
        ask
    }
}

impl Ask {
    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    pub async fn answer(self, status: u16, body: &Value) {
        self.send(status, &body.to_string(), 0).await;
    }

    pub async fn refuse(self, status: u16, message: &str) {
        let body = json!({"kind": "Status", "status": "Failure", "message": message, "code": status});
        self.answer(status, &body).await;
    }

    /// Less than was announced.
    pub async fn answer_half(self, body: &Value) {
        let text = body.to_string();
        self.send(200, &text[..text.len() / 2], text.len() - text.len() / 2).await;
    }

    pub async fn send(mut self, status: u16, body: &str, missing: usize) {
        let length = body.len() + missing;
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        // Whoever asked may have given up.
        let _ = self.stream.write_all(format!("{head}{body}").as_bytes()).await;
    }

    pub async fn open(mut self) -> Open {
        let head = "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = self.stream.write_all(head.as_bytes()).await;
        Open(self.stream)
    }
}

impl Open {
    pub async fn event(&mut self, r#type: &str, object: Value) {
        self.line(&format!("{}\n", json!({"type": r#type, "object": object}))).await;
    }

    pub async fn line(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.0.write_all(chunk.as_bytes()).await.expect("it is watched");
    }

    pub async fn end(mut self) {
        self.0.write_all(b"0\r\n\r\n").await.expect("it is watched");
    }

    /// Until the other side has closed the connection.
    pub async fn abandoned(mut self) {
        let mut byte = [0];
        let read = timeout(DEADLINE, self.0.read(&mut byte)).await.expect("it is watched for ever");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
}

/// By which a program finds the server at an address.
pub fn kubeconfig(address: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    })
}

/// As the API writes lists: its objects do not say what they are.
pub fn list(version: &str, next: &str, objects: impl Into<Vec<Value>>) -> Value {
    json!({
        "kind": "SomeList", "apiVersion": "v1",
        "metadata": {"resourceVersion": version, "continue": next},
        "items": objects.into(),
    })
}
