//! Compiles the CA's protobuf in pure Rust (no protoc). The file belongs to the model: one text for both ends.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../ztunnel/model/proto";
    println!("cargo:rerun-if-changed={folder}/ca.proto");
    let descriptors = protox::compile(["ca.proto"], [folder])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
