use std::path::Path;

use serde_json::json;

use super::*;

fn host() -> Host {
    Host {
        cpus: 16,
        all_cpus: 16,
        open_files: None,
        ipv6: true,
        ipv6_loopback: false,
        exists: |path: &Path| path.starts_with("/present"),
    }
}

fn env(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|&(name, value)| (name, value)).collect()
}

fn config(pairs: &[(&str, &str)]) -> Config {
    from(&env(pairs), None, &host()).expect("the configuration is valid")
}

fn mistakes(pairs: &[(&str, &str)], mesh: Option<&str>) -> Vec<String> {
    let error = from(&env(pairs), mesh, &host()).expect_err("the configuration has mistakes");
    error.0.iter().map(Mistake::to_string).collect()
}

#[test]
fn defaults() {
    let dump = serde_json::to_value(config(&[])).expect("the configuration serializes");
    let expected = json!({
        "telemetry": {"rustLog": "info", "json": false, "policyInfo": false, "buildTag": env!("CARGO_PKG_VERSION")},
        "admin": {
            "adminPort": 15000, "statsPort": 15020, "readinessPort": 15021, "ipv6": true, "ipv6Loopback": false,
        },
        "workers": 4,
        "memory": {"process": null, "pod": null},
        "ioBackend": "auto",
        "node": {
            "name": null, "network": "", "clusterId": "Kubernetes", "trustDomain": "cluster.local", "ipv6": true,
        },
        "hbone": {
            "streamWindow": 4194304, "connectionWindow": 16777216, "frameSize": 1048576, "maxStreams": 100,
            "unusedRelease": {"secs": 300, "nanos": 0},
        },
        "sockets": {
            "keepalive": {
                "time": {"secs": 180, "nanos": 0}, "interval": {"secs": 180, "nanos": 0}, "retries": 9,
            },
            "userTimeout": null,
            "originalSource": true,
            "sameNode": "mtls",
            "localCongestion": null,
        },
        "xds": {
            "address": "https://localhost:15012", "root": {"file": "./var/run/secrets/istio/root-cert.pem"},
            "altHostname": null, "headers": [], "token": null, "clusterId": "Kubernetes", "onDemand": false,
            "revocations": false,
            "node": {
                "instanceIp": "1.1.1.1", "podName": "", "podNamespace": "", "nodeName": "",
                "metadata": {"CLUSTER_ID": "Kubernetes"}, "jsonMetadata": {},
            },
        },
        "identity": {
            "caAddress": "https://localhost:15012", "caRoot": {"file": "./var/run/secrets/istio/root-cert.pem"},
            "altHostname": null, "headers": [], "token": null, "clusterId": "Kubernetes",
            "secretTtl": {"secs": 86400, "nanos": 0}, "crlPath": null,
        },
        "drain": {"deadline": {"secs": 5, "nanos": 0}},
        "staticConfig": null,
        "redirectSocket": "/var/run/ztunnel/redirect.sock",
        "alone": true,
        "inpodUds": "/var/run/ztunnel/ztunnel.sock",
        "responseBaggage": true,
        "allowPrivileges": false,
    });
    assert_eq!(dump, expected);
}

#[test]
fn the_backend_for_sockets() {
    let backend = |value| ("IO_BACKEND", value);
    for (pairs, found) in [
        (vec![], IoBackend::Auto),
        (vec![backend("auto")], IoBackend::Auto),
        (vec![backend("epoll")], IoBackend::Epoll),
        (vec![backend("uring")], IoBackend::Uring),
    ] {
        assert_eq!(config(&pairs).io_backend, found, "{pairs:?}");
    }
    assert_eq!(
        mistakes(&[backend("io_uring")], None),
        ["IO_BACKEND=\"io_uring\": expected auto, epoll or uring"]
    );
}

