//! What the operator wrote into the environment: the only file that reads it. Values are parsed, nothing is defaulted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tracing_subscriber::filter::Targets;

use super::quantity::{self, Workers};
use super::{IoBackend, MemoryRule, Mistake, SameNode, Secret};

/// The variables of a process, or of a test.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    pub fn process() -> Self {
        // A name that is not UTF-8 is none of ours.
        Self(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect(),
        )
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// One field per variable of interop.md section 1.3 that a present feature needs; `None` is unset.
pub(super) struct Raw {
    pub(super) network: Option<String>,
    pub(super) node_name: Option<String>,
    pub(super) cluster_id: Option<String>,
    pub(super) trust_domain: Option<String>,
    pub(super) ipv6_enabled: Option<bool>,
    pub(super) xds_address: Option<String>,
    pub(super) xds_root_ca: Option<String>,
    pub(super) alt_xds_hostname: Option<String>,
    pub(super) xds_on_demand: Option<bool>,
    pub(super) xds_revocations: Option<bool>,
    pub(super) xds_headers: Vec<(String, Secret)>,
    pub(super) instance_ip: Option<IpAddr>,
    pub(super) pod_name: Option<String>,
    pub(super) pod_namespace: Option<String>,
    /// ISTIO_META_*: names without the prefix.
    pub(super) metadata: BTreeMap<String, String>,
    /// ISTIO_METAJSON_*: names without the prefix, values that are JSON.
    pub(super) json_metadata: BTreeMap<String, Value>,
    pub(super) ca_address: Option<String>,
    pub(super) ca_root_ca: Option<String>,
    pub(super) alt_ca_hostname: Option<String>,
    pub(super) ca_headers: Vec<(String, Secret)>,
    pub(super) auth_token: Option<Secret>,
    pub(super) secret_ttl: Option<Duration>,
    pub(super) crl_path: Option<PathBuf>,
    pub(super) in_kubernetes: bool,
    pub(super) local_xds_path: Option<PathBuf>,
    pub(super) local_xds: Option<String>,
    pub(super) enable_orig_src: Option<bool>,
    pub(super) same_node: Option<SameNode>,
    pub(super) keepalive_enabled: Option<bool>,
    pub(super) keepalive_time: Option<Duration>,
    pub(super) keepalive_interval: Option<Duration>,
    pub(super) keepalive_retries: Option<u32>,
    pub(super) user_timeout_enabled: Option<bool>,
    pub(super) stream_window: Option<u32>,
    pub(super) connection_window: Option<u32>,
    pub(super) frame_size: Option<u32>,
    pub(super) max_streams: Option<u32>,
    pub(super) unused_release: Option<Duration>,
    pub(super) termination_deadline: Option<Duration>,
    pub(super) grace_period: Option<Duration>,
    pub(super) response_baggage: Option<bool>,
    pub(super) policy_info: Option<bool>,
    pub(super) io_backend: Option<IoBackend>,
    pub(super) worker_threads: Option<Workers>,
    pub(super) cpu_limit: Option<usize>,
    pub(super) resource_cpu_limit: Option<usize>,
    pub(super) resource_cpu_request: Option<usize>,
    pub(super) memory: MemoryRule,
    pub(super) local_congestion: Option<String>,
    pub(super) rust_log: Option<String>,
    pub(super) json_log: Option<bool>,
    pub(super) proxy_config: Option<String>,
    pub(super) redirect_socket: Option<PathBuf>,
    pub(super) inpod_uds: Option<PathBuf>,
    pub(super) allow_privileges: Option<bool>,
}

const DURATION: &str = "a duration above zero such as 10s, 5m or 1h30m";

