use ztunnel_model::Text;
use ztunnel_model::service::{IpFamilies, Visibility};
use ztunnel_model::workload::{
    HealthStatus, Locality, NetworkMode, TunnelProtocol, WorkloadType, WorkloadUid,
};

use super::super::access_log::tests::lines;
use super::*;

fn identity(service_account: &str) -> Identity {
    Identity::new("td", "shop", service_account).expect("the parts are valid")
}

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: WorkloadUid::from(name),
        name: format!("{name}-0").into(),
        namespace: "shop".into(),
        identity: identity(name),
        addresses: Vec::new(),
        hostname: Text::default(),
        network: "".into(),
        protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: Text::default(),
        workload_type: WorkloadType::Deployment,
        workload_name: name.into(),
        canonical_name: format!("{name}-app").into(),
        canonical_revision: "v1".into(),
        cluster_id: "c1".into(),
        locality: Arc::new(Locality { region: "r1".into(), ..Locality::default() }),
        status: HealthStatus::Healthy,
        capacity: 1,
        native_tunnel: false,
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        authorization_policies: Arc::default(),
        services: Arc::default(),
    })
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        name: "cart".to_owned(),
        key: "shop/cart.shop.svc".parse().expect("a service key"),
        vips: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: None,
        ip_families: IpFamilies::default(),
        canonical: false,
        visibility: Visibility::default(),
    })
}

pub(in super::super) fn baggage() -> Baggage {
    Baggage {
        cluster: Some("c2".to_owned()),
        namespace: Some("far".to_owned()),
        workload_name: Some("web".to_owned()),
        service_name: Some("web-app".to_owned()),
        revision: Some("v2".to_owned()),
        region: None,
        zone: None,
    }
}

/// An inbound HBONE connection between two known workloads.
pub(in super::super) fn facts() -> Facts {
    Facts {
        reporter: Reporter::Destination,
        src: "10.0.0.1:40000".parse().expect("an address"),
        dst: "[fd00::2]:15008".parse().expect("an address"),
        hbone_addr: Some("[fd00::2]:8080".to_owned()),
        source: Endpoint::Workload(workload("web")),
        destination: Endpoint::Workload(workload("cart")),
        destination_service: Some(service()),
        source_principal: Some(identity("web")),
        destination_principal: Some(identity("cart")),
        security: Security::MutualTls,
        trace: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().ok(),
    }
}

/// A line with its duration made the same on every run.
fn steady(line: &str) -> String {
    let Some((before, rest)) = line.split_once("ms\"") else { return line.to_owned() };
    format!("{}0ms\"{rest}", before.trim_end_matches(|c: char| c.is_ascii_digit()))
}

fn run(json: bool, facts: Facts, result: Option<Result<(), Failure>>) -> (Vec<String>, String) {
    let metrics = Arc::new(Metrics::new("t"));
    let lines = lines(json, || {
        let connection = Connection::open(&metrics, facts);
        connection.add_received(10);
        connection.add_received(1);
        connection.add_sent(22);
        match result {
            Some(result) => connection.finish(result),
            None => drop(connection),
        }
    });
    (lines.iter().map(|line| steady(line)).collect(), metrics.render())
}

const FULL: &str = "src.addr=10.0.0.1:40000 src.workload=\"web-0\" src.namespace=\"shop\" \
                    src.identity=\"spiffe://td/ns/shop/sa/web\" src.cluster=\"c1\" dst.addr=[fd00::2]:15008 \
                    dst.hbone_addr=[fd00::2]:8080 dst.service=\"cart.shop.svc\" dst.workload=\"cart-0\" \
                    dst.namespace=\"shop\" dst.identity=\"spiffe://td/ns/shop/sa/cart\" dst.cluster=\"c1\"";
const TRACE: &str = "trace.id=4bf92f3577b34da6a3ce929d0e0e4736";
const TIME: &str = "2026-01-02T12:00:00.000001Z";

