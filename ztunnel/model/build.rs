//! Compiles the WDS messages in pure Rust; no protoc is needed. `ca.proto` holds a service, so those who speak it
//! compile it: the model knows no transport.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["workload.proto", "authorization.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Equal resources are equal bytes.
        .btree_map(".")
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
