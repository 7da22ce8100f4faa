//! `ztunnel-cni`: the chained CNI plugin, which the container runtime calls for each pod.

use std::process::ExitCode;

fn main() -> ExitCode {
    redirect::cni::plugin::main()
}
