//! The gRPC service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use ztunnel_model::Identity;

use super::authenticate::{Authenticate, Refused, Residents, bearer};
use super::counters::Reason;
use super::issue;
use super::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use super::proto::{IstioCertificateRequest, IstioCertificateResponse};
use super::running::{Ca, NotCertified};

const MESSAGE_BYTES: usize = 64 * 1024;
/// What a caller wrote is logged cut.
const LOGGED: usize = 300;
/// A node asks for the identity of a pod that it was just given, and the source may hear of that pod a little later.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many calls may wait so at a time; others are refused at once.
const PATIENT_CALLS: usize = 256;

/// Who may call, and for whom.
#[derive(Clone)]
pub struct Access {
    pub authenticate: Arc<dyn Authenticate>,
    pub residents: Arc<dyn Residents>,
}

impl Access {
    /// One source for both.
    pub fn of<T: Authenticate + Residents + 'static>(source: Arc<T>) -> Self {
        Self { authenticate: source.clone(), residents: source }
    }
}

/// For a server's router.
pub fn service(
    ca: Arc<Ca>,
    access: Access,
    max_ttl: Duration,
) -> IstioCertificateServiceServer<impl IstioCertificateService> {
    let service = Service { ca, access, max_ttl, patience: Semaphore::new(PATIENT_CALLS) };
    IstioCertificateServiceServer::new(service).max_decoding_message_size(MESSAGE_BYTES)
}

struct Service {
    ca: Arc<Ca>,
    access: Access,
    max_ttl: Duration,
    patience: Semaphore,
}

/// A request that gets no certificate: what the caller is told, and how it is counted.
struct Refusal {
    reason: Reason,
    code: Code,
    message: String,
    /// For whom, as far as it is known.
    asked: Option<Identity>,
}

impl Refusal {
    fn new(reason: Reason, code: Code, message: impl ToString) -> Self {
        Self { reason, code, message: message.to_string(), asked: None }
    }

    fn invalid(reason: Reason, message: impl ToString) -> Self {
        Self::new(reason, Code::InvalidArgument, message)
    }

    fn about(self, asked: &Identity) -> Self {
        Self { asked: Some(asked.clone()), ..self }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let reason = match &refused {
            Refused::Unknown => Reason::TokenUnknown,
            Refused::Expired { .. } => Reason::TokenExpired,
            Refused::NoProxy { .. } => Reason::TokenNoProxy,
            Refused::Unavailable { .. } => Reason::TokenUnchecked,
        };
        Self::new(reason, refused.code(), refused)
    }
}

impl From<issue::Error> for Refusal {
    fn from(error: issue::Error) -> Self {
        use issue::Error;
        let reason = match &error {
            Error::Unreadable(_) => Reason::Malformed,
            Error::Signature | Error::Algorithm(_) => Reason::Signature,
            Error::Key(_) => Reason::Key,
            Error::Names(_) | Error::Identity(_) => Reason::Names,
            Error::Validity(_) => Reason::Validity,
        };
        Self::invalid(reason, error)
    }
}

impl From<NotCertified> for Refusal {
    fn from(error: NotCertified) -> Self {
        match error {
            NotCertified::Revoked(identity) => {
                let message =
                    format!("{identity} is revoked; take it out of the revocation file to allow it");
                Self::new(Reason::Revoked, Code::PermissionDenied, message).about(&identity)
            }
            NotCertified::Ledger(error) => {
                tracing::error!(%error, "nothing can be issued");
                Self::new(Reason::Internal, Code::ResourceExhausted, "the CA cannot keep more records")
            }
            NotCertified::Authority(error) => {
                tracing::error!(%error, "signing failed");
                Self::new(Reason::Internal, Code::Internal, "signing failed; see the log of the controller")
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr();
        let node = self.authenticate(request.metadata()).await;
        let node = node.map_err(|refusal| self.refuse(peer, "", refusal))?;
        let issued = self.issue(&node, request.get_ref()).await;
        let (identity, ttl, cert_chain) = issued.map_err(|refusal| self.refuse(peer, &node, refusal))?;
        let peer = peer.map(tracing::field::display);
        tracing::info!(node, %identity, ttl_s = ttl.as_secs(), peer, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Service {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<String, Refusal> {
        let missing =
            || Refusal::new(Reason::TokenMissing, Code::Unauthenticated, "the call carries no bearer token");
        let token = bearer(metadata).ok_or_else(missing)?;
        Ok(self.access.authenticate.node(token).await?.node)
    }

    async fn issue(
        &self,
        node: &str,
        request: &IstioCertificateRequest,
    ) -> Result<(Identity, Duration, Vec<String>), Refusal> {
        let asked = impersonated(request)?;
        if let Some(asked) = &asked {
            self.authorize(node, asked).await?;
        }
        let csr = issue::Request::from_pem(&request.csr)
            .map_err(|error| Refusal { asked: asked.clone(), ..Refusal::from(error) })?;
        if let Some(asked) = asked.filter(|asked| *asked != csr.identity) {
            let message = format!("the call asks for {asked} but the CSR for {}", csr.identity);
            return Err(Refusal::invalid(Reason::Mismatch, message).about(&asked));
        }
        self.authorize(node, &csr.identity).await?;
        let now = SystemTime::now();
        let validity = issue::validity(request.validity_duration, self.max_ttl, now)
            .map_err(|error| Refusal::from(error).about(&csr.identity))?;
        let issued =
            self.ca.certify(&csr, validity).map_err(|error| Refusal::from(error).about(&csr.identity))?;
        let ttl = issued.not_after.duration_since(now).unwrap_or_default();
        Ok((csr.identity, ttl, issued.chain))
    }

    async fn authorize(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if self.lives_on(node, identity).await {
            return Ok(());
        }
        let message = format!("node {node} may not ask for {identity}: it runs no pod of that identity");
        Err(Refusal::new(Reason::NotOnNode, Code::PermissionDenied, message).about(identity))
    }

    async fn lives_on(&self, node: &str, identity: &Identity) -> bool {
        let residents = &self.access.residents;
        // Before the first look, so that no change falls between.
        let Some(mut changes) = residents.changes() else { return residents.may_hold(node, identity) };
        if residents.may_hold(node, identity) {
            return true;
        }
        let Ok(_place) = self.patience.try_acquire() else { return false };
        let end = Instant::now() + PATIENCE;
        while let Ok(Ok(())) = timeout_at(end, changes.changed()).await {
            if residents.may_hold(node, identity) {
                return true;
            }
        }
        false
    }

    /// The message holds what the caller wrote, so it is logged quoted and cut.
    fn refuse(&self, peer: Option<SocketAddr>, node: &str, refusal: Refusal) -> Status {
        let Refusal { reason, code, message, asked } = refusal;
        self.ca.counters().count_refused(reason);
        let cut: String = message.chars().take(LOGGED).collect();
        let peer = peer.map(tracing::field::display);
        let identity = asked.map(|asked| asked.to_string());
        tracing::warn!(node, identity, reason = reason.as_str(), ?code, error = ?cut, peer, "certificate refused");
        Status::new(code, message)
    }
}

/// For whom the caller asks (interop.md section 5.2); a proxy of one workload says it in the CSR alone.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<Identity>, Refusal> {
    let field = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    let malformed = |message: String| Refusal::invalid(Reason::Malformed, message);
    match field.map(|value| &value.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) => {
            text.parse().map(Some).map_err(|error| malformed(format!("ImpersonatedIdentity: {error}")))
        }
        Some(_) => Err(malformed("ImpersonatedIdentity is not a string".to_owned())),
    }
}
