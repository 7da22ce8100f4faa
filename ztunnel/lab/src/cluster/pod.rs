//! A pod as the container runtime makes it, and its calls of the plugin.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use serde_json::json;

use super::{DEADLINE, NAMESPACE, Node};
use crate::addresses::pod_addresses;
use crate::{namespace, network, wait_until};

/// Places below are the lab's own.
const FIRST_PLACE: usize = 100;

/// What the container runtime makes for a pod.
pub struct Pod {
    pub name: String,
    pub ip: IpAddr,
    namespace: String,
    link: String,
}

impl Pod {
    /// What a pod at a place is reached at.
    pub fn address(place: usize) -> IpAddr {
        pod_addresses(1, FIRST_PLACE + place).0.into()
    }

    /// What the plugins before ours make. A place is an address.
    pub fn make(node: &Node, name: String, place: usize) -> Self {
        let host = FIRST_PLACE + place;
        let (namespace, link) = (format!("{}.{name}", node.lab), format!("pod{host}"));
        let ((four, six), (gateway, _)) = (pod_addresses(1, host), pod_addresses(1, 1));
        namespace::create(&namespace).expect("root may");
        let hardware = [2, 0, 0, 1, 1, host as u8];
        let routes = vec![(network::ANY4, gateway.into())];
        network::prepare(&namespace, false)
            .and_then(|()| network::add_veth(&node.namespace, "pods0", &link, &namespace, hardware))
            .and_then(|()| {
                network::configure(&namespace, "eth0", vec![(four.into(), 24), (six.into(), 64)], routes)
            })
            .expect("a pod's network");
        // What is sent before would be lost, and sent again a second later. Plugins wait for it too.
        for (inside, link) in [(&namespace, "eth0"), (&node.namespace, link.as_str())] {
            let link = link.to_owned();
            let up = namespace::run(inside, move || wait_until(DEADLINE, || is_running(&link)));
            assert!(up.expect("the namespace is there"), "the link of {name} does not come up");
        }
        Self { name, ip: four.into(), namespace, link }
    }

    pub fn remove(&self, node: &Node) {
        network::remove_link(&node.namespace, &self.link).expect("it is there");
        namespace::remove(&self.namespace).expect("it is there");
    }

    /// Or what the plugin says that hinders it.
    pub fn add(&self, node: &Node) -> Result<(), String> {
        self.call(node, "ADD")
    }

    /// What the runtime does in the end.
    pub fn delete(&self, node: &Node) {
        self.call(node, "DEL").unwrap_or_else(|error| panic!("DEL of {}: {error}", self.name));
        self.remove(node);
    }

    /// There and back on a connection of the pod's.
    pub fn ask(&self, server: SocketAddr, bytes: &'static [u8]) -> io::Result<()> {
        let ask = move || {
            let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(bytes)?;
            stream.read_exact(&mut vec![0; bytes.len()])
        };
        namespace::run(&self.namespace, ask).map_err(io::Error::other)?
    }

    fn call(&self, node: &Node, command: &str) -> Result<(), String> {
        let mut call = Command::new(&node.plugin);
        let name = &self.name;
        call.env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("c-{name}"))
            .env("CNI_NETNS", namespace::path(&self.namespace))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={name};K8S_POD_UID=u-{name}"
                ),
            );
        let started = call.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.expect("the plugin can be executed");
        let stdin = self.configuration(node);
        // One that ends early says why.
        let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
        let output = child.wait_with_output().expect("the plugin ends");
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() { Ok(()) } else { Err(said.into_owned()) }
    }

    fn configuration(&self, node: &Node) -> String {
        let sandbox = namespace::path(&self.namespace);
        json!({
            "cniVersion": "1.1.0",
            "name": "network",
            "type": "ztunnel-cni",
            "socket": node.cni_socket(),
            "enrolled": node.enrolled(),
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": "eth0", "sandbox": sandbox }],
                "ips": [{ "address": format!("{}/24", self.ip), "interface": 0 }],
            },
        })
        .to_string()
    }
}

fn is_running(link: &str) -> bool {
    let mut found = getifaddrs().expect("netlink");
    found.any(|one| one.interface_name == link && one.flags.contains(InterfaceFlags::IFF_RUNNING))
}