impl Raw {
    /// A value that cannot be parsed is a mistake and counts as unset, so that the rest is still checked.
    pub(super) fn read(env: &Environment, mistakes: &mut Vec<Mistake>) -> Self {
        let mut from = Reader { env, mistakes };
        from.only("PROXY_MODE", "shared");
        Self {
            network: from.text("NETWORK"),
            node_name: from.non_empty("NODE_NAME"),
            cluster_id: from.non_empty("CLUSTER_ID"),
            trust_domain: from.parsed("TRUST_DOMAIN", "a trust domain without '/'", |text| {
                (!text.is_empty() && !text.contains('/')).then(|| text.to_owned())
            }),
            ipv6_enabled: from.boolean("IPV6_ENABLED"),
            xds_address: from.text("XDS_ADDRESS"),
            xds_root_ca: from.non_empty("XDS_ROOT_CA"),
            alt_xds_hostname: from.non_empty("ALT_XDS_HOSTNAME"),
            xds_on_demand: from.boolean("XDS_ON_DEMAND"),
            xds_revocations: from.boolean("XDS_REVOCATIONS"),
            xds_headers: from.headers("XDS_HEADER_"),
            instance_ip: from.parsed("INSTANCE_IP", "an IP address", |text| text.parse().ok()),
            pod_name: from.non_empty("POD_NAME"),
            pod_namespace: from.non_empty("POD_NAMESPACE"),
            metadata: from.prefixed("ISTIO_META_"),
            json_metadata: from.json("ISTIO_METAJSON_"),
            ca_address: from.text("CA_ADDRESS"),
            ca_root_ca: from.non_empty("CA_ROOT_CA"),
            alt_ca_hostname: from.non_empty("ALT_CA_HOSTNAME"),
            ca_headers: from.headers("CA_HEADER_"),
            auth_token: from.non_empty("AUTH_TOKEN").map(Secret::new),
            secret_ttl: from.duration("SECRET_TTL"),
            crl_path: from.non_empty("CRL_PATH").map(PathBuf::from),
            in_kubernetes: from.text("KUBERNETES_SERVICE_HOST").is_some(),
            local_xds_path: from.non_empty("LOCAL_XDS_PATH").map(PathBuf::from),
            local_xds: from.non_empty("LOCAL_XDS"),
            enable_orig_src: from.boolean("ENABLE_ORIG_SRC"),
            same_node: from.same_node("SAME_NODE"),
            keepalive_enabled: from.boolean("KEEPALIVE_ENABLED"),
            keepalive_time: from.duration("KEEPALIVE_TIME"),
            keepalive_interval: from.duration("KEEPALIVE_INTERVAL"),
            keepalive_retries: from.number("KEEPALIVE_RETRIES", 1, 127),
            user_timeout_enabled: from.boolean("USER_TIMEOUT_ENABLED"),
            // The ranges of RFC 9113 sections 6.5.2 and 6.9.2; a connection window cannot be set below its initial size.
            stream_window: from.number("HTTP2_STREAM_WINDOW_SIZE", 1, (1 << 31) - 1),
            connection_window: from.number("HTTP2_CONNECTION_WINDOW_SIZE", 65_535, (1 << 31) - 1),
            frame_size: from.number("HTTP2_FRAME_SIZE", 1 << 14, (1 << 24) - 1),
            max_streams: from.number("POOL_MAX_STREAMS_PER_CONNECTION", 1, u32::MAX),
            unused_release: from.duration("POOL_UNUSED_RELEASE_TIMEOUT"),
            termination_deadline: from.duration("CONNECTION_TERMINATION_DEADLINE"),
            grace_period: from.duration("TERMINATION_GRACE_PERIOD_SECONDS"),
            response_baggage: from.boolean("ENABLE_RESPONSE_BAGGAGE"),
            policy_info: from.boolean("AUTHZ_POLICY_INFO_LOGGING"),
            io_backend: from.parsed("IO_BACKEND", "auto, epoll or uring", |text| match text {
                "auto" => Some(IoBackend::Auto),
                "epoll" => Some(IoBackend::Epoll),
                "uring" => Some(IoBackend::Uring),
                _ => None,
            }),
            worker_threads: from.parsed(
                "ZTUNNEL_WORKER_THREADS",
                "a number up to 4096, 0 for all CPUs, or a percentage of them such as 25%",
                quantity::workers,
            ),
            cpu_limit: from.parsed("ZTUNNEL_CPU_LIMIT", "a whole number of CPUs above zero", |text| {
                text.parse().ok().filter(|&count| (1..=1_000_000).contains(&count))
            }),
            resource_cpu_limit: from.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT"),
            resource_cpu_request: from.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST"),
            memory: MemoryRule { process: from.bytes("MEMORY_BUDGET"), pod: from.bytes("POD_MEMORY_BUDGET") },
            local_congestion: from.congestion("LOCAL_CONGESTION_CONTROL"),
            rust_log: from.parsed("RUST_LOG", "a list of LEVEL and SCOPE=LEVEL", |text| {
                text.parse::<Targets>().ok().map(|_| text.to_owned())
            }),
            json_log: from.parsed("LOG_FORMAT", "plain or json", |text| match text {
                "plain" => Some(false),
                "json" => Some(true),
                _ => None,
            }),
            proxy_config: from.text("PROXY_CONFIG"),
            redirect_socket: from.non_empty("REDIRECT_SOCKET").map(PathBuf::from),
            inpod_uds: from.non_empty("INPOD_UDS").map(PathBuf::from),
            allow_privileges: from.boolean("ALLOW_PRIVILEGES"),
        }
    }
}

