//! Namespaces, links and addresses of a lab.

use crate::error::Error;
use crate::lab::{make_folder, namespace_name, pod_handle};
use crate::network::{self, ANY4, ANY6};
use crate::node::NodeHandle;
use crate::spec::{Pod, node_addresses, pod_addresses};
use crate::{Lab, namespace};

impl Lab {
    pub(crate) fn build_network(&mut self) -> Result<(), Error> {
        network::allow_cubic()?;
        let underlay = self.underlay();
        namespace::create(&underlay)?;
        network::prepare(&underlay, false)?;
        let addresses = vec![([172, 30, 0, 1].into(), 24), ("fd00:30::1".parse().expect("a literal"), 64)];
        network::add_bridge(&underlay, "underlay0", addresses)?;
        let folder = self.folder();
        for (index, node) in self.spec.nodes.clone().into_iter().enumerate() {
            let number = index + 1;
            let name = namespace_name(&self.name, &node.name);
            namespace::create(&name)?;
            network::prepare(&name, true)?;
            network::add_veth(&underlay, "underlay0", &format!("node{number}"), &name, "eth0")?;
            let (four, six) = node_addresses(number);
            network::configure(
                &name,
                "eth0",
                vec![(four.into(), 24), (six.into(), 64)],
                self.routes(number),
            )?;
            let (four, six) = pod_addresses(number, 1);
            network::add_bridge(&name, "pods0", vec![(four.into(), 24), (six.into(), 64)])?;
            make_folder(&folder.join(&node.name))?;
            self.nodes.push(NodeHandle::new(&node.name, name, folder.join(&node.name)));
        }
        for (index, pod) in self.spec.pods.clone().into_iter().enumerate() {
            self.build_pod(index, &pod)?;
        }
        Ok(())
    }

    fn build_pod(&mut self, index: usize, pod: &Pod) -> Result<(), Error> {
        let name = namespace_name(&self.name, &pod.name);
        let number = self.spec.node_number(&pod.node).expect("invariant: the file was checked");
        namespace::create(&name)?;
        network::prepare(&name, false)?;
        network::add_veth(
            &namespace_name(&self.name, &pod.node),
            "pods0",
            &format!("pod{index}"),
            &name,
            "eth0",
        )?;
        let addresses = pod.addresses.iter().map(|&ip| (ip, if ip.is_ipv4() { 24 } else { 64 }));
        let (four, six) = pod_addresses(number, 1);
        let mut routes = Vec::new();
        if pod.addresses.iter().any(|ip| ip.is_ipv4()) {
            routes.push((ANY4, four.into()));
        }
        if pod.addresses.iter().any(|ip| ip.is_ipv6()) {
            routes.push((ANY6, six.into()));
        }
        network::configure(&name, "eth0", addresses.collect(), routes)?;
        self.pods.push(pod_handle(&self.name, pod));
        Ok(())
    }

    /// To the pods of every other node.
    fn routes(&self, own: usize) -> Vec<(network::Address, std::net::IpAddr)> {
        let others = (1..=self.spec.nodes.len()).filter(|&number| number != own);
        others
            .flat_map(|number| {
                let (gateway4, gateway6) = node_addresses(number);
                let (four, six) = pod_addresses(number, 0);
                [((four.into(), 24), gateway4.into()), ((six.into(), 64), gateway6.into())]
            })
            .collect()
    }
}
