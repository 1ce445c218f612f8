//! Has the agent linked small. Relocations are packed (DT_RELR) where the C library it is built on can read them, glibc
//! 2.36 and later: they take a thirtieth of the room, in the file and, since the loader reads them all, in memory.
//! Functions whose code is the same are kept once, as far as rustc's own linker is used, which can do that.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|is| is == value);
    let native = env::var("HOST") == env::var("TARGET");
    let gnu = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if native && gnu && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    // The one target for which rustc brings a linker, unless somebody has chosen another.
    let chosen = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"));
    if is("TARGET", "x86_64-unknown-linux-gnu") && is("PROFILE", "release") && !chosen {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}

/// `glibc 2.36`, says getconf(1).
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