#[test]
fn worker_threads() {
    let limit = ("ZTUNNEL_RESOURCE_CPU_LIMIT", "3500m");
    let threads = |value| ("ZTUNNEL_WORKER_THREADS", value);
    for (pairs, workers) in [
        (vec![], 4),
        (vec![("ZTUNNEL_CPU_LIMIT", "2")], 2),
        (vec![("ZTUNNEL_CPU_LIMIT", "64")], 16),
        (vec![("ZTUNNEL_RESOURCE_CPU_REQUEST", "6.5")], 7),
        (vec![limit], 4),
        (vec![limit, ("ZTUNNEL_RESOURCE_CPU_REQUEST", "5")], 5),
        (vec![limit, ("PROXY_CONFIG", "concurrency: 0")], 4),
        (vec![("PROXY_CONFIG", "{\"concurrency\": 3}")], 3),
        (vec![("PROXY_CONFIG", "concurrency: 3"), threads("7")], 7),
        (vec![threads("0")], 16),
        (vec![threads("0"), ("ZTUNNEL_CPU_LIMIT", "2")], 2),
        (vec![threads("50%")], 8),
        (vec![threads("1%")], 1),
        (vec![threads("33%"), ("ZTUNNEL_CPU_LIMIT", "4")], 2),
    ] {
        assert_eq!(config(&pairs).workers, workers, "{pairs:?}");
    }
}

#[test]
fn drain_deadlines() {
    let grace = |value| ("TERMINATION_GRACE_PERIOD_SECONDS", value);
    for (pairs, seconds) in [
        (vec![], 5),
        (vec![grace("30")], 25),
        (vec![grace("11")], 6),
        (vec![grace("10")], 9),
        (vec![grace("1")], 1),
        (vec![grace("30"), ("CONNECTION_TERMINATION_DEADLINE", "2m")], 120),
    ] {
        assert_eq!(config(&pairs).drain.deadline, Duration::from_secs(seconds), "{pairs:?}");
    }
}

