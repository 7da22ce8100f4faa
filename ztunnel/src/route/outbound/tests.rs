use super::*;
use crate::state::apply::build;
use ztunnel_model::codec::static_config::parse;

const MESH: &str = "
workloads:
- {uid: client, name: client, namespace: web, serviceAccount: web, workloadIps: [10.0.0.9], services: {}}
- {uid: plain, name: plain, namespace: shop, workloadIps: [10.0.0.1], services: {shop/old.svc: {}}}
- {uid: meshed, name: meshed, namespace: shop, serviceAccount: cart, protocol: HBONE, workloadIps: [10.0.0.2, 'fd00::2'], services: {shop/cart.svc: {80: 8080}}}
- {uid: guarded, name: guarded, namespace: shop, protocol: HBONE, workloadIps: [10.0.0.3], services: {}, waypoint: {destination: /10.9.0.1, hboneMtlsPort: 15008}}
services:
- {name: cart, namespace: shop, hostname: cart.svc, vips: [/10.1.0.1, '/fd00:1::1'], ports: {80: 8080}, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/other', 'not-spiffe']}
- {name: empty, namespace: shop, hostname: empty.svc, vips: [/10.1.0.2], ports: {80: 8080}}
- {name: pass, namespace: shop, hostname: pass.svc, vips: [/10.1.0.3], ports: {80: 8080}, loadBalancer: {mode: Passthrough, routingPreferences: [], healthPolicy: OnlyHealthy}}
- {name: via, namespace: shop, hostname: via.svc, vips: [/10.1.0.4], ports: {80: 8080}, waypoint: {destination: /10.9.0.1, hboneMtlsPort: 15008}}
- {name: old, namespace: shop, hostname: old.svc, vips: [/10.1.0.5], ports: {80: 8080}}
";

fn decide(destination: &str) -> Result<Route, Refused> {
    let snapshot = build(&parse(MESH, "test.yaml").unwrap_or_else(|mistakes| panic!("{mistakes:?}")));
    let from = snapshot.workload(&"client".into()).expect("the client").clone();
    route(&snapshot, &from, OrigDst::new(destination.parse().expect("an address")), &[])
}

fn hbone(destination: &str) -> (SocketAddr, SocketAddr, IdentitySet) {
    match decide(destination) {
        Ok(Route::Hbone { hop, authority, .. }) => (hop.addr, authority, hop.expected),
        other => panic!("{destination} must go through a tunnel, not {other:?}"),
    }
}

#[test]
fn a_meshed_workload_is_reached_through_its_tunnel_port() {
    let (hop, authority, expected) = hbone("10.0.0.2:9999");
    assert_eq!(hop.to_string(), "10.0.0.2:15008");
    assert_eq!(authority.to_string(), "10.0.0.2:9999");
    assert_eq!(expected.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
}

#[test]
fn a_service_leads_to_an_endpoint_of_the_dialled_family() {
    let (hop, authority, expected) = hbone("10.1.0.1:80");
    assert_eq!((hop.to_string(), authority.to_string()), ("10.0.0.2:15008".into(), "10.0.0.2:8080".into()));
    assert!(expected.contains(&"spiffe://cluster.local/ns/shop/sa/other".parse().expect("an identity")));
    let (hop, ..) = hbone("[fd00:1::1]:80");
    assert_eq!(hop.to_string(), "[fd00::2]:15008");
}

#[test]
fn plain_and_unknown_destinations() {
    assert!(
        matches!(decide("10.0.0.1:80"), Ok(Route::Tcp { addr, .. }) if addr.to_string() == "10.0.0.1:80")
    );
    assert!(
        matches!(decide("10.1.0.5:80"), Ok(Route::Tcp { addr, .. }) if addr.to_string() == "10.0.0.1:8080")
    );
    assert!(matches!(decide("192.0.2.1:443"), Ok(Route::Passthrough { .. })));
    assert!(matches!(decide("10.1.0.3:80"), Ok(Route::Passthrough { .. })));
}

#[test]
fn what_cannot_be_served_is_refused() {
    assert_eq!(decide("127.0.0.1:15001").err(), Some(Refused::Recursive));
    assert!(matches!(decide("10.1.0.2:80"), Err(Refused::NoUpstream(_))));
    assert!(
        matches!(decide("10.1.0.1:81"), Err(Refused::NoUpstream(_))),
        "a port that the service does not list"
    );
    assert!(matches!(decide("10.1.0.4:80"), Err(Refused::NeedsWaypoint(_))));
    assert!(matches!(decide("10.0.0.3:80"), Err(Refused::NeedsWaypoint(_))));
}
