use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::proto::{security, workload as wire};
use super::static_config::{self, StaticConfig};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn workloads_survive_the_wire(workload in arbitrary::workload()) {
        let address = Address::Workload(std::sync::Arc::new(workload));
        prop_assert_eq!(Address::decode(&address.encode()), Ok(address));
    }

    #[test]
    fn what_is_shared_is_what_was_sent(
        workloads in vec(arbitrary::workload(), 1..4),
        order in vec(any::<proptest::sample::Index>(), 1..12),
    ) {
        let mut interner = Interner::default();
        for index in order {
            let mut workload = index.get(&workloads).clone();
            // Neighbours say nearly the same.
            workload.services = workloads[0].services.iter().take(order_of(&workload)).map(|(key, ports)| (key.clone(), ports.clone())).collect::<crate::workload::Memberships>().into();
            let address = Address::Workload(workload.into());
            prop_assert_eq!(Address::decode_sharing(&address.encode(), &mut interner), Ok(address));
        }
    }

    #[test]
    fn services_survive_the_wire(service in arbitrary::service()) {
        let address = Address::Service(std::sync::Arc::new(service));
        prop_assert_eq!(Address::decode(&address.encode()), Ok(address));
    }

    #[test]
    fn policies_survive_the_wire(policy in arbitrary::policy()) {
        prop_assert_eq!(policy::decode(&policy::encode(&policy)), Ok(policy));
    }

    #[test]
    fn static_configurations_survive_being_written(
        workloads in vec(arbitrary::workload(), 0..3),
        services in vec(arbitrary::service(), 0..3),
        policies in vec(arbitrary::policy(), 0..3),
    ) {
        let config = without_conflicts(StaticConfig { workloads, services, policies });
        let written = static_config::to_json(&config);
        prop_assert_eq!(static_config::parse(&written, "written.json"), Ok(config), "{}", written);
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Address::decode(&bytes);
        let _ = policy::decode(&bytes);
    }
}

/// Some small number that a workload has.
fn order_of(workload: &Workload) -> usize {
    workload.name.len() % 4
}

fn read(message: wire::Workload) -> Result<Workload, Error> {
    workload::from_proto(message, &mut Interner::default())
}

/// Two resources of one key or of one address are refused; that is not what is tried here.
fn without_conflicts(mut config: StaticConfig) -> StaticConfig {
    let taken: Vec<_> = config.workloads.iter().flat_map(|workload| workload.addresses.clone()).collect();
    for (index, workload) in config.workloads.iter_mut().enumerate() {
        workload.uid = format!("{}{index}", workload.uid).as_str().into();
    }
    for (index, service) in config.services.iter_mut().enumerate() {
        service.key.namespace.push_str(&index.to_string());
        let mut seen = Vec::new();
        service.vips.retain(|vip| !(vip.is_exact() && taken.contains(&vip.prefix.addr())));
        service.vips.retain(|vip| {
            !seen.contains(vip) && {
                seen.push(vip.clone());
                true
            }
        });
    }
    for (index, policy) in config.policies.iter_mut().enumerate() {
        policy.key.name.push_str(&index.to_string());
    }
    config
}

fn a_workload() -> wire::Workload {
    wire::Workload { uid: "c//v1/Pod/shop/cart-0".into(), namespace: "shop".into(), ..Default::default() }
}

fn a_service() -> wire::Service {
    wire::Service { namespace: "shop".into(), hostname: "cart.shop".into(), ..Default::default() }
}

fn a_policy(one: security::Match) -> security::Authorization {
    let clause = security::Clause { matches: vec![security::Match::default(), one] };
    security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        rules: vec![security::Rule { clauses: vec![clause] }],
        ..Default::default()
    }
}

fn an_address(bytes: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress { network: String::new(), address: bytes.to_vec(), length }
}

fn a_gateway(destination: Option<wire::gateway_address::Destination>) -> wire::GatewayAddress {
    wire::GatewayAddress { destination, hbone_mtls_port: 15008 }
}

#[test]
fn defaults_are_filled_in() {
    let workload = read(a_workload()).expect("a minimal workload");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((workload.cluster_id.as_str(), workload.capacity), ("Kubernetes", 1));
    let never = wire::Workload { capacity: Some(0), ..a_workload() };
    assert_eq!(read(never).expect("zero is a weight").capacity, 0);
    let service = service::from_proto(a_service()).expect("a minimal service");
    assert_eq!(service.load_balancing, None);
}

#[test]
fn v4_mapped_addresses_become_ipv4() {
    let mapped = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
    let workload = wire::Workload { addresses: vec![mapped(7).to_vec()], ..a_workload() };
    let workload = read(workload).expect("16 bytes");
    assert_eq!(workload.addresses, ["10.0.0.7".parse::<std::net::IpAddr>().expect("an address")]);
    let range = security::Address { address: mapped(0).to_vec(), length: 120 };
    let one = security::Match { source_ips: vec![range], ..Default::default() };
    let policy = policy::from_proto(a_policy(one)).expect("a range");
    assert_eq!(policy.rules[0].clauses[0].matches[1].source_ips[0].to_string(), "10.0.0.0/24");
}