#[test]
fn the_ca_its_roots_and_the_token() {
    fn identity(pairs: &[(&str, &str)]) -> Identity {
        config(pairs).identity
    }
    assert_eq!(
        identity(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).ca_address.as_deref(),
        Some("https://istiod.istio-system.svc:15012")
    );
    assert_eq!(identity(&[("CA_ADDRESS", "ca:15012")]).ca_address.as_deref(), Some("https://ca:15012"));
    assert_eq!(identity(&[("CA_ADDRESS", "http://[::1]:9")]).ca_address.as_deref(), Some("http://[::1]:9"));
    assert_eq!(identity(&[("CA_ADDRESS", "")]).ca_address, None);

    assert_eq!(identity(&[("CA_ROOT_CA", "SYSTEM")]).ca_root, RootSource::System);
    assert_eq!(identity(&[("CA_ROOT_CA", "/etc/ca")]).ca_root, RootSource::File("/etc/ca".into()));
    let pem = "-----BEGIN CERTIFICATE-----";
    assert_eq!(identity(&[("CA_ROOT_CA", pem)]).ca_root, RootSource::Inline(pem.to_owned()));

    let file = identity(&[("AUTH_TOKEN", "/present/token")]);
    assert_eq!(file.token, Some(TokenSource::File("/present/token".into())));
    let literal = identity(&[("AUTH_TOKEN", "s3cret"), ("CA_HEADER_X-Key", "s3cret")]);
    assert_eq!(literal.token, Some(TokenSource::Literal(Secret::new("s3cret".to_owned()))));
    assert_eq!(literal.headers, [("x-key".to_owned(), Secret::new("s3cret".to_owned()))]);
    let shown = format!("{literal:?} {}", serde_json::to_string(&literal).expect("it serializes"));
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn the_rest_of_the_variables() {
    let all = config(&[
        ("NETWORK", "net1"),
        ("NODE_NAME", "node1"),
        ("CLUSTER_ID", "ignored"),
        ("ISTIO_META_CLUSTER_ID", "c1"),
        ("ISTIO_META_ISTIO_VERSION", "1.30"),
        ("TRUST_DOMAIN", "td"),
        ("IPV6_ENABLED", "false"),
        ("ALT_CA_HOSTNAME", "other"),
        ("SECRET_TTL", "20s"),
        ("LOCAL_XDS_PATH", "/etc/mesh.yaml"),
        ("ENABLE_ORIG_SRC", "false"),
        ("KEEPALIVE_ENABLED", "false"),
        ("KEEPALIVE_TIME", "10s"),
        ("KEEPALIVE_INTERVAL", "5s"),
        ("KEEPALIVE_RETRIES", "3"),
        ("USER_TIMEOUT_ENABLED", "true"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65535"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "65536"),
        ("HTTP2_FRAME_SIZE", "16384"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "7"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1s"),
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ("RUST_LOG", "debug,h2=off"),
        ("LOG_FORMAT", "json"),
        ("REDIRECT_SOCKET", "/run/r.sock"),
        ("ALLOW_PRIVILEGES", "true"),
        ("PROXY_MODE", "shared"),
    ]);
    assert_eq!((all.node.network.as_str(), all.node.name.as_deref()), ("net1", Some("node1")));
    assert_eq!((all.node.cluster_id.as_str(), all.node.trust_domain.as_str()), ("c1", "td"));
    assert_eq!(all.telemetry.build_tag, "1.30");
    assert!(!all.node.ipv6 && !all.admin.ipv6 && !all.sockets.original_source && !all.response_baggage);
    assert_eq!(all.identity.alt_hostname.as_deref(), Some("other"));
    assert_eq!(all.identity.secret_ttl, Duration::from_secs(20));
    assert_eq!(all.static_config, Some(StaticSource::Path("/etc/mesh.yaml".into())));
    assert_eq!((all.sockets.keepalive, all.sockets.user_timeout), (None, Some(Duration::from_secs(25))));
    assert_eq!((all.hbone.stream_window, all.hbone.connection_window), (65535, 65536));
    assert_eq!((all.hbone.frame_size, all.hbone.max_streams), (16384, 7));
    assert_eq!(all.hbone.unused_release, Duration::from_secs(1));
    assert!(all.telemetry.policy_info && all.telemetry.json && all.allow_privileges);
    assert_eq!(all.telemetry.rust_log, "debug,h2=off");
    assert_eq!(all.redirect_socket, Path::new("/run/r.sock"));
}

#[test]
fn documents() {
    let mesh = "rootNamespace: x\ndefaultConfig:\n  proxyAdminPort: 1\n  statsPort: 2\n  discoveryAddress: a\n  \
                proxyMetadata:\n    ISTIO_META_CLUSTER_ID: c9\n";
    let all = from(&env(&[("PROXY_CONFIG", "statsPort: 3")]), Some(mesh), &host()).expect("it is valid");
    assert_eq!((all.admin.admin_port, all.admin.stats_port), (1, 3));
    assert_eq!(all.node.cluster_id, "c9");
    for empty in ["", "defaultConfig:\n", "other: 1\n"] {
        assert!(from(&env(&[]), Some(empty), &host()).is_ok(), "{empty:?}");
    }
    assert_eq!(
        mistakes(
            &[("PROXY_CONFIG", "statsPort: many")],
            Some("defaultConfig: {concurrency: -1, proxyMetadata: 3}")
        ),
        [
            "./etc/istio/config/mesh:1:30: defaultConfig.concurrency: invalid value: integer `-1`, expected u16",
            "./etc/istio/config/mesh:1:49: defaultConfig.proxyMetadata: expected a mapping, found the number 3",
            "PROXY_CONFIG:1:12: statsPort: expected a whole number, found the text \"many\"",
        ]
    );
}

#[test]
fn a_document_that_could_hide_something_is_refused() {
    let deep = format!("a: {}", "[".repeat(100_000));
    for text in
        ["statsPort: 1\n---\nstatsPort: 2\n", "statsPort: 1\nstatsPort: 2\n", "- 1\n", "a: &b c\n", &deep]
    {
        let found = mistakes(&[("PROXY_CONFIG", text)], None);
        assert!(found.iter().all(|mistake| mistake.starts_with("PROXY_CONFIG:")), "{found:?}");
    }
    assert!(!mistakes(&[], Some("defaultConfig: 3\n")).is_empty());
}

#[test]
fn every_mistake_is_named_at_once() {
    let found = mistakes(
        &[
            ("IPV6_ENABLED", "yes"),
            ("SECRET_TTL", "soon"),
            ("POOL_UNUSED_RELEASE_TIMEOUT", "0"),
            ("HTTP2_FRAME_SIZE", "1"),
            ("SAME_NODE", "maybe"),
            ("MEMORY_BUDGET", "half"),
            ("LOCAL_CONGESTION_CONTROL", "much too long a name"),
            ("ZTUNNEL_WORKER_THREADS", "200%"),
            ("RUST_LOG", "a=b=c"),
            ("LOG_FORMAT", "xml"),
            ("LOCAL_XDS", "{}"),
            ("LOCAL_XDS_PATH", "/x"),
            ("CA_ADDRESS", "not a uri"),
            ("PROXY_MODE", "dedicated"),
            ("TRUST_DOMAIN", "a/b"),
            ("CA_HEADER_X", "secret\n"),
        ],
        None,
    );
    let expected = [
        "PROXY_MODE=\"dedicated\": expected shared",
        "TRUST_DOMAIN=\"a/b\": expected a trust domain without '/'",
        "IPV6_ENABLED=\"yes\": expected true or false",
        "CA_HEADER_X=\"…\": expected a header value without control characters",
        "SECRET_TTL=\"soon\": expected a duration above zero such as 10s, 5m or 1h30m",
        "SAME_NODE=\"maybe\": expected mtls or plain",
        "HTTP2_FRAME_SIZE=\"1\": expected a number from 16384 to 16777215",
        "POOL_UNUSED_RELEASE_TIMEOUT=\"0\": expected a duration above zero such as 10s, 5m or 1h30m",
        "ZTUNNEL_WORKER_THREADS=\"200%\": expected a number up to 4096, 0 for all CPUs, or a percentage of them \
         such as 25%",
        "MEMORY_BUDGET=\"half\": expected bytes such as 400Mi or 1G, 0 for no bound",
        "LOCAL_CONGESTION_CONTROL=\"much too long a name\": expected the name of a congestion control such as cubic",
        "RUST_LOG=\"a=b=c\": expected a list of LEVEL and SCOPE=LEVEL",
        "LOG_FORMAT=\"xml\": expected plain or json",
        "LOCAL_XDS_PATH=\"/x\": expected to be the only one of LOCAL_XDS_PATH and LOCAL_XDS",
        "CA_ADDRESS=\"not a uri\": expected HOST:PORT or https://HOST:PORT",
    ];
    assert_eq!(found, expected);
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_text_is_a_mistake() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let env: Environment = [("NETWORK", OsString::from_vec(vec![0xff]))].into_iter().collect();
    let error = from(&env, None, &host()).expect_err("it is not UTF-8");
    assert_eq!(error.to_string(), "the configuration cannot be used:\n  NETWORK=\"…\": expected UTF-8 text");
}

#[test]
fn the_xds_server_and_what_it_is_told() {
    let config = config(&[
        ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
        ("XDS_ROOT_CA", "SYSTEM"),
        ("ALT_XDS_HOSTNAME", "istiod"),
        ("XDS_HEADER_X_Tenant", "a"),
        ("XDS_ON_DEMAND", "true"),
        ("AUTH_TOKEN", "/present/token"),
        ("NODE_NAME", "n1"),
        ("INSTANCE_IP", "10.0.0.9"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("ISTIO_META_CLUSTER_ID", "c1"),
        ("ISTIO_META_OTHER", "from the environment"),
        ("ISTIO_METAJSON_LABELS", "{\"app\": \"ztunnel\"}"),
        (
            "PROXY_CONFIG",
            "{proxyMetadata: {ISTIO_META_OTHER: from the document, ISTIO_META_MORE: kept, NO_META: x}}",
        ),
    ]);
    let dump = serde_json::to_value(&config.xds).expect("the configuration serializes");
    let expected = json!({
        "address": "https://istiod.istio-system.svc:15012", "root": "system", "altHostname": "istiod",
        "headers": [["x_tenant", "REDACTED"]], "token": {"file": "/present/token"}, "clusterId": "c1",
        "onDemand": true, "revocations": false,
        "node": {
            "instanceIp": "10.0.0.9", "podName": "ztunnel-x", "podNamespace": "istio-system", "nodeName": "n1",
            "metadata": {"CLUSTER_ID": "c1", "OTHER": "from the environment", "MORE": "kept"},
            "jsonMetadata": {"LABELS": {"app": "ztunnel"}},
        },
    });
    assert_eq!(dump, expected);
}

#[test]
fn which_xds_server_is_asked() {
    let address = |pairs: &[(&str, &str)]| config(pairs).xds.address;
    let kubernetes = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    assert_eq!(address(&[kubernetes]).as_deref(), Some("https://istiod.istio-system.svc:15012"));
    assert_eq!(address(&[kubernetes, ("XDS_ADDRESS", "")]), None);
    let document = ("PROXY_CONFIG", "discoveryAddress: other:1");
    assert_eq!(address(&[kubernetes, document]).as_deref(), Some("https://other:1"));
    assert_eq!(address(&[document, ("XDS_ADDRESS", "http://mine:2")]).as_deref(), Some("http://mine:2"));
    let wrong =
        mistakes(&[("XDS_ADDRESS", "ftp://x"), ("ISTIO_METAJSON_A", "{"), ("INSTANCE_IP", "here")], None);
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    assert!(wrong.iter().any(|line| line.starts_with("XDS_ADDRESS=\"ftp://x\"")), "{wrong:?}");
}
