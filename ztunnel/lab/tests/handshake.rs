//! Peers that are not who they should be, and peers that speak something else than HBONE: each is refused alone.

mod rogue;

use rogue::{alert, ask, client, leaf, mint, request, requests, runtime, tls};

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use control_plane::ca::{Authority, Purpose, SubjectName};
use http::{Method, Response, StatusCode};
use redirect::HBONE_PORT;
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use ztunnel_lab::process::write_atomically;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);
const WEB: &str = "spiffe://cluster.local/ns/front/sa/web";
const FAKE: &str = "spiffe://cluster.local/ns/shop/sa/fake";
const EVIL: &str = "spiffe://cluster.local/ns/evil/sa/evil";
/// RFC 9113 section 3.4, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn mesh() -> Mesh {
    let meshed = Mesh::new().pod("node1", "front/web").pod("node2", "shop/cart");
    meshed.outside("node2", "shop/fake").outside("node1", "legacy/rogue")
}

/// A lab with a cart that answers, the CA that everybody there trusts, and a runtime for rogue ends.
struct Bed {
    lab: Lab,
    authority: Authority,
    runtime: Runtime,
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Bed {
    fn new() -> Self {
        let lab = Lab::for_test(&mesh(), &[]);
        traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("the cart can listen");
        let authority = Authority::create_or_load(&lab.ca_folder()).expect("the lab's CA is there");
        Self { lab, authority, runtime: runtime() }
    }

    fn cart(&self) -> SocketAddr {
        SocketAddr::new(self.lab.pod("cart").ipv4(), PORT)
    }

    /// A connection of the pod that is in no mesh to the port on which the cart's proxy expects tunnels.
    fn dial(&self) -> (SocketAddr, TcpStream) {
        let to = SocketAddr::new(self.lab.pod("cart").ipv4(), HBONE_PORT);
        let stream = self.lab.pod("rogue").connect(to, DEADLINE).expect("the port is open");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
        (stream.local_addr().expect("a connected socket has an address"), stream)
    }

    /// A rogue end's TLS session, and the address that the log must name.
    fn handshake(&self, config: ClientConfig) -> (SocketAddr, io::Result<TlsStream<tokio::net::TcpStream>>) {
        let (source, stream) = self.dial();
        (source, self.wait(tls(stream, config)))
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, work).await.expect("the other end takes too long to answer")
        })
    }

    fn good(&self) -> Chain {
        mint(&self.authority, &[WEB], HOUR)
    }

    /// A tunnel with a good certificate.
    fn tunnel(&self) -> (SocketAddr, TlsStream<tokio::net::TcpStream>) {
        let (source, stream) = self.handshake(client(Some(self.good()), &[b"h2"]));
        (source, stream.expect("a good certificate is accepted"))
    }

    fn failures(&self, labels: &[(&str, &str)]) -> f64 {
        self.lab.node("node2").metrics().sum("ztunnel_inbound_handshake_failures_total", labels)
    }

    /// Runs `work`, which misbehaves once and returns its address: it is counted once, as `reason`, and logged once, with
    /// `error`; meanwhile and afterwards the others are served.
    fn harmless(&self, what: &str, reason: &str, error: &str, work: impl FnOnce() -> SocketAddr) {
        let mut other = self.lab.pod("web").connect(self.cart(), DEADLINE).expect("a connection");
        other.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
        let mut echo = || other.write_all(b"x").and_then(|()| other.read_exact(&mut [0]));
        echo().unwrap_or_else(|error| panic!("{what}: before: {error}"));
        let (all, these) = (self.failures(&[]), self.failures(&[("reason", reason)]));
        let source = work();
        let counted = || self.failures(&[("reason", reason)]) == these + 1.0;
        assert!(wait_until(DEADLINE, counted), "{what}: not counted as {reason}: {}", self.log_of(source));
        let line = format!("reason=\"{reason}\"");
        let logged = || self.log_of(source).contains(error);
        assert!(wait_until(DEADLINE, logged), "{what}: no \"{error}\" in: {}", self.log_of(source));
        let log = self.log_of(source);
        assert!(log.lines().count() == 1 && log.contains(&line), "{what}: logged once, with {line}: {log}");
        assert_eq!(self.failures(&[]), all + 1.0, "{what}: counted once");
        echo().unwrap_or_else(|error| panic!("{what}: a stream of another tunnel broke: {error}"));
        let reply = traffic::request(self.lab.pod("web"), self.cart(), b"next");
        assert_eq!(reply.ok().as_deref(), Some(&b"next"[..]), "{what}: the next request");
    }

    /// What the cart's proxy logged of refused handshakes of one peer.
    fn log_of(&self, source: SocketAddr) -> String {
        let source = format!("src.addr={source} ");
        let log = self.lab.node("node2").log();
        let lines =
            log.lines().filter(|line| line.contains("inbound handshake failed") && line.contains(&source));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn clients_without_a_good_certificate_are_refused() {
    use AlertDescription as Alert;
    let bed = Bed::new();
    let stranger = Authority::ephemeral().expect("a root can be made");
    let elsewhere = "spiffe://elsewhere.example/ns/front/sa/web";
    let server_only = leaf(&bed.authority, vec![SubjectName::Uri(WEB.to_owned())], Purpose::Server, HOUR);
    let cases = [
        ("untrusted root", Some(mint(&stranger, &[WEB], HOUR)), Alert::UnknownCA, "UnknownIssuer"),
        ("expired", Some(mint(&bed.authority, &[WEB], 3 * HOUR)), Alert::CertificateExpired, "xpired"),
        ("no certificate", None, Alert::CertificateRequired, "it sent no client certificate"),
        (
            "wrong trust domain",
            Some(mint(&bed.authority, &[elsewhere], HOUR)),
            Alert::AccessDenied,
            "only trust domain cluster.local is served here",
        ),
        (
            "two SPIFFE SANs",
            Some(mint(&bed.authority, &[WEB, EVIL], HOUR)),
            Alert::AccessDenied,
            "2 SPIFFE URI SANs where exactly one is needed",
        ),
        (
            "no SPIFFE SAN",
            Some(mint(&bed.authority, &["https://cluster.local/ns/front/sa/web"], HOUR)),
            Alert::AccessDenied,
            "0 SPIFFE URI SANs where exactly one is needed",
        ),
        ("for servers only", Some(server_only), Alert::UnsupportedCertificate, "does not verify"),
    ];
    for (what, certificate, expected, error) in cases {
        bed.harmless(what, "certificate", error, || {
            let (source, stream) = bed.handshake(client(certificate, &[b"h2"]));
            // In TLS 1.3 the client is done before the server has looked at its certificate, so the refusal comes with
            // the first read; a server that accepted would send its SETTINGS there.
            let refused = bed.wait(async {
                match stream {
                    Ok(mut stream) => stream.read_exact(&mut [0]).await.err(),
                    Err(error) => Some(error),
                }
            });
            let refused = refused.unwrap_or_else(|| panic!("{what}: was accepted"));
            assert_eq!(alert(&refused), Some(expected), "{what}: {refused}");
            source
        });
    }
    // The same client with a good certificate gets in, so it was the certificate.
    let (_, stream) = bed.tunnel();
    let reply = bed.wait(async {
        let connect = request(Method::CONNECT, &bed.cart().to_string());
        ask(&mut requests(stream).await, connect, b"hello").await
    });
    assert_eq!(reply.expect("it is answered"), (StatusCode::OK, b"hello".to_vec()));
}

#[test]
fn what_is_not_hbone_ends_alone() {
    let bed = Bed::new();
    bed.harmless("not TLS", "tls", "does not speak TLS as the mesh does", || {
        let (source, mut stream) = bed.dial();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").expect("it is sent");
        // Whatever alert comes back, the end must come too.
        stream.read_to_end(&mut Vec::new()).expect("the connection is closed in order");
        source
    });
    bed.harmless("TLS that offers HTTP/1.1 alone", "tls", "does not speak TLS as the mesh does", || {
        let (source, stream) = bed.handshake(client(Some(bed.good()), &[b"http/1.1"]));
        let refused = stream.expect_err("there is no protocol in common");
        assert_eq!(alert(&refused), Some(AlertDescription::NoApplicationProtocol), "{refused}");
        source
    });
    let http1 = b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n";
    bed.harmless("TLS without ALPN, then HTTP/1.1", "http2", "no HTTP/2 spoken", || {
        let (source, stream) = bed.handshake(client(Some(bed.good()), &[]));
        bed.wait(send_and_read(stream.expect("TLS itself is good"), http1));
        source
    });
    bed.harmless("another preface than that of HTTP/2", "http2", "no HTTP/2 spoken", || {
        let (source, stream) = bed.tunnel();
        bed.wait(send_and_read(stream, http1));
        source
    });
    bed.harmless("DATA where no stream is", "http2", "HTTP/2: ", || {
        let (source, stream) = bed.tunnel();
        bed.wait(send_and_read(stream, &[PREFACE, b"\0\0\x01\0\0\0\0\0\0x"].concat()));
        source
    });
    bed.harmless("a frame that is too large", "http2", "HTTP/2: ", || {
        let (source, stream) = bed.tunnel();
        // The header of a DATA frame that promises 16 MiB.
        bed.wait(send_and_read(stream, &[PREFACE, b"\xff\xff\xff\0\0\0\0\0\x01"].concat()));
        source
    });
}

/// Sends bytes and reads until the other end closes, in whatever way.
async fn send_and_read(mut stream: TlsStream<tokio::net::TcpStream>, content: &[u8]) {
    stream.write_all(content).await.expect("it is sent");
    stream.flush().await.expect("it is sent");
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[test]
fn a_request_that_cannot_be_served_ends_alone() {
    let bed = Bed::new();
    let cart = bed.cart();
    let other = SocketAddr::new(bed.lab.pod("web").ipv4(), PORT);
    let cases = [
        ("GET", request(Method::GET, &format!("https://{cart}/")), "method GET is not CONNECT"),
        ("no port", request(Method::CONNECT, "cart"), "is not an authority"),
        ("another pod's address", request(Method::CONNECT, &other.to_string()), "ip mismatch"),
    ];
    for (what, refused, error) in cases {
        bed.harmless(what, "request", error, || {
            let (source, stream) = bed.tunnel();
            bed.wait(async {
                let mut requests = requests(stream).await;
                let (status, _) = ask(&mut requests, refused, b"").await.expect("it is answered");
                assert_eq!(status, StatusCode::BAD_REQUEST, "{what}");
                let connect = request(Method::CONNECT, &cart.to_string());
                let reply = ask(&mut requests, connect, b"hello").await.expect("it is answered");
                assert_eq!(reply, (StatusCode::OK, b"hello".to_vec()), "{what}: the same tunnel goes on");
            });
            source
        });
    }
    // By hand, because no HTTP/2 library writes it: HEADERS with END_HEADERS, and ":method: CONNECT" as a literal with
    // an indexed name (RFC 7541 section 6.2.2).
    let headers = b"\0\0\x09\x01\x04\0\0\0\x01\x02\x07CONNECT";
    bed.harmless("CONNECT without authority", "request", "is not an authority", || {
        let (source, mut stream) = bed.tunnel();
        bed.wait(async {
            stream.write_all(&[PREFACE, headers].concat()).await.expect("it is sent");
            stream.flush().await.expect("it is sent");
            let status = first_status(&mut stream).await;
            // ":status: 400" is entry 12 of the static table (RFC 7541 appendix A).
            assert_eq!(status, 0x80 | 12, "the answer is 400");
        });
        source
    });
}

/// The first byte of the first HEADERS frame.
async fn first_status(stream: &mut TlsStream<tokio::net::TcpStream>) -> u8 {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame comes");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("the whole frame comes");
        if head[3] == 1 {
            return payload[0];
        }
    }
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    let bed = Bed::new();
    bed.harmless("silence", "timeout", "did not finish within", || {
        let (source, mut stream) = bed.dial();
        stream.set_read_timeout(Some(2 * DEADLINE)).expect("a timeout above zero");
        let end = stream.read_to_end(&mut Vec::new());
        assert!(end.is_ok(), "the proxy closes: {end:?}");
        source
    });
}

/// An HBONE server that is not our proxy.
struct Impostor {
    config: Arc<Mutex<Arc<ServerConfig>>>,
    handshakes: mpsc::Receiver<Result<(), String>>,
    requests: Arc<AtomicUsize>,
}

impl Impostor {
    fn start(listener: TcpListener, certificate: Chain) -> Self {
        let config = Arc::new(Mutex::new(server(certificate)));
        let (tell, handshakes) = mpsc::channel();
        let requests = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (config.clone(), requests.clone());
        listener.set_nonblocking(true).expect("a listener can be made so");
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it is a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let config = shared.lock().expect("no holder panics").clone();
                    tokio::spawn(serve(stream, config, tell.clone(), count.clone()));
                }
            });
        });
        Self { config, handshakes, requests }
    }

    fn show(&self, certificate: Chain) {
        *self.config.lock().expect("no holder panics") = server(certificate);
    }

    /// How the next handshake went.
    fn handshake(&self) -> Result<(), String> {
        self.handshakes.recv_timeout(DEADLINE).expect("the impostor is dialled")
    }
}