#[test]
fn a_prefix_length_of_zero_is_the_whole_family_in_policies_and_absent_is_one_address_in_services() {
    let everywhere = security::Address { address: vec![10, 0, 0, 1], length: 0 };
    let one = security::Match { source_ips: vec![everywhere], ..Default::default() };
    let policy = policy::from_proto(a_policy(one)).expect("a range");
    assert_eq!(policy.rules[0].clauses[0].matches[1].source_ips[0].prefix_len(), 0);
    let addresses = vec![an_address(&[10, 0, 0, 1], None), an_address(&[10, 1, 2, 3], Some(16))];
    let service = service::from_proto(wire::Service { addresses, ..a_service() }).expect("two addresses");
    let vips: Vec<String> = service.vips.iter().map(|vip| vip.prefix.to_string()).collect();
    assert_eq!(vips, ["10.0.0.1/32", "10.1.0.0/16"]);
}

#[test]
fn bad_workloads_are_refused_by_field_and_value() {
    use wire::gateway_address::Destination;
    let port = |service_port, target_port| wire::Port { service_port, target_port, app_protocol: 0 };
    let endpoint = |key: &str, port| ([(key.to_owned(), wire::PortList { ports: vec![port] })]).into();
    let tunnel = |protocol, port| Some(wire::ApplicationTunnel { protocol, port });
    let nameless = wire::NamespacedHostname { namespace: "shop".into(), hostname: String::new() };
    let v4 = [10, 0, 0, 1];
    for (bad, expected) in [
        (wire::Workload { uid: String::new(), ..a_workload() }, "uid: \"\": "),
        (wire::Workload { namespace: String::new(), ..a_workload() }, "namespace: \"\": "),
        (wire::Workload { service_account: "a/b".into(), ..a_workload() }, "service_account: \"a/b\": "),
        (
            wire::Workload { addresses: vec![v4.to_vec(), vec![1; 5]], ..a_workload() },
            "addresses[1]: 5 bytes: ",
        ),
        (wire::Workload { addresses: vec![vec![]], ..a_workload() }, "addresses[0]: 0 bytes: "),
        (wire::Workload { tunnel_protocol: 2, ..a_workload() }, "tunnel_protocol: LegacyIstioMtls: "),
        (wire::Workload { tunnel_protocol: 9, ..a_workload() }, "tunnel_protocol: 9: "),
        (wire::Workload { network_mode: 9, ..a_workload() }, "network_mode: 9: "),
        (wire::Workload { workload_type: -1, ..a_workload() }, "workload_type: -1: "),
        (wire::Workload { status: 2, ..a_workload() }, "status: 2: "),
        (
            wire::Workload { waypoint: Some(a_gateway(None)), ..a_workload() },
            "waypoint.destination: absent: ",
        ),
        (
            wire::Workload {
                network_gateway: Some(a_gateway(Some(Destination::Hostname(nameless)))),
                ..a_workload()
            },
            "network_gateway.hostname: \"shop/\": ",
        ),
        (
            wire::Workload {
                waypoint: Some(a_gateway(Some(Destination::Address(an_address(&v4, Some(8)))))),
                ..a_workload()
            },
            "waypoint.address.length: 8: ",
        ),
        (
            wire::Workload {
                waypoint: Some(a_gateway(Some(Destination::Address(an_address(&[1], None))))),
                ..a_workload()
            },
            "waypoint.address.address: 1 bytes: ",
        ),
        (
            wire::Workload {
                waypoint: Some(wire::GatewayAddress {
                    hbone_mtls_port: 65536,
                    ..a_gateway(Some(Destination::Address(an_address(&v4, None))))
                }),
                ..a_workload()
            },
            "waypoint.hbone_mtls_port: 65536: ",
        ),
        (
            wire::Workload { application_tunnel: tunnel(0, 65536), ..a_workload() },
            "application_tunnel.port: 65536: ",
        ),
        (
            wire::Workload { application_tunnel: tunnel(7, 0), ..a_workload() },
            "application_tunnel.protocol: 7: ",
        ),
        (
            wire::Workload { services: endpoint("cart", port(1, 1)), ..a_workload() },
            "services[\"cart\"]: \"cart\": ",
        ),
        (
            wire::Workload { services: endpoint("shop/cart", port(80, 70000)), ..a_workload() },
            "services[\"shop/cart\"].ports[0].target_port: 70000: ",
        ),
    ] {
        let error = read(bad).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error} does not start with {expected}");
    }
}

