//! One request to the API server, and its answer: a deadline, a greatest length, and a refusal that says what to mend.

use std::fmt;
use std::time::Duration;

use http::{Method, Request, header};
use reflector::{Client, Config, Error};
use serde_json::Value;

use crate::object::Name;

const DEADLINE: Duration = Duration::from_secs(5);
/// An object is 1.5 MiB at most, and a list is asked for in pages.
const LONGEST: u64 = 8 << 20;

/// The way to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: Client,
    deadline: Duration,
}

/// What is asked for, as the API and its access rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// The core has none.
    pub group: &'static str,
    pub plural: &'static str,
    /// With its slash, or nothing.
    pub part: &'static str,
}

/// Why there is no answer, or no use in it.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Denied(Box<Denied>),
    /// Someone was faster, or owns it.
    #[error("409 {0}")]
    Conflict(String),
    #[error("404 {0}")]
    Absent(String),
    #[error("{code} {reason}")]
    Refused { code: u16, reason: String },
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server does not answer within {0:?}")]
    Late(Duration),
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(String),
}

/// A rule is missing.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    verb: &'static str,
    resource: Resource,
    place: String,
    reason: String,
}

impl Resource {
    pub(super) const fn new(group: &'static str, plural: &'static str) -> Self {
        Self { group, plural, part: "" }
    }

    pub(super) const fn status(self) -> Self {
        Self { part: "/status", ..self }
    }

    fn path(self, namespace: &str, name: &str) -> Result<String, Trouble> {
        // What was made of an answer, or of an option, must stay one part of the path.
        let is_plain = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':'))
        };
        if !is_plain(namespace) || !is_plain(name) || [namespace, name].contains(&"..") {
            return Err(Trouble::Unreadable(format!("{namespace:?}/{name:?} is no name of an object")));
        }
        let mut path = match self.group {
            "" => "/api/v1".to_owned(),
            group => format!("/apis/{group}/v1"),
        };
        if !namespace.is_empty() {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if !name.is_empty() {
            path += &format!("/{name}{}", self.part);
        }
        Ok(path)
    }
}

impl Trouble {
    /// Another object may fare better.
    pub(super) fn is_of_one_object(&self) -> bool {
        match self {
            Self::Denied(_) | Self::Conflict(_) | Self::Absent(_) | Self::Unreadable(_) => true,
            // 429 and what the server does not come to are not about the object.
            Self::Refused { code, .. } => (400..500).contains(code) && *code != 429,
            Self::Unreachable(_) | Self::Late(_) => false,
        }
    }
}

impl Denied {
    /// No rule helps: nothing may be created there any more.
    pub(super) fn is_of_ending_namespace(&self) -> bool {
        self.reason.contains("is being terminated")
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource: Resource { group, plural, part }, place, reason } = self;
        let (role, place) = match place.as_str() {
            "" => ("ClusterRole", "the cluster".to_owned()),
            place => ("Role or ClusterRole", place.to_owned()),
        };
        write!(
            f,
            "cannot {verb} {plural}{part} in {place}: 403; the {role} of the controller's service account needs the verb \
             {verb} on {plural}{part} of the API group \"{group}\" ({reason})"
        )
    }
}

impl Api {
    /// Of the cluster whose pod this is, or that KUBECONFIG names.
    pub async fn infer() -> Result<Self, Error> {
        Self::open(reflector::infer().await?, DEADLINE)
    }

    pub(super) fn open(config: Config, deadline: Duration) -> Result<Self, Error> {
        Ok(Self { client: reflector::client(config)?, deadline })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) async fn get(&self, resource: Resource, at: &Name) -> Result<Value, Trouble> {
        let path = resource.path(&at.namespace, &at.name)?;
        self.ask("get", resource, &at.namespace, Request::get(path), None).await
    }

