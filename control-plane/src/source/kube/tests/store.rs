//! An API server that keeps objects, over HTTP: creates, replaces by version, applies, lists by name, and fails as the test
//! tells it to. What it was asked is remembered.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::call::Api;

pub(in crate::source::kube) const DEADLINE: Duration = Duration::from_secs(20);

/// What becomes of one request in place of an answer.
#[derive(Clone, Debug)]
pub(in crate::source::kube) enum Fault {
    Refuse(u16, &'static str),
    /// 200, and this.
    Say(String),
    /// Nothing, for ever.
    Stall,
    /// The connection is closed.
    Hang,
    /// Done, and then not said.
    Lost,
}

#[derive(Clone, Debug)]
pub(in crate::source::kube) struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub kind: String,
    pub body: Value,
}

pub(in crate::source::kube) struct Store {
    pub(in crate::source::kube) address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinSet<()>>,
}

type Answer = Box<dyn Fn(&Asked) -> (u16, Value) + Send + Sync>;

struct State {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Value>,
    version: u64,
    asked: Vec<Asked>,
    /// By method and the end of the path.
    faults: VecDeque<(&'static str, String, Fault)>,
    /// What is answered to requests whose path ends so.
    answers: Vec<(String, Arc<Answer>)>,
}

impl Store {
    pub(in crate::source::kube) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let state = State { inner: Mutex::default(), changes: watch::Sender::new(0) };
        let mut store = Self { address, state: Arc::new(state), accepting: None };
        store.accept(listener);
        store
    }

    pub(in crate::source::kube) fn api(&self) -> Api {
        self.api_within(DEADLINE)
    }

    pub(in crate::source::kube) fn api_within(&self, deadline: Duration) -> Api {
        let address = format!("http://{}", self.address).parse().expect("it is an address");
        Api::open(reflector::Config::new(address), deadline).expect("a client")
    }

    /// The next request of this method whose path has this part fails so.
    pub(in crate::source::kube) fn fail(&self, method: &'static str, part: &str, fault: Fault) {
        self.inner().faults.push_back((method, part.to_owned(), fault));
    }

    pub(in crate::source::kube) fn answer(
        &self,
        end: &str,
        answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
    ) {
        self.inner().answers.push((end.to_owned(), Arc::new(Box::new(answer))));
    }

    pub(in crate::source::kube) fn asked(&self, method: &str, part: &str) -> Vec<Asked> {
        let all = self.inner().asked.clone();
        all.into_iter().filter(|asked| asked.method == method && asked.path.contains(part)).collect()
    }

    pub(in crate::source::kube) fn get(&self, path: &str) -> Option<Value> {
        self.inner().objects.get(path).cloned()
    }

    /// As another client would.
    pub(in crate::source::kube) fn put(&self, path: &str, object: Value) {
        self.inner().set(path, object);
        self.state.changes.send_modify(|count| *count += 1);
    }

    pub(in crate::source::kube) fn delete(&self, path: &str) {
        self.inner().objects.remove(path).expect("it is there");
        self.state.changes.send_modify(|count| *count += 1);
    }

    /// Waits until something is so; it is looked at after each request.
    pub(in crate::source::kube) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let mut changes = self.state.changes.subscribe();
        let so = async {
            while !is_so(self) {
                changes.changed().await.expect("the store is there");
            }
        };
        let so = timeout(DEADLINE, so).await;
        assert!(so.is_ok(), "not so: {what}\n{:#?}", self.inner().asked);
    }

    /// Nobody listens, and all connections are gone.
    pub(in crate::source::kube) async fn go_away(&mut self) {
        if let Some(mut accepting) = self.accepting.take() {
            accepting.shutdown().await;
        }
    }

    pub(in crate::source::kube) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free again");
        self.accept(listener);
    }

    fn accept(&mut self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&state)));
            }
        });
        self.accepting = Some(accepting);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().expect("no test panicked with it")
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let Some(asked) = read(&mut stream).await else { return };
    let (status, text) = {
        let mut inner = state.inner.lock().expect("no test panicked with it");
        inner.asked.push(asked.clone());
        let fault = inner
            .faults
            .iter()
            .position(|(method, part, _)| *method == asked.method && asked.path.contains(part.as_str()));
        match fault.and_then(|at| inner.faults.remove(at)).map(|(_, _, fault)| fault) {
            Some(Fault::Refuse(code, message)) => (code, refusal(code, message).to_string()),
            Some(Fault::Say(text)) => (200, text),
            Some(Fault::Stall) => (0, String::new()),
            Some(Fault::Hang) => (1, String::new()),
            Some(Fault::Lost) => {
                inner.handle(&asked);
                (1, String::new())
            }
            None => {
                let (status, value) = inner.handle(&asked);
                (status, value.to_string())
            }
        }
    };
    state.changes.send_modify(|count| *count += 1);
    match status {
        0 => std::future::pending().await,
        1 => return,
        _ => {}
    }
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    // Whoever asked may have given up.
    let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head is text");
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned))
            .unwrap_or_default()
    };
    let length = field("content-length: ").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("it is JSON") };
    Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        kind: field("content-type: "),
        body,
    })
}

impl Inner {
    fn set(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn handle(&mut self, asked: &Asked) -> (u16, Value) {
        let scripted = self.answers.iter().find(|(end, _)| asked.path.ends_with(end.as_str()));
        if let Some((_, answer)) = scripted {
            return Arc::clone(answer)(asked);
        }
        let path = asked.path.as_str();
        match asked.method.as_str() {
            "GET" if asked.query.contains("fieldSelector=metadata.name") => {
                let name = asked.query.split("metadata.name%3D").nth(1).expect("a name");
                let name = name.split('&').next().expect("there is a first");
                let plural = path.rsplit('/').next().expect("there is a last one");
                let end = format!("/{plural}/{name}");
                let all = self.objects.iter().filter(|(path, _)| path.ends_with(&end));
                let items: Vec<_> = all.map(|(_, object)| object.clone()).collect();
                (200, json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items}))
            }
            "GET" => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => (404, refusal(404, "not found")),
            },
            "POST" => {
                let name = asked.body["metadata"]["name"].as_str().unwrap_or("generated");
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return (409, refusal(409, "already exists"));
                }
                (201, self.set(&path, asked.body.clone()))
            }
            "PUT" => match self.objects.get(path) {
                None => (404, refusal(404, "not found")),
                Some(held)
                    if held["metadata"]["resourceVersion"] != asked.body["metadata"]["resourceVersion"] =>
                {
                    (409, refusal(409, "the object has been modified"))
                }
                Some(_) => (200, self.set(path, asked.body.clone())),
            },
            "PATCH" => {
                let path = path.strip_suffix("/status").unwrap_or(path).to_owned();
                let mut object = self.objects.get(&path).cloned().unwrap_or_else(|| json!({}));
                merge(&mut object, &asked.body);
                (200, self.set(&path, object))
            }
            other => panic!("{other} {path}"),
        }
    }
}

fn merge(object: &mut Value, with: &Value) {
    match (object, with) {
        (Value::Object(object), Value::Object(with)) => {
            for (key, value) in with {
                merge(object.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (object, with) => *object = with.clone(),
    }
}

fn refusal(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "message": message, "code": code})
}
