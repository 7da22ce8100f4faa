//! `ztunnel [proxy]`, `ztunnel version`, `ztunnel help` (interop.md section 1.2).

use std::process::ExitCode;

/// The C library gives large buffers back to the kernel at once and asks for them again, page by page; bulk transfers
/// spend more on that than on encryption.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: ztunnel [proxy | version | help]

  proxy    run the node proxy (the default); configured by environment variables only. With CAP_SYS_ADMIN and
           CAP_NET_ADMIN and without REDIRECT_SOCKET it starts the agent too, beneath istio-cni (INPOD_UDS)
  version  print the version
  help     print this text
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None | Some("proxy") => match ztunnel::app::run() {
            Ok(ended) => ended,
            Err(error) => {
                eprintln!("ztunnel: {error}");
                ExitCode::FAILURE
            }
        },
        Some("version" | "--version") => {
            println!("ztunnel {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("help" | "--help") => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprint!("ztunnel: unknown command \"{other}\"\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}
