//! A relay that copies bytes and knows nothing: no identity, no policy, no tunnel. One thread.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// As much as the fastest of the field read at once.
const BUFFER: usize = 256 * 1024;

/// From a port of where it runs to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub port: u16,
    pub to: SocketAddr,
}

impl std::str::FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: write PORT=ADDRESS:PORT");
        let (port, to) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self { port: port.parse().map_err(|_| wrong())?, to: to.parse().map_err(|_| wrong())? })
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.port, self.to)
    }
}

/// For ever.
pub fn run(routes: &[Route]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut serving = tokio::task::JoinSet::new();
        for route in routes {
            let listener = TcpListener::bind(("0.0.0.0", route.port)).await?;
            serving.spawn(serve(listener, route.to));
        }
        while serving.join_next().await.is_some() {}
        Ok(())
    })
}

async fn serve(listener: TcpListener, to: SocketAddr) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut server = TcpStream::connect(to).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_is_written() {
        let route: Route = "80=10.0.0.1:8080".parse().expect("a route");
        assert_eq!(route.to_string(), "80=10.0.0.1:8080");
        for wrong in ["", "80", "80=", "x=10.0.0.1:80", "80=10.0.0.1"] {
            assert!(wrong.parse::<Route>().is_err(), "{wrong}");
        }
    }
}
