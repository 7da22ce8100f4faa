//! The product's own programs. Under cargo they are built first, so that the lab never runs an old one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[derive(Clone, Debug)]
pub struct Binaries {
    pub proxy: PathBuf,
    pub agent: PathBuf,
    pub controller: PathBuf,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot tell where this program lies: {0}")]
    Own(String),
    #[error("the programs could not be built: {0}")]
    Build(String),
    #[error("{0} is missing; it belongs beside this program")]
    Missing(PathBuf),
}

/// Finds the programs beside this one.
pub fn find() -> Result<Binaries, Error> {
    static FOUND: OnceLock<Result<Binaries, Error>> = OnceLock::new();
    FOUND.get_or_init(locate).clone()
}

fn locate() -> Result<Binaries, Error> {
    let own = std::env::current_exe().map_err(|error| Error::Own(error.to_string()))?;
    let mut folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.pop();
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        build(Path::new(&cargo), folder.ends_with("release"))?;
    }
    let beside = |name: &str| {
        let path = folder.join(name);
        if path.exists() { Ok(path) } else { Err(Error::Missing(path)) }
    };
    Ok(Binaries {
        proxy: beside("ztunnel")?,
        agent: beside("ztunnel-redirect")?,
        controller: beside("ztunnel-controller")?,
    })
}

fn build(cargo: &Path, release: bool) -> Result<(), Error> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--bins",
        "-p",
        "ztunnel",
        "-p",
        "redirect",
        "-p",
        "control-plane",
        "-p",
        "ztunnelctl",
    ]);
    if release {
        command.arg("--release");
    }
    let output = command.current_dir(workspace).output().map_err(|error| Error::Build(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Build(String::from_utf8_lossy(&output.stderr).into_owned()))
}
