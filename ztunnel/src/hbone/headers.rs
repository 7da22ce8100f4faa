//! Headers of a CONNECT (interop.md sections 2.3, 2.4 and 2.6).

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use ztunnel_model::Workload;

use crate::telemetry::events::{Baggage, Trace};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a CONNECT carries beside its authority.
pub fn request(
    workload: &Workload,
    source: SocketAddr,
    service_host: Option<&str>,
    trace: Trace,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    insert(&mut headers, BAGGAGE, baggage(workload));
    insert(&mut headers, http::header::FORWARDED, forwarded(source, service_host));
    insert(&mut headers, TRACEPARENT, trace.to_string());
    headers
}

/// What a 200 carries.
pub fn response(workload: &Workload) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    insert(&mut headers, BAGGAGE, baggage(workload));
    headers
}

/// The peer's trace, if it is well-formed.
pub fn trace(headers: &HeaderMap) -> Option<Trace> {
    headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// The `host` parameter of `forwarded`: the service that the client meant.
pub fn forwarded_host(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(http::header::FORWARDED)?.to_str().ok()?;
    let host = text.split(';').find_map(|part| part.strip_prefix("host="))?.trim_matches('"');
    (!host.is_empty()).then_some(host)
}

/// What the other end says of itself; only for telemetry, never for policy.
pub fn parse_baggage(headers: &HeaderMap) -> Baggage {
    let mut baggage = Baggage::default();
    for value in headers.get_all(BAGGAGE) {
        let Ok(text) = value.to_str() else { return Baggage::default() };
        for pair in text.split(',') {
            let mut pieces = pair.split('=');
            let (Some(key), Some(value)) = (pieces.next(), pieces.next()) else { continue };
            let value = (!value.is_empty()).then(|| value.to_owned());
            match key {
                "k8s.cluster.name" => baggage.cluster = value,
                "k8s.namespace.name" => baggage.namespace = value,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    baggage.workload_name = value;
                }
                "service.name" => baggage.service_name = value,
                "service.version" => baggage.revision = value,
                "cloud.region" => baggage.region = value,
                "cloud.availability_zone" => baggage.zone = value,
                _ => {}
            }
        }
    }
    baggage
}

fn baggage(workload: &Workload) -> String {
    let name_key = format!("k8s.{}.name", workload.workload_type.as_str());
    let pairs = [
        ("k8s.cluster.name", workload.cluster_id.as_str()),
        ("k8s.namespace.name", &workload.namespace),
        (&name_key, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let present = pairs.iter().filter(|(_, value)| !value.is_empty());
    present.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn forwarded(source: SocketAddr, service_host: Option<&str>) -> String {
    match service_host {
        Some(host) => format!("for=\"{source}\";host={host}"),
        None => format!("for=\"{source}\""),
    }
}

/// A text that cannot be a header value (a control character in a name) is left out: it is telemetry only.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
        headers
    }

    #[test]
    fn forwarded_names_source_and_service() {
        let four = "10.0.0.1:1234".parse().expect("an address");
        let six = "[fd00::1]:1234".parse().expect("an address");
        assert_eq!(forwarded(four, None), "for=\"10.0.0.1:1234\"");
        assert_eq!(forwarded(six, Some("a.b.svc")), "for=\"[fd00::1]:1234\";host=a.b.svc");
    }

    #[test]
    fn only_the_host_parameter_is_read() {
        let host = |text| forwarded_host(&map(http::header::FORWARDED, text)).map(str::to_owned);
        assert_eq!(host("for=\"10.0.0.1:1\";host=a.svc").as_deref(), Some("a.svc"));
        assert_eq!(host("host=\"a.svc\"").as_deref(), Some("a.svc"));
        assert_eq!(host("for=\"10.0.0.1:1\""), None);
        assert_eq!(host("host="), None);
    }

    #[test]
    fn baggage_takes_what_stands_between_the_first_two_equal_signs() {
        let text = "k8s.cluster.name=c,k8s.deployment.name=d, k8s.namespace.name=skipped,service.name=s=x,cloud.region=,other=1";
        let baggage = parse_baggage(&map(BAGGAGE, text));
        assert_eq!(baggage.cluster.as_deref(), Some("c"));
        assert_eq!(baggage.workload_name.as_deref(), Some("d"));
        assert_eq!(baggage.namespace, None);
        assert_eq!(baggage.service_name.as_deref(), Some("s"));
        assert_eq!(baggage.region, None);
    }
}
