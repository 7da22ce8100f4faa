//! The gRPC service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use tonic::{Code, Request, Response, Status};
use ztunnel_model::Identity;

use super::authenticate::{Authenticate, Refused, Residents};
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
    let service = Service { ca, access, max_ttl };
    IstioCertificateServiceServer::new(service).max_decoding_message_size(MESSAGE_BYTES)
}

struct Service {
    ca: Arc<Ca>,
    access: Access,
    max_ttl: Duration,
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
        let node = self.authenticate(&request).map_err(|refusal| self.refuse(peer, "", refusal))?;
        let (identity, ttl, cert_chain) =
            self.issue(&node, request.get_ref()).map_err(|refusal| self.refuse(peer, &node, refusal))?;
        let peer = peer.map(tracing::field::display);
        tracing::info!(node, %identity, ttl_s = ttl.as_secs(), peer, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Service {
    fn authenticate(&self, request: &Request<IstioCertificateRequest>) -> Result<String, Refusal> {
        let refused = |reason, message: String| Refusal::new(reason, Code::Unauthenticated, message);
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|header| header.strip_prefix("Bearer "))
            .ok_or_else(|| refused(Reason::TokenMissing, "the call carries no bearer token".to_owned()))?;
        self.access.authenticate.node(token).map_err(|error| match error {
            Refused::Unknown => refused(Reason::TokenUnknown, error.to_string()),
            Refused::Expired { .. } => refused(Reason::TokenExpired, error.to_string()),
        })
    }

    fn issue(
        &self,
        node: &str,
        request: &IstioCertificateRequest,
    ) -> Result<(Identity, Duration, Vec<String>), Refusal> {
        let asked = impersonated(request)?;
        if let Some(asked) = &asked {
            self.authorize(node, asked)?;
        }
        let csr = issue::Request::from_pem(&request.csr)
            .map_err(|error| Refusal { asked: asked.clone(), ..Refusal::from(error) })?;
        if let Some(asked) = asked.filter(|asked| *asked != csr.identity) {
            let message = format!("the call asks for {asked} but the CSR for {}", csr.identity);
            return Err(Refusal::invalid(Reason::Mismatch, message).about(&asked));
        }
        self.authorize(node, &csr.identity)?;
        let now = SystemTime::now();
        let validity = issue::validity(request.validity_duration, self.max_ttl, now)
            .map_err(|error| Refusal::from(error).about(&csr.identity))?;
        let issued =
            self.ca.certify(&csr, validity).map_err(|error| Refusal::from(error).about(&csr.identity))?;
        let ttl = issued.not_after.duration_since(now).unwrap_or_default();
        Ok((csr.identity, ttl, issued.chain))
    }

    fn authorize(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if self.access.residents.may_hold(node, identity) {
            return Ok(());
        }
        let message = format!("node {node} may not ask for {identity}: it runs no pod of that identity");
        Err(Refusal::new(Reason::NotOnNode, Code::PermissionDenied, message).about(identity))
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
