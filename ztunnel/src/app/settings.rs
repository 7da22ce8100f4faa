//! From the configuration to what each component takes.

use std::sync::Arc;

use super::Error;
use super::feeds::Feeds;
use crate::config::{self, Config};
use crate::hbone;
use crate::identity;
use crate::net::socket::{Keepalive, Options};
use crate::proxy::Shared;
use crate::shutdown::Drain;
use crate::telemetry::Metrics;

pub(super) fn shared(config: &Config, feeds: &Feeds, metrics: Arc<Metrics>, drain: Drain) -> Shared {
    let sockets = Options {
        keepalive: config.sockets.keepalive.as_ref().map(|keepalive| Keepalive {
            time: keepalive.time,
            interval: keepalive.interval,
            retries: keepalive.retries,
        }),
        user_timeout: config.sockets.user_timeout,
        congestion: None,
    };
    let congestion = config.sockets.local_congestion.as_deref().map(Arc::from);
    Shared {
        reader: feeds.reader.clone(),
        demand: feeds.demand.clone(),
        metrics,
        node: config.node.name.clone(),
        network: config.node.network.as_str().into(),
        cluster_id: config.node.cluster_id.as_str().into(),
        hbone: hbone::Settings {
            stream_window: config.hbone.stream_window,
            connection_window: config.hbone.connection_window,
            frame_size: config.hbone.frame_size,
            max_streams: config.hbone.max_streams as usize,
            unused_release: config.hbone.unused_release,
        },
        local_sockets: Options { congestion, ..sockets.clone() },
        sockets,
        original_source: config.sockets.original_source,
        plain_same_node: config.sockets.same_node == config::SameNode::Plain,
        response_baggage: config.response_baggage,
        policy_at_info: config.telemetry.policy_info,
        drain,
        stocks: crate::net::stock::Budget::default(),
        memory: crate::io::budget::Budget::default(),
    }
}

pub(super) fn identity(config: &Config) -> Result<identity::Config, Error> {
    let written = &config.identity;
    let address = written.ca_address.clone().ok_or(Error::NoCa)?;
    Ok(identity::Config {
        ca_address: address.parse().map_err(|_| Error::CaAddress(address))?,
        ca_root: match &written.ca_root {
            config::RootSource::File(path) => identity::RootSource::Path(path.clone()),
            config::RootSource::System => identity::RootSource::System,
            config::RootSource::Inline(pem) => identity::RootSource::Inline(pem.clone()),
        },
        alt_hostname: written.alt_hostname.clone(),
        headers: written
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .collect(),
        token: written.token.as_ref().map(|token| match token {
            config::TokenSource::File(path) => identity::TokenSource::Path(path.clone()),
            config::TokenSource::Literal(secret) => {
                identity::TokenSource::Literal(secret.expose().to_owned())
            }
        }),
        cluster_id: written.cluster_id.clone(),
        secret_ttl: written.secret_ttl,
    })
}

/// How the xDS server is reached, if there is one.
pub(super) fn discovery(config: &config::Xds) -> Option<xds_client::transport::Config> {
    use xds_client::transport::{Config, RootSource, Secret, TokenSource};
    let roots = match &config.root {
        config::RootSource::File(path) => RootSource::File(path.clone()),
        config::RootSource::System => RootSource::System,
        config::RootSource::Inline(pem) => RootSource::Inline(pem.clone()),
    };
    let secret = |text: &config::Secret| Secret(text.expose().to_owned());
    let mut transport = Config::new(config.address.clone()?, roots);
    transport.alt_hostname = config.alt_hostname.clone();
    transport.headers = config.headers.iter().map(|(name, value)| (name.clone(), secret(value))).collect();
    transport.token = config.token.as_ref().map(|token| match token {
        config::TokenSource::File(path) => TokenSource::File(path.clone()),
        config::TokenSource::Literal(text) => TokenSource::Literal(text.expose().to_owned()),
    });
    transport.cluster_id = config.cluster_id.clone();
    Some(transport)
}

/// What the xDS server is told about this proxy.
pub(super) fn node(node: &config::XdsNode) -> xds_client::Node {
    xds_client::Node {
        instance_ip: node.instance_ip.clone(),
        pod_name: node.pod_name.clone(),
        pod_namespace: node.pod_namespace.clone(),
        node_name: node.node_name.clone(),
        metadata: node.metadata.clone().into_iter().collect(),
        json_metadata: node
            .json_metadata
            .iter()
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect(),
    }
}
