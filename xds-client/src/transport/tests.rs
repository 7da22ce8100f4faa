use super::*;

fn config() -> Config {
    Config::new("https://127.0.0.1:1", RootSource::Inline(String::new()))
}

fn mistake(config: Config) -> String {
    Grpc::new(config).map(drop).expect_err("a mistake").to_string()
}

async fn failure(config: Config) -> String {
    Grpc::new(config).expect("no mistake").open().await.map(drop).expect_err("no server").to_string()
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("xds-client-{}-{name}", std::process::id()))
}

#[test]
fn mistakes_of_the_operator_are_told_at_the_start() {
    for (address, reason) in [
        ("https://", "is not a URI"),
        ("ftp://istiod", "has a scheme that is neither https nor http"),
        ("https://istiod:15012/xds", "has a path, which is not used"),
        ("ht tp://x", "is not a URI"),
        ("istiod..svc:15012", "names a host that cannot be one"),
    ] {
        let expected = format!("XDS_ADDRESS \"{address}\" {reason}; write https://HOST:PORT");
        assert_eq!(mistake(Config { address: address.to_owned(), ..config() }), expected);
    }
    let headers = vec![("x y".to_owned(), Secret("z".to_owned()))];
    let message = mistake(Config { headers, ..config() });
    assert!(message.contains("\"x y\""), "{message}");
    let message = mistake(Config { cluster_id: "a\nb".to_owned(), ..config() });
    assert!(message.contains("CLUSTER_ID"), "{message}");
    let message = mistake(Config { alt_hostname: Some("a b".to_owned()), ..config() });
    assert!(message.contains("ALT_XDS_HOSTNAME \"a b\""), "{message}");
}

#[test]
fn addresses_may_lack_scheme_and_port() {
    for address in ["istiod.istio-system.svc:15012", "https://[::1]:15012", "http://10.0.0.1", "istiod/"] {
        Grpc::new(Config { address: address.to_owned(), ..config() }).expect(address);
    }
}

#[test]
fn secrets_are_not_shown() {
    let config = Config {
        headers: vec![("x".to_owned(), Secret("hidden-1".to_owned()))],
        token: Some(TokenSource::Literal("hidden-2".to_owned())),
        ..config()
    };
    let shown = format!("{config:?}");
    assert!(!shown.contains("hidden"), "{shown}");
}

#[tokio::test]
async fn tokens_that_cannot_be_used_are_named() {
    let path = file("token");
    let config = Config { token: Some(TokenSource::File(path.clone())), ..config() };
    let place = format!("the xDS token (AUTH_TOKEN) in {} cannot be used: ", path.display());
    let reason = async |reason: &str| assert_eq!(failure(config.clone()).await, format!("{place}{reason}"));
    reason("No such file or directory (os error 2)").await;
    std::fs::write(&path, " \n").expect("the file can be written");
    reason("it is empty").await;
    std::fs::write(&path, "a\nb").expect("the file can be written");
    reason("it holds a character that is not printable ASCII").await;
    std::fs::write(&path, vec![b'a'; 65 * 1024]).expect("the file can be written");
    reason("it has 66560 bytes, which no token has").await;
    std::fs::remove_file(&path).expect("the file can be removed");
}

#[tokio::test]
async fn roots_that_cannot_be_used_are_named() {
    let message = failure(config()).await;
    assert_eq!(
        message,
        "the xDS server's roots (XDS_ROOT_CA) in the given text cannot be used: \
         it holds no usable certificate; PEM is expected"
    );
    let missing = Config { roots: RootSource::File(file("roots.pem")), ..config() };
    let message = failure(missing).await;
    assert!(message.contains("roots.pem") && message.contains("No such file"), "{message}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let message = failure(Config { address: "http://127.0.0.1:1".to_owned(), ..config() }).await;
    assert!(message.starts_with("the xDS server http://127.0.0.1:1 cannot be reached: "), "{message}");
    assert!(message.contains("refused"), "{message}");
}
