//! Compiles the CA's protobuf into a gRPC client, in pure Rust (no protoc).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "model/proto";
    println!("cargo:rerun-if-changed={folder}/ca.proto");
    let descriptors = protox::compile(["ca.proto"], [folder])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
