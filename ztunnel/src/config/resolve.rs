//! Defaults, and the rules by which several variables make one value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mesh::ProxyConfig;
use super::raw::Raw;
use super::workers::WorkerRule;
use super::{
    Admin, Config, Drain, Hbone, Host, Identity, Keepalive, Mistake, Node, RootSource, Secret, Sockets,
    StaticSource, Telemetry, TokenSource, Xds, XdsNode,
};

const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const INPOD_UDS: &str = "/var/run/ztunnel/ztunnel.sock";
const REDIRECT_SOCKET: &str = "/var/run/ztunnel/redirect.sock";
const READINESS_PORT: u16 = 15021;

pub(super) fn resolve(
    raw: Raw,
    proxy_config: ProxyConfig,
    host: &Host,
    mistakes: &mut Vec<Mistake>,
) -> Config {
    let worker_rule = worker_rule(&raw, proxy_config.concurrency, host);
    let ipv6 = raw.ipv6_enabled.unwrap_or(true) && host.ipv6;
    let metadata = metadata(&raw, &proxy_config);
    let written = |key: &str| metadata.get(key).filter(|text| !text.is_empty()).cloned();
    let cluster_id =
        written("CLUSTER_ID").or_else(|| raw.cluster_id.clone()).unwrap_or_else(|| "Kubernetes".to_owned());
    let build_tag = written("ISTIO_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    Config {
        telemetry: Telemetry {
            rust_log: raw.rust_log.clone().unwrap_or_else(|| "info".to_owned()),
            json: raw.json_log.unwrap_or(false),
            policy_info: raw.policy_info.unwrap_or(false),
            build_tag,
        },
        admin: Admin {
            admin_port: proxy_config.admin_port.unwrap_or(15000),
            stats_port: proxy_config.stats_port.unwrap_or(15020),
            readiness_port: READINESS_PORT,
            ipv6,
            ipv6_loopback: ipv6 && host.ipv6_loopback,
        },
        workers: worker_rule.at_start(),
        worker_rule,
        memory: raw.memory,
        io_backend: raw.io_backend.unwrap_or_default(),
        node: Node {
            name: raw.node_name.clone(),
            network: raw.network.clone().unwrap_or_default(),
            cluster_id: cluster_id.clone(),
            trust_domain: raw.trust_domain.clone().unwrap_or_else(|| "cluster.local".to_owned()),
            ipv6,
        },
        hbone: Hbone {
            stream_window: raw.stream_window.unwrap_or(4 << 20),
            connection_window: raw.connection_window.unwrap_or(16 << 20),
            frame_size: raw.frame_size.unwrap_or(1 << 20),
            max_streams: raw.max_streams.unwrap_or(100),
            unused_release: raw.unused_release.unwrap_or(Duration::from_secs(5 * 60)),
        },
        sockets: sockets(&raw),
        drain: Drain { deadline: drain_deadline(&raw) },
        static_config: static_config(&raw, mistakes),
        alone: raw.redirect_socket.is_none(),
        inpod_uds: raw.inpod_uds.clone().unwrap_or_else(|| PathBuf::from(INPOD_UDS)),
        redirect_socket: raw.redirect_socket.clone().unwrap_or_else(|| PathBuf::from(REDIRECT_SOCKET)),
        response_baggage: raw.response_baggage.unwrap_or(true),
        allow_privileges: raw.allow_privileges.unwrap_or(false),
        xds: xds(&raw, proxy_config.discovery_address, metadata, &cluster_id, host, mistakes),
        identity: identity(raw, cluster_id, host, mistakes),
    }
}

/// Proxy metadata without the prefix. Environment before document: the environment is what the operator of this process
/// wrote.
fn metadata(raw: &Raw, proxy_config: &ProxyConfig) -> BTreeMap<String, String> {
    let written = proxy_config.metadata.iter();
    let named = written.filter_map(|(key, value)| Some((key.strip_prefix("ISTIO_META_")?, value)));
    let mut metadata: BTreeMap<String, String> =
        named.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    metadata.extend(raw.metadata.clone());
    metadata
}

fn xds(
    raw: &Raw,
    discovery_address: Option<String>,
    mut metadata: BTreeMap<String, String>,
    cluster_id: &str,
    host: &Host,
    mistakes: &mut Vec<Mistake>,
) -> Xds {
    metadata.entry("CLUSTER_ID".to_owned()).or_insert_with(|| cluster_id.to_owned());
    let address = raw.xds_address.clone().or(discovery_address);
    Xds {
        address: server_address("XDS_ADDRESS", address, raw.in_kubernetes, mistakes),
        root: root_source(raw.xds_root_ca.clone()),
        alt_hostname: raw.alt_xds_hostname.clone(),
        headers: raw.xds_headers.clone(),
        token: token(raw.auth_token.clone(), host),
        cluster_id: cluster_id.to_owned(),
        on_demand: raw.xds_on_demand.unwrap_or(false),
        revocations: raw.xds_revocations.unwrap_or(false),
        node: XdsNode {
            instance_ip: raw.instance_ip.map_or_else(|| "1.1.1.1".to_owned(), |ip| ip.to_string()),
            pod_name: raw.pod_name.clone().unwrap_or_default(),
            pod_namespace: raw.pod_namespace.clone().unwrap_or_default(),
            node_name: raw.node_name.clone().unwrap_or_default(),
            metadata,
            json_metadata: raw.json_metadata.clone(),
        },
    }
}

