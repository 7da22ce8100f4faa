//! One object, read or made once.

use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde::de::DeserializeSeed;
use serde_json::Value;

use super::Keep;
use super::ask::{Trouble, read, unreadable};

const LONGEST: u64 = 16 << 20;

/// The object at this path; `None` if there is none.
pub async fn get(
    client: &Client,
    path: &str,
    keep: Keep,
    deadline: Duration,
) -> Result<Option<Value>, Trouble> {
    let text = match answered(client, Method::GET, path, Vec::new(), deadline).await {
        Err(Trouble::Refused { code: 404, .. }) => return Ok(None),
        answered => answered?,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let object = keep.deserialize(&mut deserializer);
    object.and_then(|object| deserializer.end().map(|()| Some(object))).map_err(unreadable)
}

/// Makes an object in the list at this path.
pub async fn post(client: &Client, path: &str, object: &Value, deadline: Duration) -> Result<(), Trouble> {
    answered(client, Method::POST, path, object.to_string().into_bytes(), deadline).await.map(drop)
}

/// Makes the object at this path what `object` says, as far as it says something, and `manager` the owner of that.
pub async fn apply(
    client: &Client,
    path: &str,
    object: &Value,
    manager: &str,
    dry_run: bool,
    deadline: Duration,
) -> Result<(), Trouble> {
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let path = format!("{path}?fieldManager={manager}&force=true{dry_run}");
    patched(client, path, "application/apply-patch+yaml", object, deadline).await
}

/// Changes what `patch` names of the object at this path (RFC 7396); `null` takes it away.
pub async fn merge(
    client: &Client,
    path: &str,
    patch: &Value,
    manager: &str,
    deadline: Duration,
) -> Result<(), Trouble> {
    let path = format!("{path}?fieldManager={manager}");
    patched(client, path, "application/merge-patch+json", patch, deadline).await
}

/// Deletes the object at this path and what belongs to it; whether there was one.
pub async fn delete(client: &Client, path: &str, deadline: Duration) -> Result<bool, Trouble> {
    match answered(client, Method::DELETE, path, Vec::new(), deadline).await {
        Err(Trouble::Refused { code: 404, .. }) => Ok(false),
        answered => answered.map(|_| true),
    }
}

async fn patched(
    client: &Client,
    path: String,
    kind: &'static str,
    patch: &Value,
    deadline: Duration,
) -> Result<(), Trouble> {
    let request = Request::builder().method(Method::PATCH).uri(path).header("content-type", kind);
    send(client, request, patch.to_string().into_bytes(), deadline).await.map(drop)
}

async fn answered(
    client: &Client,
    method: Method,
    path: &str,
    body: Vec<u8>,
    deadline: Duration,
) -> Result<Vec<u8>, Trouble> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    send(client, request, body, deadline).await
}

async fn send(
    client: &Client,
    request: http::request::Builder,
    body: Vec<u8>,
    deadline: Duration,
) -> Result<Vec<u8>, Trouble> {
    let request = request.body(body).map_err(|error| Trouble::Unreadable(error.to_string()))?;
    let mut text = Vec::new();
    read(client, request, LONGEST, deadline, &mut text).await?;
    Ok(text)
}

#[cfg(all(test, feature = "scripted"))]
mod tests;
