//! Who asks: the node that the first request of every type carries (interop.md section 4.2).

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;

use crate::proto;

/// What the operator and the downward API say about this proxy.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// INSTANCE_IP.
    pub instance_ip: String,
    /// POD_NAME.
    pub pod_name: String,
    /// POD_NAMESPACE.
    pub pod_namespace: String,
    /// NODE_NAME.
    pub node_name: String,
    /// The proxy's metadata: entries of ISTIO_META_ without the prefix.
    pub metadata: Vec<(String, String)>,
    /// Entries of ISTIO_METAJSON_ without the prefix; each value is JSON text.
    pub json_metadata: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("ISTIO_METAJSON_{name} is not JSON: {source}; write for example {{\"key\":\"value\"}}")]
    Json { name: String, source: serde_json::Error },
}

impl Node {
    /// As it goes over the wire. A later entry of the same name wins: the pod's own, then `metadata`, then the typed.
    pub fn to_proto(&self) -> Result<proto::Node, Error> {
        let Self { instance_ip, pod_name, pod_namespace, node_name, .. } = self;
        let own = [
            ("NAME", pod_name),
            ("NAMESPACE", pod_namespace),
            ("INSTANCE_IPS", instance_ip),
            ("NODE_NAME", node_name),
        ];
        let mut fields: BTreeMap<String, Value> =
            own.into_iter().map(|(name, text)| (name.to_owned(), string(text))).collect();
        fields.extend(self.metadata.iter().map(|(name, text)| (name.clone(), string(text))));
        for (name, text) in &self.json_metadata {
            let json =
                serde_json::from_str(text).map_err(|source| Error::Json { name: name.clone(), source })?;
            fields.insert(name.clone(), typed(json));
        }
        Ok(proto::Node {
            id: format!("ztunnel~{instance_ip}~{pod_name}.{pod_namespace}~{pod_namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields }),
            ..Default::default()
        })
    }
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

/// JSON to protobuf's JSON. Numbers are doubles there.
fn typed(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(typed).collect() }),
        Json::Object(entries) => Kind::StructValue(Struct {
            fields: entries.into_iter().map(|(name, it)| (name, typed(it))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node {
            instance_ip: "10.0.0.7".into(),
            pod_name: "ztunnel-x".into(),
            pod_namespace: "istio-system".into(),
            node_name: "worker-1".into(),
            metadata: vec![("CLUSTER_ID".into(), "east".into()), ("NODE_NAME".into(), "other".into())],
            json_metadata: vec![("LABELS".into(), r#"{"a":["b",1.5,null,true]}"#.into())],
        }
    }

    #[test]
    fn the_node_is_what_the_server_expects() {
        let sent = node().to_proto().expect("the metadata is good");
        assert_eq!(sent.id, "ztunnel~10.0.0.7~ztunnel-x.istio-system~istio-system.svc.cluster.local");
        assert!(sent.cluster.is_empty() && sent.build_version.is_empty());
        let fields = sent.metadata.expect("metadata").fields;
        let text = |name: &str| match fields.get(name).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text.as_str(),
            _ => "",
        };
        assert_eq!(
            ["NAME", "NAMESPACE", "INSTANCE_IPS", "CLUSTER_ID", "NODE_NAME"].map(text),
            ["ztunnel-x", "istio-system", "10.0.0.7", "east", "other"]
        );
        let Some(Kind::StructValue(labels)) = &fields["LABELS"].kind else { panic!("LABELS is an object") };
        let Some(Kind::ListValue(list)) = &labels.fields["a"].kind else { panic!("a is a list") };
        let kinds: Vec<_> = list.values.iter().filter_map(|value| value.kind.clone()).collect();
        let expected = [
            Kind::StringValue("b".into()),
            Kind::NumberValue(1.5),
            Kind::NullValue(0),
            Kind::BoolValue(true),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn metadata_that_is_no_json_is_named() {
        let json_metadata = vec![("LABELS".to_owned(), "{a".to_owned())];
        let message = Node { json_metadata, ..node() }.to_proto().expect_err("no JSON").to_string();
        assert!(message.starts_with("ISTIO_METAJSON_LABELS is not JSON: "), "{message}");
    }
}
