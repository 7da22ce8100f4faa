//! Who a client says it is.

use std::sync::Arc;

use prost_types::value::Kind;
use xds_client::proto;

use super::End;

const NODE_NAME: &str = "NODE_NAME";

/// How much of a client's own words is kept.
const ID: usize = 256;

/// A client as it presented itself.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: String,
    /// The node that it runs on.
    pub name: Option<Arc<str>>,
}

impl Node {
    /// The name must be that of the token, if the token has one: what a node may see depends on it.
    pub(super) fn of(node: &proto::Node, shown: Option<Arc<str>>) -> Result<Self, End> {
        let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(NODE_NAME));
        let claimed = match field.map(|value| &value.kind) {
            None => None,
            Some(Some(Kind::StringValue(name))) => Some(name.as_str()).filter(|name| !name.is_empty()),
            Some(_) => return Err(End::NodeName),
        };
        if let (Some(claimed), Some(shown)) = (claimed, &shown)
            && *claimed != **shown
        {
            let claimed = claimed.chars().take(ID).collect();
            return Err(End::OtherNode { claimed, shown: shown.to_string() });
        }
        let name = shown.or_else(|| claimed.map(Arc::from));
        Ok(Self { id: node.id.chars().take(ID).collect(), name })
    }
}
