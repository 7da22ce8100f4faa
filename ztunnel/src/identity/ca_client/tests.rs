use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

use super::*;
use crate::tls::test_ca::{TestCa, identity};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn config() -> Config {
    Config {
        ca_address: Uri::from_static("https://127.0.0.1:1"),
        ca_root: RootSource::Inline(TestCa::new("root").pem()),
        alt_hostname: None,
        headers: Vec::new(),
        token: None,
        cluster_id: "Kubernetes".to_owned(),
        secret_ttl: Duration::from_secs(24 * 3600),
    }
}

async fn failure(config: Config) -> String {
    CaClient::new(config, Revocations::default())
        .fetch(&identity(CART))
        .await
        .expect_err("there is no CA")
        .to_string()
}

#[test]
fn the_csr_is_what_the_ca_expects() {
    let (_, pem) = new_csr(&identity(CART)).expect("a CSR can be made");
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("the CSR is PEM");
    assert_eq!(pem.label, "CERTIFICATE REQUEST");
    let (rest, csr) = X509CertificationRequest::from_der(&pem.contents).expect("the CSR is PKCS#10");
    assert!(rest.is_empty());
    csr.verify_signature().expect("it is signed with its own key");
    let asked = &csr.certification_request_info;
    assert_eq!(asked.subject.iter().count(), 0, "the subject is empty");
    assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ECDSA with SHA-256");
    let key = asked.subject_pki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    assert_eq!(key.map(|curve| curve.to_id_string()).as_deref(), Some("1.2.840.10045.3.1.7"), "P-256");
    let extensions: Vec<_> = asked
        .iter_attributes()
        .filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(request) => Some(request.extensions.iter()),
            _ => None,
        })
        .flatten()
        .collect();
    let [only] = extensions[..] else { panic!("one extension, not {}", extensions.len()) };
    assert!(only.critical, "the SAN stands in for the subject");
    let ParsedExtension::SubjectAlternativeName(names) = only.parsed_extension() else { panic!("the SAN") };
    assert_eq!(names.general_names, [GeneralName::URI(CART)]);
}

#[test]
fn every_csr_has_its_own_key() {
    let csr = || new_csr(&identity(CART)).expect("a CSR can be made").1;
    assert_ne!(csr(), csr());
}

#[test]
fn the_request_names_the_pod() {
    let metadata = impersonate(&identity(CART));
    let value = metadata.fields.get("ImpersonatedIdentity").and_then(|value| value.kind.clone());
    assert_eq!(value, Some(Kind::StringValue(CART.to_owned())));
}

#[tokio::test]
async fn an_unreachable_ca_is_named() {
    let message = failure(config()).await;
    assert!(message.contains("https://127.0.0.1:1") && message.contains(CART), "{message}");
    assert!(message.contains("refused"), "the cause is told: {message}");
}

#[tokio::test]
async fn what_the_operator_wrote_wrongly_is_named() {
    let missing =
        |name: &str| std::env::temp_dir().join(format!("ztunnel-missing-{}-{name}", std::process::id()));
    let message = failure(Config { ca_root: RootSource::Path(missing("roots.pem")), ..config() }).await;
    assert!(message.contains("roots.pem"), "{message}");
    let message = failure(Config { ca_root: RootSource::Inline("no PEM".to_owned()), ..config() }).await;
    assert!(message.contains("CA_ROOT_CA"), "{message}");
    let message = failure(Config { token: Some(TokenSource::Path(missing("token"))), ..config() }).await;
    assert!(message.contains("token"), "{message}");
    let headers = vec![("x y".to_owned(), "z".to_owned())];
    let message = failure(Config { headers, ..config() }).await;
    assert!(message.contains("x y"), "{message}");
    let message = failure(Config { ca_address: Uri::from_static("/nowhere"), ..config() }).await;
    assert!(message.contains("/nowhere"), "{message}");
}

#[tokio::test]
async fn an_empty_token_file_is_an_error_and_a_token_is_trimmed() {
    let path = std::env::temp_dir().join(format!("ztunnel-token-{}", std::process::id()));
    let source = TokenSource::Path(path.clone());
    std::fs::write(&path, " \n").expect("the file can be written");
    let error = read_token(&source).await.expect_err("empty").to_string();
    assert!(error.contains("empty"), "{error}");
    std::fs::write(&path, "secret\n").expect("the file can be written");
    assert_eq!(read_token(&source).await.expect("a token"), "secret");
    std::fs::remove_file(&path).expect("the file can be removed");
}
