//! The same promises by whatever reads and writes the applications' sockets.

use ztunnel_lab::{Lab, Mesh};

/// A lab whose proxies use a backend, which fails where one of them uses another: what is not tested is not promised.
pub(crate) fn lab(mesh: &Mesh, environment: &[(&str, &str)], backend: &str) -> Lab {
    let mut environment = environment.to_vec();
    environment.push(("IO_BACKEND", backend));
    let lab = Lab::for_test(mesh, &environment);
    for node in lab.nodes() {
        assert_eq!(node.metrics().sum("ztunnel_io_backend", &[("backend", backend)]), 1.0, "{}", node.log());
        assert_eq!(node.config_dump()["io"]["backend"], backend, "{}", node.log());
        assert!(!node.log().contains("uses epoll"), "a worker could not: {}", node.log());
    }
    lab
}

/// Makes a test for each backend of functions that take the lab.
macro_rules! on_both_backends {
    ($mesh:expr, $environment:expr, $($name:ident,)+) => {
        mod epoll {
            $(#[test]
            fn $name() {
                use super::*;
                super::$name(&mut super::backend::lab(&$mesh, $environment, "epoll"));
            })+
        }
        mod uring {
            $(#[test]
            fn $name() {
                use super::*;
                super::$name(&mut super::backend::lab(&$mesh, $environment, "uring"));
            })+
        }
    };
}
