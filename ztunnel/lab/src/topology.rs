//! Namespaces, links and addresses of a lab.

use crate::addresses::{node_addresses, pod_addresses};
use crate::error::Error;
use crate::lab::{make_folder, namespace_name};
use crate::manifests::{Cluster, Node, Pod};
use crate::network::{self, ANY4, ANY6};
use crate::node::NodeHandle;
use crate::{Lab, namespace};

impl Lab {
    /// The underlay and every node on it.
    pub(crate) fn build_nodes(&mut self, nodes: &[Node]) -> Result<(), Error> {
        network::allow_cubic()?;
        let underlay = self.underlay();
        namespace::create(&underlay)?;
        self.prepare(&underlay, false)?;
        let addresses = vec![([172, 30, 0, 1].into(), 24), ("fd00:30::1".parse().expect("a literal"), 64)];
        network::add_bridge(&underlay, "underlay0", addresses)?;
        let folder = self.folder();
        for (index, node) in nodes.iter().enumerate() {
            let number = index + 1;
            let name = namespace_name(&self.name, &node.name);
            namespace::create(&name)?;
            self.prepare(&name, true)?;
            let hardware = [2, 0, 0, 0, 0, number as u8];
            network::add_veth(&underlay, "underlay0", &format!("node{number}"), &name, hardware)?;
            let (four, six) = node_addresses(number);
            let routes = routes(number, nodes.len());
            network::configure(&name, "eth0", vec![(four.into(), 24), (six.into(), 64)], routes)?;
            let (four, six) = pod_addresses(number, 1);
            network::add_bridge(&name, "pods0", vec![(four.into(), 24), (six.into(), 64)])?;
            make_folder(&folder.join(&node.name))?;
            self.nodes.push(NodeHandle::new(node, name, folder.join(&node.name)));
        }
        Ok(())
    }

    /// A pod's namespace on its node; nothing of it stays if it cannot be made.
    pub(crate) fn build_pod(&self, cluster: &Cluster, pod: &Pod) -> Result<(), Error> {
        let name = namespace_name(&self.name, &pod.netns);
        let number =
            cluster.node_number(&pod.node).expect("invariant: a pod is planned onto a node there is");
        // What an attempt left that was broken off.
        self.remove_pod(pod)?;
        namespace::create(&name)?;
        let made = self.connect_pod(&name, number, pod);
        if made.is_err() {
            let _ = self.remove_pod(pod);
        }
        made
    }

    /// The end of a pod; its link goes at once, so that another pod can have its place.
    pub(crate) fn remove_pod(&self, pod: &Pod) -> Result<(), Error> {
        network::remove_link(&namespace_name(&self.name, &pod.node), &link(pod))?;
        namespace::remove(&namespace_name(&self.name, &pod.netns))?;
        Ok(())
    }

    /// Before anybody has a socket there.
    fn prepare(&self, name: &str, forwarding: bool) -> Result<(), Error> {
        network::prepare(name, forwarding)?;
        Ok(self.congestion.as_ref().map_or(Ok(()), |congestion| network::set_congestion(name, congestion))?)
    }

    fn connect_pod(&self, name: &str, number: usize, pod: &Pod) -> Result<(), Error> {
        self.prepare(name, false)?;
        let node = namespace_name(&self.name, &pod.node);
        // An address has the same hardware for ever: no neighbour remembers a pod that had it before.
        let hardware = [2, 0, 0, 1, number as u8, pod.host as u8];
        network::add_veth(&node, "pods0", &link(pod), name, hardware)?;
        let addresses = pod.addresses.iter().map(|&ip| (ip, if ip.is_ipv4() { 24 } else { 64 }));
        let (four, six) = pod_addresses(number, 1);
        let routes = vec![(ANY4, four.into()), (ANY6, six.into())];
        network::configure(name, "eth0", addresses.collect(), routes)?;
        Ok(())
    }
}

/// A pod's link on its node.
fn link(pod: &Pod) -> String {
    format!("pod{}", pod.host)
}

/// From a node to the pods of every other one.
fn routes(own: usize, nodes: usize) -> Vec<(network::Address, std::net::IpAddr)> {
    let others = (1..=nodes).filter(|&number| number != own);
    others
        .flat_map(|number| {
            let (gateway4, gateway6) = node_addresses(number);
            let (four, six) = pod_addresses(number, 0);
            [((four.into(), 24), gateway4.into()), ((six.into(), 64), gateway6.into())]
        })
        .collect()
}
