//! The sqlite3 shell opens every file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nexus_tests::fleet::Fleet;

fn databases(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            databases(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "db") {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn the_sqlite3_shell_finds_every_file_whole() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    fleet.token(&[]).await.unwrap();
    // As they are while the collector writes, and as it leaves them.
    for _ in 0..2 {
        let mut found = Vec::new();
        databases(fleet.collector.dir(), &mut found);
        // A log, projections, head and chunks of metrics a shard, log and projections of the control log, the audit chain.
        assert_eq!(found.len(), 4 * 4 + 2 + 1, "{found:?}");
        for path in found {
            let output = Command::new("sqlite3")
                .arg("-readonly")
                .arg(&path)
                .arg("PRAGMA integrity_check")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said.trim(), "ok", "{}: {output:?}", path.display());
        }
        fleet.collector.stop().await.unwrap();
    }
}
