//! Configuration files of all three programs, with drop-ins, variables and flags.
//!
//! Every mistake is one line that names its place; what is taken prints as a file that means the same; a program
//! that only warns always starts.

use std::{fs, path::Path};

use nexus_runtime::settings::{self, Faults, Key, Loaded, Origin, Settings, Sources, Strictness};

/// A program's keys, what its variables begin with, and what it makes of settings.
type Program = (
    &'static [Key],
    &'static str,
    fn(&Settings) -> Result<(), String>,
);

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let (agent, collector): (Program, Program) = (
        (
            nexus_agent::config::KEYS,
            nexus_agent::config::ENV_PREFIX,
            |settings| {
                let config = nexus_agent::config::Config::from_settings(settings);
                config.map(drop).map_err(|fault| fault.to_string())
            },
        ),
        (
            nexus_collector::inside::keys(),
            "NEXUS_COLLECTOR",
            |settings| {
                nexus_collector::inside::configure(settings).map_err(|fault| fault.to_string())
            },
        ),
    );
    match choice % 3 {
        0 => daemon(agent, rest),
        1 => daemon(collector, rest),
        _ => client(rest),
    }
}

/// File, drop-in, variables and flags, with a zero byte between them.
fn daemon((keys, prefix, configure): Program, bytes: &[u8]) {
    let dir = super::record::folder();
    let file = dir.path().join("it.toml");
    let drop_ins = dir.path().join("it.toml.d");
    let mut parts = bytes.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    fs::write(&file, text).expect("a file");
    if let Some(text) = parts.next() {
        fs::create_dir(&drop_ins).expect("a folder");
        fs::write(drop_ins.join("10.toml"), text).expect("a file");
    }
    let sources = Sources {
        file: Some(file.clone()),
        file_required: true,
        drop_in_dir: Some(drop_ins),
        env_prefix: prefix.to_owned(),
        env: pairs(parts.next(), &format!("{prefix}_")),
        env_ignored: Vec::new(),
        flags: pairs(parts.next(), ""),
    };
    let refusing = settings::load(keys, &sources, Strictness::Refuse);
    let warning = settings::load(keys, &sources, Strictness::Warn);
    if sources.flags.is_empty() {
        warning
            .as_ref()
            .expect("a program that warns always starts");
    }
    match (refusing, warning) {
        (Ok(loaded), Ok(warned)) => {
            same(&loaded.settings, &warned.settings);
            prints(keys, &loaded, dir.path());
            if let Err(why) = configure(&loaded.settings) {
                assert!(!why.contains('\n') && !why.is_empty(), "{why:?}");
            }
        }
        (Ok(_), Err(faults)) => unreachable!("warning is the milder of the two: {faults}"),
        (Err(faults), warned) => {
            check(&faults, text);
            if let Ok(warned) = warned {
                let warnings = warned.warnings.iter().filter(|one| faults.0.contains(one));
                assert_eq!(
                    warnings.count(),
                    faults.0.len(),
                    "a mistake nobody is told of"
                );
                configure(&warned.settings).ok();
            }
        }
    }
}

/// Lines of `NAME=VALUE`.
fn pairs(text: Option<&[u8]>, prefix: &str) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((format!("{prefix}{name}"), value.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

fn check(faults: &Faults, file: &[u8]) {
    assert!(!faults.0.is_empty());
    assert_eq!(
        faults.to_string().lines().count(),
        faults.0.len(),
        "a line each: {faults}"
    );
    let lines = file.iter().filter(|byte| **byte == b'\n').count() + 1;
    for fault in &faults.0 {
        assert!(!fault.why.is_empty());
        if let Origin::File(path, line) = &fault.origin
            && path.ends_with("it.toml")
        {
            assert!(*line <= lines, "{fault} in a file of {lines} lines");
        }
    }
}

fn same(some: &Settings, others: &Settings) {
    for ((name, value, _), (other_name, other, _)) in some.iter().zip(others.iter()) {
        assert_eq!((name, value), (other_name, other));
    }
}

/// What `config` prints can be loaded, and means the same.
fn prints(keys: &'static [Key], loaded: &Loaded, dir: &Path) {
    let file = dir.join("printed.toml");
    fs::write(&file, loaded.settings.to_string()).expect("a file");
    let sources = Sources {
        file: Some(file),
        file_required: true,
        ..Sources::default()
    };
    let again = settings::load(keys, &sources, Strictness::Refuse);
    let again = again.unwrap_or_else(|faults| unreachable!("{faults}\n{}", loaded.settings));
    same(&loaded.settings, &again.settings);
}

fn client(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match nexusctl::inside::addresses(text) {
        Ok(addresses) => assert!(!addresses.is_empty()),
        Err(why) => assert!(!why.is_empty()),
    }
}
