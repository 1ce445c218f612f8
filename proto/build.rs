//! Compiles the protocol's .proto files without protoc, and lists each RPC with its effect class.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

use prost::Message as _;
use prost_reflect::DescriptorPool;

const FILES: [&str; 6] = [
    "nexus/agent/v1/agent.proto",
    "nexus/agent/v1/record.proto",
    "nexus/agent/v1/trust.proto",
    "nexus/helper/v1/helper.proto",
    "nexus/operator/v1/operator.proto",
    "nexus/store/v1/store.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    write_effects(
        &compiler.descriptor_pool(),
        Path::new(&env::var("OUT_DIR")?),
    )?;

    let mut set = prost_types_of(&compiler.encode_file_descriptor_set())?;
    set.file.retain(|file| !file.name().starts_with("google/"));
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .codec_path("crate::codec::Codec")
        // A queue has room for dozens of frames from the start: what is large and rare stands beside it.
        .boxed(".nexus.agent.v1.AgentFrame.kind.hello")
        .boxed(".nexus.agent.v1.CollectorFrame.kind.welcome")
        .boxed(".nexus.agent.v1.CollectorFrame.kind.dispatch")
        .boxed(".nexus.agent.v1.CollectorFrame.kind.trust")
        // Errors and logs print what they have: these show no secret (src/secret.rs).
        .skip_debug([
            ".nexus.operator.v1.LoginRequest",
            ".nexus.agent.v1.OperatorCode",
        ])
        .compile_fds(set)?;
    Ok(())
}

fn prost_types_of(encoded: &[u8]) -> Result<tonic_prost_build::FileDescriptorSet, Box<dyn Error>> {
    Ok(tonic_prost_build::FileDescriptorSet::decode(encoded)?)
}

/// prost drops custom options, so the effect of each RPC is read from the descriptors here.
fn write_effects(pool: &DescriptorPool, out: &Path) -> Result<(), Box<dyn Error>> {
    let effect = pool
        .get_extension_by_name("nexus.operator.v1.effect")
        .ok_or("the option nexus.operator.v1.effect is gone")?;
    let mut table = String::from("&[\n");
    for service in pool
        .services()
        .filter(|s| s.full_name() == "nexus.operator.v1.Operator")
    {
        for method in service.methods() {
            let options = method.options();
            if !options.has_extension(&effect) {
                return Err(format!("{} has no effect class", method.full_name()).into());
            }
            let value = options
                .get_extension(&effect)
                .as_enum_number()
                .filter(|number| *number != 0)
                .ok_or_else(|| format!("{} has no effect class", method.full_name()))?;
            writeln!(
                table,
                "    (\"/{}/{}\", {value}),",
                service.full_name(),
                method.name()
            )?;
        }
    }
    table.push(']');
    fs::write(out.join("effects.rs"), table)?;
    Ok(())
}
