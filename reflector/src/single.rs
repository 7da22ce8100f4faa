//! One object, read or made once.

use std::time::Duration;

use futures::AsyncReadExt;
use http::{Method, Request};
use kube::Client;
use serde::de::DeserializeSeed;
use serde_json::Value;
use tokio::time::timeout;

use super::Keep;
use super::ask::{Trouble, trouble, unreadable};

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
    let request = Request::builder().method(Method::PATCH).uri(path);
    let request = request.header("content-type", "application/apply-patch+yaml");
    send(client, request, object.to_string().into_bytes(), deadline).await.map(drop)
}

/// Deletes the object at this path and what belongs to it; whether there was one.
pub async fn delete(client: &Client, path: &str, deadline: Duration) -> Result<bool, Trouble> {
    match answered(client, Method::DELETE, path, Vec::new(), deadline).await {
        Err(Trouble::Refused { code: 404, .. }) => Ok(false),
        answered => answered.map(|_| true),
    }
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
    let answered = async {
        let mut text = Vec::new();
        let answer = client.request_stream(request).await.map_err(trouble)?;
        answer.take(LONGEST + 1).read_to_end(&mut text).await.map_err(Trouble::Broken)?;
        Ok(text)
    };
    let text = timeout(deadline, answered).await.map_err(|_| Trouble::Late(deadline))??;
    if text.len() as u64 > LONGEST { Err(Trouble::Long(LONGEST)) } else { Ok(text) }
}

#[cfg(all(test, feature = "scripted"))]
mod tests;
