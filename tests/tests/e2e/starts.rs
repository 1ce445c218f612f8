//! Starts that must not succeed: what is in the way is named, and nothing is touched.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use nexus_tests::{fleet::Fleet, process};
use tokio::process::Command;

/// Runs a daemon that should refuse: its exit code and what it said to people.
async fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = process::run(command, b"").await.unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with("error: "));
    let said: Vec<&str> = lines.collect();
    assert!(!said.is_empty(), "{text}");
    (output.status.code(), said.join("\n"))
}

/// Every file beneath a folder with its bytes, but for those that SQLite keeps beside its own while one reads.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if !path
                .extension()
                .is_some_and(|it| it == "db-shm" || it == "db-wal")
            {
                all.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    all
}

/// Writes these bytes at that place of a file and gives those that were there.
fn exchange(path: &Path, place: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = fs::read(path).unwrap();
    let there = &mut content[place..place + bytes.len()];
    let old = there.to_vec();
    there.copy_from_slice(bytes);
    fs::write(path, content).unwrap();
    old
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let other = Fleet::new(&[]).await.unwrap();
    let mut other = other.collector;
    let endpoints = fleet.collector.endpoints();
    other.stop().await.unwrap();
    for (key, address) in [
        ("agents.listen", &endpoints.agents),
        ("operators.listen", &endpoints.operators),
        ("metrics.listen", &endpoints.metrics),
    ] {
        let mut command = other.command().await.unwrap();
        command.arg("--set").arg(format!("{key}={address}"));
        let (code, said) = refused(command.arg("serve")).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(address.as_str()), "{key}: {said}");
        assert!(
            said.contains(key) || said.contains("in use"),
            "{key}: {said}"
        );
    }
    // It was nobody's fault but the port's.
    other.start().await.unwrap();
}

#[tokio::test]
async fn a_second_collector_leaves_the_folder_to_the_first() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let mut command = fleet.collector.command().await.unwrap();
    for key in ["agents.listen", "operators.listen", "metrics.listen"] {
        command.arg("--set").arg(format!("{key}=127.0.0.1:0"));
    }
    let (code, said) = refused(command.arg("serve")).await;
    assert_eq!(code, Some(1), "{said}");
    let folder = fleet.collector.dir().display().to_string();
    assert!(said.contains(&folder), "{said}");
    assert!(
        said.contains("another") || said.contains("in use"),
        "{said}"
    );
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    fleet.collector.stop().await.unwrap();
    fleet.collector.start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
}

#[tokio::test]
async fn state_of_a_newer_version_is_refused_and_left_alone() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    fleet.collector.stop().await.unwrap();

    let dir = fleet.collector.dir().to_owned();
    let databases = files(&dir).into_keys();
    let databases = databases.filter(|path| path.extension().is_some_and(|it| it == "db"));
    let databases: Vec<PathBuf> = databases.collect();
    assert!(databases.len() >= 5, "{databases:?}");
    for database in databases {
        // SQLite's user_version, where the format's number is.
        let old = exchange(&database, 60, &99_u32.to_be_bytes());
        let before = files(&dir);
        let mut command = fleet.collector.command().await.unwrap();
        let (code, said) = refused(command.arg("serve")).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&database.display().to_string()), "{said}");
        assert!(said.contains("newer"), "{said}");
        let after = files(&dir);
        let changed: Vec<_> = before
            .iter()
            .filter(|(path, bytes)| after.get(*path) != Some(bytes))
            .map(|(path, _)| path)
            .collect();
        assert!(changed.is_empty(), "{}: {changed:?}", database.display());
        exchange(&database, 60, &old);
    }
    fleet.collector.start().await.unwrap();

    // The ledger's version stands behind four letters.
    let ledger = files(fleet.agents[0].dir()).into_keys();
    let ledger: Vec<PathBuf> = ledger.filter(|path| path.ends_with("ledger")).collect();
    assert_eq!(ledger.len(), 1, "{ledger:?}");
    let old = exchange(&ledger[0], 4, &99_u16.to_le_bytes());
    let before = files(fleet.agents[0].dir());
    let mut command = fleet.agents[0].command().await.unwrap();
    let (code, said) = refused(command.arg("run")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&ledger[0].display().to_string()), "{said}");
    assert!(said.contains("newer"), "{said}");
    let after = files(fleet.agents[0].dir());
    let changed = after
        .iter()
        .filter(|(path, bytes)| before.get(*path) != Some(bytes));
    let changed: Vec<_> = changed.map(|(path, _)| path).collect();
    assert!(changed.is_empty(), "{changed:?}");
    exchange(&ledger[0], 4, &old);
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
}