struct Reader<'a> {
    env: &'a Environment,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reader<'_> {
    fn refuse(&mut self, name: &str, value: impl Into<String>, expected: &str) {
        self.mistakes.push(Mistake::Value {
            place: name.to_owned(),
            value: value.into(),
            expected: expected.to_owned(),
        });
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.env.0.get(name)?.to_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.refuse(name, "…", "UTF-8 text");
                None
            }
        }
    }

    /// Charts write `NAME=""` for what their user left out.
    fn non_empty(&mut self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    fn parsed<T>(&mut self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.non_empty(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.refuse(name, text, expected);
        }
        value
    }

    fn only(&mut self, name: &str, accepted: &str) {
        self.parsed(name, accepted, |text| (text == accepted).then_some(()));
    }

    fn boolean(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, "true or false", |text| text.parse().ok())
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        self.parsed(name, DURATION, |text| quantity::duration(text).filter(|value| !value.is_zero()))
    }

    fn number(&mut self, name: &str, least: u32, most: u32) -> Option<u32> {
        let expected = format!("a number from {least} to {most}");
        self.parsed(name, &expected, |text| text.parse().ok().filter(|value| (least..=most).contains(value)))
    }

    fn cpus(&mut self, name: &str) -> Option<usize> {
        self.parsed(name, "a CPU quantity above zero such as 2, 1.5 or 500m", |text| {
            quantity::cpus(text).filter(|&count| count > 0)
        })
    }

    fn bytes(&mut self, name: &str) -> Option<u64> {
        self.parsed(name, "bytes such as 400Mi or 1G, 0 for no bound", quantity::bytes)
    }

    fn congestion(&mut self, name: &str) -> Option<String> {
        self.parsed(name, "the name of a congestion control such as cubic", |text| {
            // TCP_CA_NAME_MAX without its final zero (linux/tcp.h).
            let fits = (1..16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
            fits.then(|| text.to_owned())
        })
    }

    fn same_node(&mut self, name: &str) -> Option<SameNode> {
        self.parsed(name, "mtls or plain", |text| match text {
            "mtls" => Some(SameNode::Mtls),
            "plain" => Some(SameNode::Plain),
            _ => None,
        })
    }

    /// Variables whose names begin with a prefix, which the answer leaves out.
    fn prefixed(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let names: Vec<String> = self.env.0.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names
            .into_iter()
            .filter_map(|name| Some((name[prefix.len()..].to_owned(), self.text(&name)?)))
            .collect()
    }

    fn json(&mut self, prefix: &str) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        for (name, text) in self.prefixed(prefix) {
            match serde_json::from_str(&text) {
                Ok(value) => drop(values.insert(name, value)),
                Err(error) => {
                    self.refuse(
                        &format!("{prefix}{name}"),
                        text,
                        &format!("JSON such as {{\"a\": 1}} ({error})"),
                    );
                }
            }
        }
        values
    }

    fn headers(&mut self, prefix: &str) -> Vec<(String, Secret)> {
        let mut headers = Vec::new();
        for (suffix, value) in self.prefixed(prefix) {
            let name = format!("{prefix}{suffix}");
            let header = suffix.to_ascii_lowercase();
            if http::HeaderName::try_from(&header).is_err() {
                self.refuse(&name, "…", "a header name after the prefix");
            } else if http::HeaderValue::try_from(&value).is_err() {
                self.refuse(&name, "…", "a header value without control characters");
            } else {
                headers.push((header, Secret::new(value)));
            }
        }
        headers
    }
}