    /// A page of those in all namespaces that have this name.
    pub(super) async fn list_named(
        &self,
        resource: Resource,
        name: &str,
        next: &str,
    ) -> Result<Value, Trouble> {
        // It is no part of the path, and must be as plain.
        resource.path("", name)?;
        let path = resource.path("", "")?;
        let mut query = format!("?limit=500&fieldSelector=metadata.name%3D{name}");
        if !next.is_empty() {
            // It is base64 with its own alphabet or with the other one.
            let escaped: String = next.bytes().map(|byte| format!("%{byte:02X}")).collect();
            query += &format!("&continue={escaped}");
        }
        self.ask("list", resource, "", Request::get(format!("{path}{query}")), None).await
    }

    pub(super) async fn create(
        &self,
        resource: Resource,
        namespace: &str,
        object: &Value,
    ) -> Result<Value, Trouble> {
        let request = Request::post(resource.path(namespace, "")?);
        self.ask("create", resource, namespace, request, Some((object, "application/json"))).await
    }

    /// Only if it is still the one whose `resourceVersion` the object has.
    pub(super) async fn replace(
        &self,
        resource: Resource,
        at: &Name,
        object: &Value,
    ) -> Result<Value, Trouble> {
        let request = Request::put(resource.path(&at.namespace, &at.name)?);
        self.ask("update", resource, &at.namespace, request, Some((object, "application/json"))).await
    }

    /// Server-side apply: what the object says becomes so and is ours, unless another manager says otherwise.
    pub(super) async fn apply(
        &self,
        resource: Resource,
        at: &Name,
        object: &Value,
        force: bool,
    ) -> Result<Value, Trouble> {
        let path = resource.path(&at.namespace, &at.name)?;
        let request = Request::patch(format!("{path}?fieldManager={MANAGER}&force={force}"));
        self.ask("patch", resource, &at.namespace, request, Some((object, "application/apply-patch+yaml")))
            .await
    }

    async fn ask(
        &self,
        verb: &'static str,
        resource: Resource,
        place: &str,
        request: http::request::Builder,
        object: Option<(&Value, &str)>,
    ) -> Result<Value, Trouble> {
        let (body, kind) = match object {
            Some((object, kind)) => (object.to_string().into_bytes(), kind),
            None => (Vec::new(), "application/json"),
        };
        let request = request.header(header::CONTENT_TYPE, kind).header(header::ACCEPT, "application/json");
        let request = request.body(body).map_err(|error| Trouble::Unreadable(error.to_string()))?;
        debug_assert!(request.method() != Method::DELETE, "nothing here takes anything away");
        let mut text = zeroize::Zeroizing::new(Vec::new());
        let read = reflector::read(&self.client, request, LONGEST, self.deadline, &mut text).await;
        read.map_err(|error| trouble(error, verb, resource, place))?;
        // The position in it is told, never what stands there.
        let unreadable = |error: serde_json::Error| {
            Trouble::Unreadable(format!("no JSON at line {}, column {}", error.line(), error.column()))
        };
        match serde_json::from_slice(&text).map_err(unreadable)? {
            object @ Value::Object(_) => Ok(object),
            _ => Err(Trouble::Unreadable("it is no object".to_owned())),
        }
    }
}

/// As whom the controller writes, and by what label its objects are known.
pub(super) const MANAGER: &str = "ztunnel-controller";
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

fn trouble(error: reflector::Trouble, verb: &'static str, resource: Resource, place: &str) -> Trouble {
    match error {
        reflector::Trouble::Refused { code: 403, reason, .. } => {
            let place = place.to_owned();
            Trouble::Denied(Box::new(Denied { verb, resource, place, reason }))
        }
        reflector::Trouble::Refused { code: 404, reason, .. } => Trouble::Absent(reason),
        reflector::Trouble::Refused { code: 409, reason, .. } => Trouble::Conflict(reason),
        reflector::Trouble::Refused { code, reason, .. } => Trouble::Refused { code, reason },
        reflector::Trouble::Unreachable(reason) => Trouble::Unreachable(reason),
        reflector::Trouble::Late(deadline) => Trouble::Late(deadline),
        reflector::Trouble::Broken(error) => Trouble::Unreachable(format!("the answer breaks off: {error}")),
        reflector::Trouble::Long(longest) => {
            Trouble::Unreadable(format!("it is longer than {longest} bytes"))
        }
        error => Trouble::Unreadable(error.to_string()),
    }
}