fn worker_rule(raw: &Raw, concurrency: Option<u16>, host: &Host) -> WorkerRule {
    WorkerRule {
        threads: raw.worker_threads,
        concurrency,
        cpu_limit: raw.cpu_limit,
        resource_limit: raw.resource_cpu_limit,
        resource_request: raw.resource_cpu_request,
        cpus: host.cpus,
        on_host: host.all_cpus,
    }
}

fn sockets(raw: &Raw) -> Sockets {
    let keepalive = Keepalive {
        time: raw.keepalive_time.unwrap_or(Duration::from_secs(180)),
        interval: raw.keepalive_interval.unwrap_or(Duration::from_secs(180)),
        retries: raw.keepalive_retries.unwrap_or(9),
    };
    let user_timeout = keepalive.time.saturating_add(keepalive.interval.saturating_mul(keepalive.retries));
    Sockets {
        keepalive: raw.keepalive_enabled.unwrap_or(true).then_some(keepalive),
        user_timeout: raw.user_timeout_enabled.unwrap_or(false).then_some(user_timeout),
        // The agent's sockets can always take the original address, so "when it succeeds" is the same as "yes".
        original_source: raw.enable_orig_src.unwrap_or(true),
        same_node: raw.same_node.unwrap_or_default(),
        local_congestion: raw.local_congestion.clone(),
    }
}

/// The proxy must be gone before the kubelet kills it, with as much of the grace period used as is safe.
fn drain_deadline(raw: &Raw) -> Duration {
    const SECOND: Duration = Duration::from_secs(1);
    raw.termination_deadline.unwrap_or_else(|| match raw.grace_period {
        None => SECOND * 5,
        Some(grace) if grace > SECOND * 10 => grace - SECOND * 5,
        Some(grace) => grace.saturating_sub(SECOND).max(SECOND),
    })
}

fn static_config(raw: &Raw, mistakes: &mut Vec<Mistake>) -> Option<StaticSource> {
    match (raw.local_xds_path.clone(), raw.local_xds.clone()) {
        (Some(path), Some(_)) => {
            mistakes.push(Mistake::Value {
                place: "LOCAL_XDS_PATH".to_owned(),
                value: path.display().to_string(),
                expected: "to be the only one of LOCAL_XDS_PATH and LOCAL_XDS".to_owned(),
            });
            None
        }
        (Some(path), None) => Some(StaticSource::Path(path)),
        (None, inline) => inline.map(StaticSource::Inline),
    }
}

fn identity(raw: Raw, cluster_id: String, host: &Host, mistakes: &mut Vec<Mistake>) -> Identity {
    Identity {
        ca_address: server_address("CA_ADDRESS", raw.ca_address, raw.in_kubernetes, mistakes),
        ca_root: root_source(raw.ca_root_ca),
        alt_hostname: raw.alt_ca_hostname,
        headers: raw.ca_headers,
        token: token(raw.auth_token, host),
        cluster_id,
        crl_path: raw.crl_path,
        secret_ttl: raw.secret_ttl.unwrap_or(Duration::from_secs(24 * 60 * 60)),
    }
}

fn root_source(written: Option<String>) -> RootSource {
    let root = written.unwrap_or_else(|| ROOT_FILE.to_owned());
    match root.as_str() {
        "SYSTEM" => RootSource::System,
        pem if pem.contains("-----BEGIN") => RootSource::Inline(root),
        _ => RootSource::File(PathBuf::from(root)),
    }
}

/// The control plane's address; an empty one means that there is none.
fn server_address(
    variable: &str,
    written: Option<String>,
    in_kubernetes: bool,
    mistakes: &mut Vec<Mistake>,
) -> Option<String> {
    let address = match written {
        Some(address) => address,
        None if in_kubernetes => "https://istiod.istio-system.svc:15012".to_owned(),
        None => "https://localhost:15012".to_owned(),
    };
    if address.is_empty() {
        return None;
    }
    let uri = if address.contains("://") { address.clone() } else { format!("https://{address}") };
    let usable = |uri: &http::Uri| {
        matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some_and(|host| !host.is_empty())
    };
    if uri.parse::<http::Uri>().is_ok_and(|uri| usable(&uri)) {
        return Some(uri);
    }
    mistakes.push(Mistake::Value {
        place: variable.to_owned(),
        value: address,
        expected: "HOST:PORT or https://HOST:PORT".to_owned(),
    });
    None
}

fn token(written: Option<Secret>, host: &Host) -> Option<TokenSource> {
    match written {
        Some(text) if (host.exists)(Path::new(text.expose())) => {
            Some(TokenSource::File(PathBuf::from(text.expose())))
        }
        Some(text) => Some(TokenSource::Literal(text)),
        None => (host.exists)(Path::new(TOKEN_FILE)).then(|| TokenSource::File(PathBuf::from(TOKEN_FILE))),
    }
}
