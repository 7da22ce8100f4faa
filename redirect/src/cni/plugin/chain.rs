//! The result of the plugins before this one: handed on, and read for the pod's addresses.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::failure::Cause;

/// What ADD prints: the previous result, in the version of the configuration.
pub(super) fn result(previous: &Value, version: &str) -> Result<String, Cause> {
    let mut result = object(previous)?.clone();
    result.insert("cniVersion".to_owned(), version.into());
    if let Some(Value::Array(addresses)) = result.get_mut("ips") {
        for address in addresses.iter_mut().filter_map(Value::as_object_mut) {
            if version.starts_with("0.") {
                let six = parse(address)?.is_ipv6();
                address.insert("version".to_owned(), if six { "6" } else { "4" }.into());
            } else {
                address.remove("version");
            }
        }
    }
    Ok(Value::Object(result).to_string())
}

/// The addresses inside the sandbox; those that lie on the node's interfaces are left out.
pub(super) fn addresses(previous: &Value) -> Result<Vec<IpAddr>, Cause> {
    let result = object(previous)?;
    let interfaces = list(result, "interfaces")?;
    let mut found = Vec::new();
    for address in list(result, "ips")? {
        let address = object(address)?;
        let inside = match address.get("interface") {
            None | Some(Value::Null) => true,
            Some(index) => {
                let interface = index
                    .as_u64()
                    .and_then(|index| interfaces.get(usize::try_from(index).ok()?))
                    .ok_or_else(|| {
                        Cause::Previous(format!("ips name interface {index}, which is not there"))
                    })?;
                interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
            }
        };
        let address = parse(address)?;
        if inside {
            found.push(address);
        }
    }
    Ok(found)
}

fn object(value: &Value) -> Result<&Map<String, Value>, Cause> {
    value.as_object().ok_or_else(|| Cause::Previous(format!("{value} is not an object")))
}

fn list<'a>(result: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], Cause> {
    match result.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(Cause::Previous(format!("{key} is not a list"))),
    }
}

fn parse(address: &Map<String, Value>) -> Result<IpAddr, Cause> {
    let text = address.get("address").and_then(Value::as_str).unwrap_or_default();
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    address.parse().map_err(|_| Cause::Previous(format!("ips have the address {text:?}")))
}
