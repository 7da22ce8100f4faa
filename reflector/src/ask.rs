//! What is asked of the API server, and its answers: a page of a list, and the events of a watch. Each answer has a deadline
//! and a greatest length.

use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio::time::timeout;

use super::{Keep, Resource, Timing};

/// Whoever gets a longer one asks for fewer objects.
const LONGEST_PAGE: u64 = 64 << 20;
/// An event is one object.
const LONGEST_EVENT: u64 = 16 << 20;

/// Why there is no answer, or no use in it.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{code} {reason}")]
    Refused { code: u16, reason: String, retry_after: Option<Duration> },
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("does not answer within {0:?}")]
    Late(Duration),
    #[error("sent nothing for {0:?} where a watch was to end or tell something")]
    Stalled(Duration),
    #[error("the answer breaks off: {0}")]
    Broken(std::io::Error),
    #[error("the answer is longer than {0} bytes")]
    Long(u64),
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    #[error("nobody listens any more")]
    Unheard,
}

#[derive(Debug)]
pub(super) struct Page {
    pub objects: Vec<Value>,
    /// Where the next page begins.
    pub next: Option<String>,
    /// From where the list is to be watched; empty if the server does not say so.
    pub version: String,
}

#[derive(Debug)]
pub(super) enum Event {
    Set(Value),
    Gone(Value),
    /// Nothing happened up to this version.
    Bookmark(String),
}

pub(super) struct Watch<R> {
    answer: R,
    line: Vec<u8>,
    keep: Keep,
    stalled: Duration,
}

/// Sends a request and reads the whole answer into `text`: at most so many bytes, and by the deadline.
pub async fn read(
    client: &Client,
    request: http::Request<Vec<u8>>,
    longest: u64,
    deadline: Duration,
    text: &mut Vec<u8>,
) -> Result<(), Trouble> {
    let answered = async {
        let answer = client.request_stream(request).await.map_err(trouble)?;
        answer.take(longest + 1).read_to_end(&mut *text).await.map_err(Trouble::Broken)
    };
    timeout(deadline, answered).await.map_err(|_| Trouble::Late(deadline))??;
    if text.len() as u64 > longest { Err(Trouble::Long(longest)) } else { Ok(()) }
}

pub(super) async fn page(
    client: &Client,
    resource: &Resource,
    from: Option<String>,
    limit: u32,
    timing: &Timing,
) -> Result<Page, Trouble> {
    let field_selector = resource.field_selector.clone();
    let asked =
        ListParams { limit: Some(limit), continue_token: from, field_selector, ..ListParams::default() };
    let request = Request::new(&*resource.path);
    let request = match resource.metadata_only {
        true => request.list_metadata(&asked),
        false => request.list(&asked),
    };
    let request = request.map_err(|error| Trouble::Unreadable(error.to_string()))?;
    let mut text = Vec::new();
    read(client, request, LONGEST_PAGE, timing.answer, &mut text).await?;
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let page = deserializer.deserialize_map(PageOf(resource.keep));
    let page = page.and_then(|page| deserializer.end().map(|()| page)).map_err(unreadable)?;
    if page.next.is_none() && page.version.is_empty() {
        return Err(Trouble::Unreadable("a list without metadata.resourceVersion".to_owned()));
    }
    Ok(page)
}

pub(super) async fn watch(
    client: &Client,
    resource: &Resource,
    version: &str,
    timing: &Timing,
) -> Result<Watch<impl AsyncBufRead + Unpin + use<>>, Trouble> {
    let seconds = u32::try_from(timing.watch.as_secs()).unwrap_or(u32::MAX).clamp(1, 294);
    let field_selector = resource.field_selector.clone();
    let asked =
        WatchParams { timeout: Some(seconds), bookmarks: true, field_selector, ..WatchParams::default() };
    let request = Request::new(&*resource.path);
    let request = match resource.metadata_only {
        true => request.watch_metadata(&asked, version),
        false => request.watch(&asked, version),
    };
    let request = request.map_err(|error| Trouble::Unreadable(error.to_string()))?;
    let answered = timeout(timing.answer, client.request_stream(request)).await;
    let answer = answered.map_err(|_| Trouble::Late(timing.answer))?.map_err(trouble)?;
    Ok(Watch { answer: Box::pin(answer), line: Vec::new(), keep: resource.keep, stalled: timing.stalled })
}