#[test]
fn a_completed_connection_in_plain() {
    let (lines, metrics) = run(false, facts(), Some(Ok(())));
    let expected = [
        format!("{TIME}\tdebug\taccess\tconnection opened\t{FULL} direction=\"inbound\" {TRACE}"),
        format!(
            "{TIME}\tinfo\taccess\tconnection complete\t{FULL} direction=\"inbound\" bytes_sent=22 bytes_recv=11 \
             duration=\"0ms\" {TRACE}"
        ),
    ];
    assert_eq!(lines, expected);
    let sample = |family: &str| metrics.lines().find(|line| line.starts_with(family)).map(str::to_owned);
    assert!(sample("istio_tcp_received_bytes_total").is_some_and(|line| line.ends_with(" 11")));
    assert!(sample("istio_tcp_sent_bytes_total").is_some_and(|line| line.ends_with(" 22")));
    assert!(sample("istio_tcp_connections_closed_total").is_some_and(|line| line.contains("flags=\"-\"")));
    assert!(sample("istio_tcp_connections_failed_total").is_none());
}

#[test]
fn a_failed_connection_in_json() {
    let facts = Facts {
        reporter: Reporter::Source,
        source: Endpoint::Baggage(Box::new(baggage())),
        destination: Endpoint::Unknown,
        destination_service: None,
        hbone_addr: None,
        security: Security::Plaintext,
        trace: None,
        ..facts()
    };
    let failure = Failure::new(Flag::Deny, "http status: 401 Unauthorized");
    let (lines, metrics) = run(true, facts, Some(Err(failure)));
    let expected = concat!(
        r#"{"level":"error","time":"2026-01-02T12:00:00.000001Z","scope":"access","message":"connection complete","#,
        r#""src.addr":"10.0.0.1:40000","src.workload":"web-app","src.namespace":"far","src.cluster":"c2","#,
        r#""dst.addr":"[fd00::2]:15008","direction":"outbound","bytes_sent":11,"bytes_recv":22,"duration":"0ms","#,
        r#""error":"http status: 401 Unauthorized"}"#
    );
    assert_eq!(lines[1], expected);
    for family in ["istio_tcp_connections_closed_total", "istio_tcp_connections_failed_total"] {
        let line = metrics.lines().find(|line| line.starts_with(family)).expect("it is counted");
        assert!(line.contains("response_flags=\"DENY\"") && line.ends_with(" 1"), "{line}");
    }
}

#[test]
fn a_dropped_connection_was_cut_by_the_drain() {
    let (lines, metrics) = run(false, facts(), None);
    assert!(lines[1].starts_with(&format!("{TIME}\terror\taccess\tconnection complete\t")), "{}", lines[1]);
    let end = format!(" error=\"closed due to connection drain\" {TRACE}");
    assert!(lines[1].ends_with(&end), "{}", lines[1]);
    assert!(metrics.contains("response_flags=\"CONNECT\""));
}

#[test]
fn early_denies_handshakes_and_decisions() {
    use ztunnel_model::policy::{Decision, DryRun as Outcome, PolicyKey};
    let metrics = Metrics::new("t");
    let Facts { src, dst, .. } = facts();
    let key = PolicyKey { namespace: "shop".to_owned(), name: "no".to_owned() };
    let web = identity("web");
    let found = lines(false, || {
        EarlyDeny { reporter: Reporter::Destination, src, dst, error: "no".to_owned() }.emit();
        HandshakeFailed { src, dst, rejection: Rejection::Http2, error: "bad preface".to_owned() }
            .emit(&metrics);
        PolicyDecision { src, dst, identity: Some(&web), decision: &Decision::DeniedBy(key.clone()) }
            .emit(true);
        DryRun { src, dst, identity: None, outcome: &Outcome::DenyMatch(key) }.emit(false);
    });
    let ends = "src.addr=10.0.0.1:40000 dst.addr=[fd00::2]:15008";
    let expected = [
        format!("{TIME}\twarn\taccess\tconnection failed\t{ends} direction=\"inbound\" error=\"no\""),
        format!(
            "{TIME}\twarn\tproxy::inbound\tinbound handshake failed\t{ends} reason=\"http2\" error=\"bad preface\""
        ),
        format!(
            "{TIME}\tinfo\tpolicy\tpolicy decision\tsrc.addr=10.0.0.1:40000 \
             src.identity=\"spiffe://td/ns/shop/sa/web\" dst.addr=[fd00::2]:15008 \
             decision=\"explicitly denied by: shop/no\""
        ),
        format!(
            "{TIME}\tdebug\tpolicy\tdry-run policy decision\t{ends} decision=\"dry-run deny match: shop/no\""
        ),
    ];
    assert_eq!(found, expected);
    assert!(metrics.render().contains("ztunnel_inbound_handshake_failures_total{reason=\"http2\"} 1"));
}