#[test]
fn bad_services_are_refused_by_field_and_value() {
    let balancing = |scope, mode, health_policy| {
        Some(wire::LoadBalancing { routing_preference: vec![1, scope], mode, health_policy })
    };
    for (bad, expected) in [
        (wire::Service { hostname: String::new(), ..a_service() }, "hostname: \"shop/\": "),
        (
            wire::Service { addresses: vec![an_address(&[10, 0, 0, 1], Some(33))], ..a_service() },
            "addresses[0]: 10.0.0.1/33: ",
        ),
        (
            wire::Service { addresses: vec![an_address(&[0; 16], Some(256))], ..a_service() },
            "addresses[0]: ::/256: ",
        ),
        (
            wire::Service { addresses: vec![an_address(&[0; 3], None)], ..a_service() },
            "addresses[0]: 3 bytes: ",
        ),
        (
            wire::Service {
                ports: vec![wire::Port { service_port: 65536, target_port: 1, app_protocol: 0 }],
                ..a_service()
            },
            "ports[0].service_port: 65536: ",
        ),
        (
            wire::Service { load_balancing: balancing(0, 0, 0), ..a_service() },
            "load_balancing.routing_preference[1]: UnspecifiedScope: ",
        ),
        (
            wire::Service { load_balancing: balancing(9, 0, 0), ..a_service() },
            "load_balancing.routing_preference[1]: 9: ",
        ),
        (wire::Service { load_balancing: balancing(1, 4, 0), ..a_service() }, "load_balancing.mode: 4: "),
        (
            wire::Service { load_balancing: balancing(1, 1, 2), ..a_service() },
            "load_balancing.health_policy: 2: ",
        ),
        (wire::Service { ip_families: 4, ..a_service() }, "ip_families: 4: "),
        (wire::Service { visibility: 2, ..a_service() }, "visibility: 2: "),
        (wire::Service { waypoint: Some(a_gateway(None)), ..a_service() }, "waypoint.destination: absent: "),
        (
            wire::Service {
                weighted_waypoints: vec![wire::WeightedWaypoint { destination: None, weight: 1 }],
                ..a_service()
            },
            "weighted_waypoints[0].destination: absent: ",
        ),
    ] {
        let error = service::from_proto(bad).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error} does not start with {expected}");
    }
}

#[test]
fn bad_policies_are_refused_by_field_and_value() {
    let no_kind = || vec![security::StringMatch { match_type: None }];
    let range = |bytes: &[u8], length| vec![security::Address { address: bytes.to_vec(), length }];
    let none = security::Match::default;
    let inside = "rules[0].clauses[0].matches[1]";
    for (bad, expected) in [
        (security::Authorization { name: String::new(), ..a_policy(none()) }, "name: ".to_owned()),
        (security::Authorization { scope: 3, ..a_policy(none()) }, "scope: 3: ".to_owned()),
        (security::Authorization { action: 2, ..a_policy(none()) }, "action: 2: ".to_owned()),
        (
            a_policy(security::Match { not_principals: no_kind(), ..none() }),
            format!("{inside}.not_principals[0].match_type: absent: "),
        ),
        (
            a_policy(security::Match { namespaces: no_kind(), ..none() }),
            format!("{inside}.namespaces[0].match_type: absent: "),
        ),
        (
            a_policy(security::Match { source_ips: range(&[10, 0, 0], 8), ..none() }),
            format!("{inside}.source_ips[0]: 3 bytes: "),
        ),
        (
            a_policy(security::Match { not_destination_ips: range(&[10, 0, 0, 1], 264), ..none() }),
            format!("{inside}.not_destination_ips[0]: 10.0.0.1/264: "),
        ),
        (
            a_policy(security::Match { destination_ports: vec![80, 65616], ..none() }),
            format!("{inside}.destination_ports[1]: 65616: "),
        ),
    ] {
        let error = policy::from_proto(bad).expect_err(&expected).to_string();
        assert!(error.starts_with(&expected), "{error} does not start with {expected}");
    }
}

#[test]
fn undecodable_bytes_and_empty_addresses_are_refused() {
    assert_eq!(Address::decode(&[0xff]).expect_err("no message").field(), "resource");
    assert_eq!(Address::decode(&[]).expect_err("neither workload nor service").field(), "type");
}

#[test]
fn the_wire_is_istio_s() {
    // Written by hand from the numbers of interop.md section 4.6.
    let workload = wire::Workload { capacity: Some(2), canonical_name: "x".into(), ..a_workload() };
    let bytes = wire::Workload { uid: "u".into(), namespace: "n".into(), ..workload }.encode_to_vec();
    let expected =
        [&[0x12, 1, b'n'][..], &[0x52, 1, b'x'], &[0xa2, 0x01, 1, b'u'], &[0xda, 0x01, 2, 0x08, 2]].concat();
    assert_eq!(bytes, expected);
    let presence = security::string_match::MatchType::Presence(());
    let text = security::StringMatch { match_type: Some(presence) };
    let one = security::Match { not_principals: vec![text], ..Default::default() };
    let bytes = security::Clause { matches: vec![one] }.encode_to_vec();
    assert_eq!(bytes, [0x12, 4, 0x22, 2, 0x22, 0], "matches = 2, not_principals = 4, presence = 4");
}
