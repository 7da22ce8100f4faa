//! The field numbers of interop.md section 4.5: a message with every field set has these tags on the wire, in order.

use prost::Message;
use prost::encoding::{decode_key, skip_field};
use prost_types::{Any, Duration, Struct};

use crate::proto::*;

fn tags(message: &impl Message) -> Vec<u32> {
    let bytes = message.encode_to_vec();
    let mut rest = bytes.as_slice();
    let mut tags = Vec::new();
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).expect("a field");
        skip_field(wire_type, tag, &mut rest, Default::default()).expect("its value");
        tags.push(tag);
    }
    tags
}

fn some() -> String {
    "some".to_owned()
}

fn status() -> Status {
    Status { code: 1, message: some(), details: vec![Any::default()] }
}

fn node() -> Node {
    Node { id: some(), cluster: some(), metadata: Some(Struct::default()), build_version: some() }
}

#[test]
fn the_fields_have_their_numbers() {
    assert_eq!(tags(&status()), [1, 2, 3]);
    assert_eq!(tags(&node()), [1, 2, 3, 5]);
    let request = DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: some(),
        resource_names_subscribe: vec![some()],
        resource_names_unsubscribe: vec![some()],
        initial_resource_versions: [(some(), some())].into(),
        response_nonce: some(),
        error_detail: Some(status()),
    };
    assert_eq!(tags(&request), [1, 2, 3, 4, 5, 6, 7]);
    let cache_control = resource::CacheControl { do_not_cache: true };
    assert_eq!(tags(&cache_control), [1]);
    let resource = Resource {
        version: some(),
        resource: Some(Any::default()),
        name: some(),
        aliases: vec![some()],
        ttl: Some(Duration::default()),
        cache_control: Some(cache_control),
    };
    assert_eq!(tags(&resource), [1, 2, 3, 4, 6, 7]);
    let response = DeltaDiscoveryResponse {
        system_version_info: some(),
        resources: vec![resource],
        type_url: some(),
        nonce: some(),
        removed_resources: vec![some()],
    };
    assert_eq!(tags(&response), [1, 2, 4, 5, 6]);
}

#[test]
fn the_service_has_its_name() {
    assert_eq!(
        aggregated_discovery_service_server::SERVICE_NAME,
        "envoy.service.discovery.v3.AggregatedDiscoveryService"
    );
}