/// Any client may come, so that only the other side can refuse.
fn server((chain, key): Chain) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("key and certificate fit");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn serve(
    stream: tokio::net::TcpStream,
    config: Arc<ServerConfig>,
    tell: mpsc::Sender<Result<(), String>>,
    count: Arc<AtomicUsize>,
) {
    let stream = TlsAcceptor::from(config).accept(stream).await;
    let _ = tell.send(stream.as_ref().map(|_| ()).map_err(ToString::to_string));
    let Ok(stream) = stream else { return };
    let Ok(mut tunnel) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = tunnel.accept().await {
        count.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut send = respond.send_response(Response::new(()), false)?;
            let mut body = request.into_body();
            while let Some(piece) = body.data().await {
                send.send_data(piece?, false)?;
            }
            send.send_data(Bytes::new(), true)
        });
    }
}

/// Lets the controller tell the proxies that a pod of no mesh speaks HBONE, without its agent; a folder cannot say so,
/// because it is not true.
fn claim_hbone(lab: &Lab, pod: &str) {
    let node = lab.node("node1");
    let path = lab.added_manifests();
    let text = std::fs::read_to_string(&path).expect("the lab wrote it");
    let mut list: serde_json::Value = serde_json::from_str(&text).expect("the lab writes JSON");
    let items = list["items"].as_array_mut().expect("it is a list");
    let found = items.iter_mut().find(|one| one["kind"] == "Pod" && one["metadata"]["name"] == pod);
    found.expect("the pod is known")["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    write_atomically(&path, &list.to_string(), None, 0o644).expect("it can be written again");
    let applied = || {
        let workloads = node.config_dump()["workloads"].as_array().cloned().unwrap_or_default();
        workloads.iter().any(|one| one["name"] == pod && one["protocol"] == "HBONE")
    };
    assert!(wait_until(DEADLINE, applied), "the proxy did not take the claim");
}

#[test]
fn servers_without_the_expected_certificate_get_nothing() {
    let bed = Bed::new();
    let fake = bed.lab.pod("fake");
    let plaintext = Arc::new(AtomicUsize::new(0));
    let count = plaintext.clone();
    let application = move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    traffic::serve(fake, PORT, application).expect("the pod can listen");
    let good = mint(&bed.authority, &[FAKE], HOUR);
    let impostor = Impostor::start(fake.listen(HBONE_PORT).expect("the pod can listen"), good);
    claim_hbone(&bed.lab, "fake");

    let stranger = Authority::ephemeral().expect("a root can be made");
    let to = SocketAddr::new(fake.ipv4(), PORT);
    let cases = [
        ("wrong SAN", mint(&bed.authority, &[EVIL], HOUR), format!("it is {EVIL}, and only one of")),
        ("untrusted root", mint(&stranger, &[FAKE], HOUR), "UnknownIssuer".to_owned()),
        ("expired", mint(&bed.authority, &[FAKE], 3 * HOUR), "xpired".to_owned()),
        ("two SPIFFE SANs", mint(&bed.authority, &[FAKE, EVIL], HOUR), "2 SPIFFE URI SANs".to_owned()),
    ];
    for (what, certificate, error) in cases {
        impostor.show(certificate);
        let reply = traffic::request(bed.lab.pod("web"), to, b"a secret");
        assert!(reply.is_err(), "{what}: answered: {reply:?}");
        let handshake = impostor.handshake();
        assert!(handshake.is_err(), "{what}: the client finished the handshake");
        let logged = || {
            let log = bed.lab.node("node1").log();
            log.lines().any(|line| line.contains("direction=\"outbound\"") && line.contains(&error))
        };
        assert!(wait_until(DEADLINE, logged), "{what}: no line with \"{error}\"");
    }
    assert_eq!(impostor.requests.load(Ordering::Relaxed), 0, "no request may reach an impostor");
    // With the expected name the very same server is served, so it was the certificate.
    impostor.show(mint(&bed.authority, &[FAKE], HOUR));
    let reply = traffic::request(bed.lab.pod("web"), to, b"hello").expect("it is answered");
    assert_eq!(reply, b"hello");
    impostor.handshake().expect("the client took this certificate");
    assert_eq!(impostor.requests.load(Ordering::Relaxed), 1);
    assert_eq!(plaintext.load(Ordering::Relaxed), 0, "nothing may fall back to plaintext");
}