impl<R: AsyncBufRead + Unpin> Watch<R> {
    /// The next event; `None` once the server has ended the watch.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Trouble> {
        loop {
            self.line.clear();
            let mut answer = (&mut self.answer).take(LONGEST_EVENT + 1);
            let read = timeout(self.stalled, answer.read_until(b'\n', &mut self.line)).await;
            let length = read.map_err(|_| Trouble::Stalled(self.stalled))?.map_err(Trouble::Broken)?;
            if length as u64 > LONGEST_EVENT {
                return Err(Trouble::Long(LONGEST_EVENT));
            }
            match self.line.trim_ascii() {
                _ if length == 0 => return Ok(None),
                [] => {}
                line => return event(line, self.keep).map(Some),
            }
        }
    }
}

fn event(line: &[u8], keep: Keep) -> Result<Event, Trouble> {
    // Twice over the line, because the type need not stand before the object.
    #[derive(Deserialize)]
    struct Type {
        r#type: String,
    }
    let Type { r#type } = serde_json::from_slice(line).map_err(unreadable)?;
    let keep = if r#type == "ERROR" { Keep::All } else { keep };
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let object = deserializer.deserialize_map(ObjectOf(keep)).map_err(unreadable)?;
    match r#type.as_str() {
        "ADDED" | "MODIFIED" => Ok(Event::Set(object)),
        "DELETED" => Ok(Event::Gone(object)),
        "BOOKMARK" => Ok(Event::Bookmark(version(&object).to_owned())),
        "ERROR" => {
            let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            let reason = object["message"].as_str().unwrap_or("without a reason").to_owned();
            Err(Trouble::Refused { code, reason, retry_after: None })
        }
        other => Err(Trouble::Unreadable(format!("an event of the type {other:?}"))),
    }
}

/// Of what moment an object is.
pub(super) fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

pub(super) fn unreadable(error: serde_json::Error) -> Trouble {
    Trouble::Unreadable(error.to_string())
}

fn trouble(error: kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            Trouble::Refused {
                code: status.code,
                reason: status.message.chars().take(300).collect(),
                retry_after: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
            }
        }
        error => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = error.to_string();
                cause = error.source();
            }
            Trouble::Unreachable(text)
        }
    }
}

struct PageOf(Keep);

impl<'de> Visitor<'de> for PageOf {
    type Value = Page;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Page, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Meta {
            resource_version: Option<String>,
            r#continue: Option<String>,
        }
        let (mut meta, mut objects) = (None::<Meta>, None);
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "metadata" => meta = Some(entries.next_value()?),
                "items" => objects = Some(entries.next_value_seed(Items(self.0))?),
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        let meta = meta.ok_or_else(|| A::Error::missing_field("metadata"))?;
        Ok(Page {
            objects: objects.ok_or_else(|| A::Error::missing_field("items"))?,
            next: meta.r#continue.filter(|token| !token.is_empty()),
            version: meta.resource_version.unwrap_or_default(),
        })
    }
}

struct Items(Keep);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    // An empty list may be written so.
    fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<Value>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Value>, A::Error> {
        let mut objects = Vec::new();
        while let Some(object) = items.next_element_seed(self.0)? {
            objects.push(object);
        }
        Ok(objects)
    }
}

struct ObjectOf(Keep);

impl<'de> Visitor<'de> for ObjectOf {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = None;
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "object" => object = Some(entries.next_value_seed(self.0)?),
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        object.ok_or_else(|| A::Error::missing_field("object"))
    }
}
