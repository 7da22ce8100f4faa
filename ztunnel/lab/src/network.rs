//! Links, addresses, routes and settings, by netlink. Each function runs inside the namespace that it changes.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespace;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    #[error("{what}: {source}")]
    Netlink { what: String, source: rtnetlink::Error },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// An address with its prefix length.
pub type Address = (IpAddr, u8);

/// Settings of every namespace: cubic (see the crate's documentation), no duplicate address detection, since it would
/// delay every address by a second, and no reverse path filter, as in a pod.
pub fn prepare(name: &str, forwarding: bool) -> Result<(), Error> {
    inside(name, move || async move {
        let mut settings = vec![
            ("net/ipv4/tcp_congestion_control", "cubic"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ];
        if forwarding {
            settings.extend([("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]);
        }
        for (key, value) in settings {
            write_setting(key, value)?;
        }
        let handle = connect()?;
        up(&handle, "lo").await
    })
}

/// Another congestion control than cubic.
pub fn set_congestion(name: &str, congestion: &str) -> Result<(), Error> {
    let congestion = congestion.to_owned();
    inside(name, move || async move { write_setting("net/ipv4/tcp_congestion_control", &congestion) })
}

/// Lets namespaces choose cubic: only what the first namespace allows can be chosen elsewhere.
pub fn allow_cubic() -> Result<(), Error> {
    const KEY: &str = "net/ipv4/tcp_allowed_congestion_control";
    let path = format!("/proc/sys/{KEY}");
    let allowed = fs::read_to_string(&path).map_err(|source| Error::Io { what: path, source })?;
    if allowed.split_whitespace().any(|name| name == "cubic") {
        return Ok(());
    }
    write_setting(KEY, &format!("{} cubic", allowed.trim()))
}

/// A bridge with addresses.
pub fn add_bridge(name: &str, bridge: &'static str, addresses: Vec<Address>) -> Result<(), Error> {
    inside(name, move || async move {
        let handle = connect()?;
        let made = handle.link().add(LinkBridge::new(bridge).build()).execute().await;
        made.map_err(|source| Error::Netlink { what: format!("cannot add bridge {bridge}"), source })?;
        add_addresses(&handle, bridge, &addresses).await?;
        up(&handle, bridge).await
    })
}

/// A veth pair: one end, `port`, joins a bridge here, the other becomes `eth0` with this hardware address in another
/// namespace.
pub fn add_veth(
    name: &str,
    bridge: &'static str,
    port: &str,
    peer: &str,
    hardware: [u8; 6],
) -> Result<(), Error> {
    let port = port.to_owned();
    let file = fs::File::open(namespace::path(peer))
        .map_err(|source| Error::Io { what: format!("cannot open namespace {peer}"), source })?;
    let peer: OwnedFd = file.into();
    inside(name, move || async move {
        let handle = connect()?;
        let fail = |what: &str| {
            let what = format!("cannot {what} link {port}");
            move |source| Error::Netlink { what, source }
        };
        // A name that no other link of this namespace can have, until the end is moved.
        let moving = format!("{port}-far");
        handle.link().add(LinkVeth::new(&port, &moving).build()).execute().await.map_err(fail("add"))?;
        let end = index(&moving)?;
        let message = LinkUnspec::new_with_index(end)
            .name("eth0".to_owned())
            .address(hardware.into())
            .setns_by_fd(peer.as_raw_fd())
            .build();
        handle.link().change(message).execute().await.map_err(fail("move the far end of"))?;
        let bridge = index(bridge)?;
        let here = index(&port)?;
        let message = LinkUnspec::new_with_index(here).controller(bridge).up().build();
        handle.link().change(message).execute().await.map_err(fail("join"))
    })
}

/// Removes a link with its other end. No error if it is gone already.
pub fn remove_link(name: &str, link: &str) -> Result<(), Error> {
    let link = link.to_owned();
    inside(name, move || async move {
        let Ok(number) = index(&link) else { return Ok(()) };
        let fail = |source| Error::Netlink { what: format!("cannot remove link {link}"), source };
        connect()?.link().del(number).execute().await.map_err(fail)
    })
}

/// Addresses for a link, the default routes, and further routes.
pub fn configure(
    name: &str,
    link: &'static str,
    addresses: Vec<Address>,
    routes: Vec<(Address, IpAddr)>,
) -> Result<(), Error> {
    inside(name, move || async move {
        let handle = connect()?;
        add_addresses(&handle, link, &addresses).await?;
        up(&handle, link).await?;
        for ((ip, length), gateway) in routes {
            add_route(&handle, ip, length, gateway).await?;
        }
        Ok(())
    })
}

/// All destinations of a family.
pub const ANY4: Address = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
pub const ANY6: Address = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

fn inside<F, W>(name: &str, work: W) -> Result<(), Error>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<(), Error>>,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Io { what: "cannot start a runtime".to_owned(), source })?;
        runtime.block_on(async { work().await })
    };
    namespace::run(name, run)?
}

fn connect() -> Result<Handle, Error> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| Error::Io { what: "cannot open a netlink socket".to_owned(), source })?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The index of a link in the namespace of this thread.
fn index(link: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(link)
        .map_err(|errno| Error::Io { what: format!("no link {link}"), source: errno.into() })
}

async fn up(handle: &Handle, link: &str) -> Result<(), Error> {
    let message = LinkUnspec::new_with_index(index(link)?).up().build();
    let fail = |source| Error::Netlink { what: format!("cannot set {link} up"), source };
    handle.link().change(message).execute().await.map_err(fail)
}

async fn add_addresses(handle: &Handle, link: &str, addresses: &[Address]) -> Result<(), Error> {
    let number = index(link)?;
    for &(ip, length) in addresses {
        let fail = |source| Error::Netlink { what: format!("cannot add {ip}/{length} to {link}"), source };
        let mut request = handle.address().add(number, ip, length);
        // Usable at once: even where no duplicate is looked for, an IPv6 address is tentative for a moment.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.map_err(fail)?;
    }
    Ok(())
}

async fn add_route(handle: &Handle, ip: IpAddr, length: u8, gateway: IpAddr) -> Result<(), Error> {
    let message = match (ip, gateway) {
        (IpAddr::V4(ip), IpAddr::V4(gateway)) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, length).gateway(gateway).build()
        }
        (IpAddr::V6(ip), IpAddr::V6(gateway)) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, length).gateway(gateway).build()
        }
        _ => {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(Error::Io {
                what: format!("route {ip}/{length} via {gateway} mixes families"),
                source,
            });
        }
    };
    let fail =
        |source| Error::Netlink { what: format!("cannot add route {ip}/{length} via {gateway}"), source };
    handle.route().add(message).execute().await.map_err(fail)
}

fn write_setting(key: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{key}");
    fs::write(&path, value)
        .map_err(|source| Error::Io { what: format!("cannot write {value} to {path}"), source })
}
