//! Addresses that are asked for when a connection needs them (XDS_ON_DEMAND), instead of all at once.
//!
//! Until the server has said who has an address nothing may be sent there: taking it for a stranger's would carry a
//! pod's traffic in plaintext. So a demand that is not answered refuses the connection.

use std::net::IpAddr;

use xds_client::client;
use xds_client::{Outcome, TypeUrl};
use ztunnel_model::{Network, NetworkAddress};

use super::Reader;
use super::discovery::ADDRESS;

/// Asks the xDS server. Cheap to clone, usable on any thread.
#[derive(Clone)]
pub struct Demand {
    client: client::Demand,
    reader: Reader,
    type_url: TypeUrl,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the xDS server was asked who has {address} and {}", reason(.outcome))]
pub struct Unanswered {
    address: String,
    outcome: Outcome,
}

impl Demand {
    pub fn new(client: client::Demand, reader: Reader) -> Self {
        Self { client, reader, type_url: TypeUrl::from(ADDRESS) }
    }

    /// Returns when the state knows who has an address as seen from `namespace`, or that nobody has it.
    pub async fn owner(&self, network: &Network, ip: IpAddr, namespace: &str) -> Result<(), Unanswered> {
        if self.reader.snapshot().owner(network, ip, namespace).is_some() {
            return Ok(());
        }
        let address = NetworkAddress::new(network.clone(), ip).to_string();
        match self.client.fetch(&self.type_url, &address).await {
            Outcome::Found | Outcome::Absent => Ok(()),
            outcome => Err(Unanswered { address, outcome }),
        }
    }
}

fn reason(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Found | Outcome::Absent => "answered",
        Outcome::TimedOut => "did not answer in time",
        Outcome::Unavailable => "could not be reached, or gave an answer that cannot be used",
    }
}
