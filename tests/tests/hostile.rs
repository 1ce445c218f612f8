//! Every input that fuzzing keeps, through the very functions that fuzzing calls: what once broke something must
//! not do so again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::{fs, panic, path::Path};

use nexus_tests::hostile::{TARGETS, Target, seeds};

fn corpus() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus"))
}

fn replay(target: Target, name: &str, input: &[u8]) {
    let outcome = panic::catch_unwind(|| target(input));
    assert!(outcome.is_ok(), "{name} does not hold");
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
            for (_, seed, input) in seeds::all().iter().filter(|(of, ..)| *of == name) {
                replay(*target, seed, input);
            }
            let mut paths: Vec<_> = fs::read_dir(corpus().join(name))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            paths.sort();
            assert!(!paths.is_empty());
            for path in paths {
                replay(*target, &path.display().to_string(), &fs::read(&path).unwrap());
            }
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|(name, _)| *name).eq(replayed));
        }
    };
}

targets!(
    chunk, config, csr, envelope, frame, helper, record, sql, stream, words
);

/// Into a folder of the caller's with `NEXUS_SEEDS=DIR cargo test -p nexus-tests --test hostile seeds`.
#[test]
fn seeds_are_written_for_every_target() {
    let own = tempfile::tempdir().unwrap();
    let chosen = std::env::var_os("NEXUS_SEEDS");
    let dir = chosen.as_deref().map_or(own.path(), Path::new);
    seeds::write(dir).unwrap();
    for (target, _) in TARGETS {
        let written = fs::read_dir(dir.join(target)).unwrap();
        assert!(written.count() > 0, "{target}");
    }
}
