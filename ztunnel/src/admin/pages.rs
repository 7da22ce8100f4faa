//! What each path answers.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, VARY};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{Dump, Readiness, logging};
use crate::shutdown::Drain;
use crate::telemetry::{Levels, Metrics};

pub(super) type Answer = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

const INDEX: &str = "<!DOCTYPE html>
<html><head><title>ztunnel</title></head><body><h1>ztunnel</h1><ul>
<li><a href=\"config_dump\">/config_dump</a>: configuration, workloads, services, policies and certificates in use</li>
<li>/logging: POST shows and changes the log levels</li>
<li>/quitquitquit: POST drains and ends the process</li>
</ul></body></html>
";

pub(super) async fn admin(
    request: Request<Incoming>,
    dump: Arc<Dump>,
    levels: Levels,
    drain: Drain,
) -> Answer {
    match request.uri().path() {
        "/" => page(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "/config_dump" => page(StatusCode::OK, "application/json", dump.render()),
        "/logging" => {
            let (status, text) = logging::answer(request.method(), request.uri().query(), &levels);
            page(status, TEXT, text)
        }
        "/quitquitquit" if request.method() == Method::POST => {
            drain.start("quitquitquit");
            drain.drained().await;
            page(StatusCode::OK, TEXT, "shutdown now\n")
        }
        "/quitquitquit" => empty(StatusCode::METHOD_NOT_ALLOWED),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

pub(super) async fn metrics(request: Request<Incoming>, metrics: Arc<Metrics>) -> Answer {
    if !matches!(request.uri().path(), "/metrics" | "/stats/prometheus") {
        return empty(StatusCode::NOT_FOUND);
    }
    let openmetrics = lists(request.headers(), ACCEPT, "application/openmetrics-text");
    let kind = if openmetrics { OPENMETRICS } else { "text/plain" };
    let text = metrics.render();
    let mut answer = if lists(request.headers(), ACCEPT_ENCODING, "gzip") {
        let mut answer = page(StatusCode::OK, kind, gzip(text.as_bytes()));
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer
    } else {
        page(StatusCode::OK, kind, text)
    };
    answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    answer
}

pub(super) async fn readiness(request: Request<Incoming>, readiness: Readiness) -> Answer {
    match (request.uri().path(), request.method()) {
        ("/healthz/ready", &Method::GET) => match readiness.pending() {
            pending if pending.is_empty() => page(StatusCode::OK, TEXT, "ready\n"),
            pending => {
                let text = format!("not ready, pending: {}\n", pending.join(", "));
                page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
            }
        },
        ("/healthz/ready", _) => empty(StatusCode::METHOD_NOT_ALLOWED),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// Whether a list header names this entry without refusing it by `q=0`.
fn lists(headers: &HeaderMap, name: HeaderName, entry: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| {
            let mut parts = item.split(';').map(str::trim);
            let named = parts.next().is_some_and(|first| first.eq_ignore_ascii_case(entry));
            let refused = parts.any(|parameter| {
                parameter
                    .split_once('=')
                    .is_some_and(|(key, value)| key.eq_ignore_ascii_case("q") && value.parse() == Ok(0.0))
            });
            named && !refused
        })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("invariant: writing to a Vec cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_of_what_a_client_takes() {
        let takes = |text: &'static str, entry: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))]);
            lists(&headers, ACCEPT, entry)
        };
        assert!(takes("br;q=1.0, GZIP;q=0.5", "gzip"));
        assert!(takes(
            "application/openmetrics-text;version=1.0.0;q=0.5,*/*",
            "application/openmetrics-text"
        ));
        for refused in ["br", "", "gzip;q=0", "x, gzip; Q=0.000", "gzipped", "*/*"] {
            assert!(!takes(refused, "gzip"), "{refused}");
        }
    }
}
