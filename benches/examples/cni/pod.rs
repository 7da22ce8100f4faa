//! A pod as the container runtime makes it, and its calls of the plugin.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use serde_json::json;
use ztunnel_lab::addresses::pod_addresses;
use ztunnel_lab::{Lab, binaries, namespace, network, wait_until};

use super::DEADLINE;

/// Places below are the lab's own.
const FIRST_PLACE: usize = 100;

/// The node on which pods come and go.
pub struct Node {
    lab: String,
    namespace: String,
    folder: PathBuf,
    plugin: PathBuf,
}

pub struct Pod {
    pub name: String,
    pub ip: IpAddr,
    namespace: String,
    link: String,
}

impl Node {
    pub fn of(lab: &Lab) -> Self {
        let node = lab.node("node1");
        let folder = node.agent_socket().parent().expect("invariant: a file is in a folder").to_owned();
        let agent = binaries::find().expect("the lab found them").agent;
        let plugin = agent.with_file_name("ztunnel-cni");
        Self { lab: lab.name().to_owned(), namespace: node.namespace().to_owned(), folder, plugin }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn cni_socket(&self) -> PathBuf {
        self.folder.join("cni.sock")
    }

    pub fn enrolled(&self) -> PathBuf {
        self.folder.join("enrolled.json")
    }
}

impl Pod {
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

    pub fn add(&self, node: &Node) {
        self.call(node, "ADD");
    }

    /// What the runtime does in the end.
    pub fn delete(&self, node: &Node) {
        self.call(node, "DEL");
        self.remove(node);
    }

    /// A byte there and back on a connection of the pod's.
    pub fn ask(&self, server: SocketAddr) {
        let ask = move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])
        };
        let asked = namespace::run(&self.namespace, ask).expect("the namespace is there");
        asked.unwrap_or_else(|error| panic!("{} is not answered: {error}", self.name));
    }

    fn call(&self, node: &Node, command: &str) {
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
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=front;K8S_POD_NAME={name};K8S_POD_UID=u-{name}"),
            );
        let started = call.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.expect("the plugin can be executed");
        let stdin = self.configuration(node);
        child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).expect("the plugin reads");
        let output = child.wait_with_output().expect("the plugin ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command} of {name}: {said}");
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
