use std::io::Read;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::telemetry::levels_for_tests;

const LONG: Duration = Duration::from_secs(20);

struct Running {
    admin: SocketAddr,
    metrics: SocketAddr,
    readiness: SocketAddr,
    sources: Sources,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn run() -> Running {
    let config =
        config::Admin { admin_port: 0, stats_port: 0, readiness_port: 0, ipv6: false, ipv6_loopback: true };
    let listeners = Listeners::bind(&config).await.expect("free ports exist");
    let addresses = listeners.addresses().expect("bound sockets have addresses");
    let [readiness, metrics] =
        [1, 2].map(|back| SocketAddr::from((Ipv4Addr::LOCALHOST, addresses[addresses.len() - back].port())));
    let dump = Dump::new().part("version", || json!({"a": 1})).part("config", || json!([]));
    let sources = Sources {
        dump: Arc::new(dump),
        metrics: Arc::new(Metrics::new("t")),
        levels: levels_for_tests("info"),
        readiness: Readiness::default(),
        drain: Drain::new(LONG),
    };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(listeners.serve(sources.clone(), stop.clone()));
    Running { admin: addresses[0], metrics, readiness, sources, stop, serving }
}

/// Sends bytes and returns everything until the server closes.
async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the server listens");
    stream.write_all(bytes).await.expect("the server reads");
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.expect("in time").expect("no reset");
    answer
}

async fn ask(addr: SocketAddr, method: &str, target: &str) -> String {
    let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    String::from_utf8(exchange(addr, request.as_bytes()).await).expect("the answer is text")
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn paths_and_methods() {
    let running = run().await;
    for (addr, method, target, expected) in [
        (running.admin, "GET", "/", "200"),
        (running.admin, "GET", "/config_dump", "200"),
        (running.admin, "GET", "/logging", "405"),
        (running.admin, "POST", "/logging?level=debug", "200"),
        (running.admin, "POST", "/logging?level=no", "400"),
        (running.admin, "GET", "/quitquitquit", "405"),
        (running.admin, "GET", "/metrics", "404"),
        (running.admin, "GET", "/config_dump/x", "404"),
        (running.metrics, "GET", "/metrics", "200"),
        (running.metrics, "POST", "/stats/prometheus", "200"),
        (running.metrics, "GET", "/", "404"),
        (running.readiness, "GET", "/healthz/ready", "200"),
        (running.readiness, "POST", "/healthz/ready", "405"),
        (running.readiness, "GET", "/healthz", "404"),
    ] {
        let answer = ask(addr, method, target).await;
        assert_eq!(status(&answer), expected, "{method} {target}: {answer}");
    }
    assert_eq!(running.sources.levels.to_string(), "debug");
    let dump = ask(running.admin, "GET", "/config_dump").await;
    assert!(dump.contains("content-type: application/json\r\n"), "{dump}");
    assert_eq!(body(&dump), "{\n  \"version\": {\n    \"a\": 1\n  },\n  \"config\": []\n}");
}

#[tokio::test]
async fn admin_also_listens_on_the_ipv6_loopback() {
    let running = run().await;
    let addr = SocketAddr::from((Ipv6Addr::LOCALHOST, running.admin.port()));
    assert_eq!(status(&ask(addr, "GET", "/").await), "200");
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let running = run().await;
    let pending = running.sources.readiness.register("state manager");
    let _other = running.sources.readiness.register("a");
    let answer = ask(running.readiness, "GET", "/healthz/ready").await;
    assert_eq!((status(&answer), body(&answer)), ("500", "not ready, pending: a, state manager\n"));
    pending.ready();
    drop(_other);
    let answer = ask(running.readiness, "GET", "/healthz/ready").await;
    assert_eq!((status(&answer), body(&answer)), ("200", "ready\n"));
}

#[tokio::test]
async fn metrics_by_what_the_client_takes() {
    let running = run().await;
    let plain = ask(running.metrics, "GET", "/metrics").await;
    assert!(plain.contains("content-type: text/plain\r\n"), "{plain}");
    assert!(plain.ends_with("# EOF\n"), "{plain}");
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept-encoding: gzip\r\n\
                   accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n";
    let answer = exchange(running.metrics, request.as_bytes()).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("the head ends") + 4;
    let head = String::from_utf8_lossy(&answer[..end]);
    let kind = "content-type: application/openmetrics-text;charset=utf-8;version=1.0.0\r\n";
    assert!(head.contains(kind) && head.contains("content-encoding: gzip\r\n"), "{head}");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&answer[end..]).read_to_string(&mut text).expect("it is gzip");
    assert!(text.contains("istio_build{component=\"ztunnel\",tag=\"t\"} 1\n"), "{text}");
}

#[tokio::test]
async fn a_slow_head_is_cut_and_a_large_one_refused() {
    let running = run().await;
    let begun = Instant::now();
    let answer = exchange(running.admin, b"GET / HTTP/1.1\r\nhost: x\r\n").await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || status(&answer) == "408", "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    let mut large = b"GET / HTTP/1.1\r\nx: ".to_vec();
    large.resize(8 * 1024, b'a');
    let answer = exchange(running.admin, &large).await;
    assert_eq!(status(&String::from_utf8_lossy(&answer)), "431");
    assert_eq!(status(&ask(running.admin, "GET", "/").await), "200", "others are unharmed");
}

#[tokio::test]
async fn quitquitquit_answers_when_everything_has_drained() {
    let running = run().await;
    let guard = running.sources.drain.guard();
    let asking = tokio::spawn(ask(running.admin, "POST", "/quitquitquit"));
    let drain = running.sources.drain.clone();
    timeout(LONG, drain.graceful().cancelled()).await.expect("the drain starts");
    assert!(!drain.force().is_cancelled() && !asking.is_finished());
    drop(guard);
    timeout(LONG, drain.drained()).await.expect("nothing is left");
    // The process stops serving at this very moment; the answer is still written.
    running.stop.cancel();
    let answer = timeout(LONG, asking).await.expect("in time").expect("no panic");
    assert_eq!((status(&answer), body(&answer)), ("200", "shutdown now\n"));
    timeout(LONG, running.serving).await.expect("serving ends").expect("no panic");
    assert!(TcpStream::connect(running.admin).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_busy_port_is_named() {
    let running = run().await;
    let config = config::Admin {
        admin_port: running.admin.port(),
        stats_port: 0,
        readiness_port: 0,
        ipv6: false,
        ipv6_loopback: false,
    };
    let error = Listeners::bind(&config).await.expect_err("the port is taken").to_string();
    assert!(error.starts_with(&format!("cannot listen on {} for admin: ", running.admin)), "{error}");
}
