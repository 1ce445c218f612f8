//! The systemd units: what they forbid, as systemd-analyze(1) counts it. Needs systemd.

use std::{fs, path::Path, process::Command};

#[test]
fn the_units_forbid_as_much_as_is_promised() {
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    let programs = root.path().join("usr/bin");
    fs::create_dir_all(&programs).unwrap();
    for program in ["nexus-agent", "nexus-collector"] {
        fs::write(programs.join(program), "").unwrap();
    }
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    for unit in fs::read_dir(ours).unwrap() {
        let unit = unit.unwrap();
        fs::copy(unit.path(), units.join(unit.file_name())).unwrap();
    }
    // Tenths, from 0, which allows nothing, to 100.
    for (unit, most) in [("nexus-agent", 20), ("nexus-collector", 15)] {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--root={}", root.path().display()))
            .arg(format!("--threshold={most}"))
            .arg(format!("{unit}.service"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
