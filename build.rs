//! Compiles `proto/` without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Embedded by sqlx when the rooms are compiled.
    println!("cargo:rerun-if-changed=src/chat/csp/migrations");
    println!("cargo:rerun-if-changed=src/chat/skynet/store/migrations");
    println!("cargo:rerun-if-changed=src/chat/toxgroup/migrations");
    let descriptors = protox::compile(["proto/d2m.proto", "proto/cluster.proto"], ["proto"])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
