//! Hostile input: what must hold for any bytes at all, one function for each place where something comes in.
//!
//! A function returns when all it asserts holds, and panics otherwise. Two callers feed them: the fuzz targets
//! in `fuzz/` (libFuzzer, on a nightly toolchain) whatever they think of, and the test `hostile` the inputs in
//! `fuzz/corpus`, which are real ones, what fuzzing found to reach further, and whatever once broke something.
//!
//! Signatures and checksums would stop nearly all arbitrary bytes at the door. So most functions read the
//! first byte as a choice: bytes as they come, or bytes that are sealed properly first, so that what stands behind
//! the door is tried as well.

mod chunk;
mod config;
mod csr;
mod envelope;
mod fixture;
mod frame;
mod helper;
mod record;
pub mod seeds;
mod sql;
mod stream;
mod words;

/// What is tried with one input.
pub type Target = fn(&[u8]);

/// Every target, by the name of its fuzz target and its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 10] = [
    ("chunk", chunk::run),
    ("config", config::run),
    ("csr", csr::run),
    ("envelope", envelope::run),
    ("frame", frame::run),
    ("helper", helper::run),
    ("record", record::run),
    ("sql", sql::run),
    ("stream", stream::run),
    ("words", words::run),
];

/// Runs one target.
pub fn run(name: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = found.expect("the name of a target");
    target(input);
}
