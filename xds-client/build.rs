//! Compiles the xDS messages and both ends of the delta service, in pure Rust (no protoc). The control plane takes the
//! server side from this crate.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["discovery.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
