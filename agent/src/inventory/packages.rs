//! `packages`: what dpkg and rpm have installed. A host may have both.
//!
//! dpkg's status file is read, as dpkg itself promises its format (deb822); rpm's database has no
//! stable format, so rpm is asked, and only where a database is.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use nexus_proto::record::Row;

use super::{InventoryConfig, InventoryError, command, files::Sign, worker::Source};

pub(super) const SOURCE: Source = Source {
    kind: "packages",
    reread_after: None,
    sign,
    collect,
};

const DPKG: &str = "var/lib/dpkg/status";
/// rpm's databases, old and new, with what the newest writes before it reaches the file itself.
const RPM: [&str; 8] = [
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages.db",
    "var/lib/rpm/Packages",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/Packages.db",
    "usr/lib/sysimage/rpm/Packages",
    "var/lib/rpm/rpmdb.sqlite-wal",
    "usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
];

fn sign(config: &InventoryConfig, sign: &mut Sign) {
    sign.file(&config.file(DPKG));
    for database in RPM {
        sign.file(&config.file(database));
    }
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let mut rows = Vec::new();
    let status = config.file(DPKG);
    if status.exists() {
        dpkg(&status, &mut rows)?;
    }
    let databases: Vec<PathBuf> = RPM.iter().map(|path| config.file(path)).collect();
    if databases.iter().any(|path| path.exists()) {
        let root = config.root.to_string_lossy();
        let format = "%{NAME}\\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\t%{ARCH}\\n";
        let arguments = ["--root", &root, "-qa", "--qf", format];
        rpm(
            &command::output("rpm", &arguments, config.command_timeout)?,
            &mut rows,
        );
    }
    Ok(rows)
}

/// Paragraphs of fields; only packages in the state `installed` are there, others are configured
/// partly or not at all.
fn dpkg(path: &Path, rows: &mut Vec<Row>) -> Result<(), InventoryError> {
    let failed = |source| InventoryError::Read {
        path: path.to_owned(),
        source,
    };
    // Line by line: the file is long and most of it is not wanted.
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    let mut package = Package::default();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(failed)?;
        let text = line.trim_ascii_end();
        if text.is_empty() {
            rows.extend(std::mem::take(&mut package).row());
        }
        if read == 0 {
            return Ok(());
        }
        package.note(text);
    }
}

#[derive(Default)]
struct Package {
    name: String,
    version: String,
    arch: String,
    installed: bool,
}

impl Package {
    fn note(&mut self, line: &[u8]) {
        let value = |field: &[u8]| {
            let value = line.strip_prefix(field)?.trim_ascii();
            Some(String::from_utf8_lossy(value).into_owned())
        };
        if let Some(name) = value(b"Package:") {
            self.name = name;
        } else if let Some(version) = value(b"Version:") {
            self.version = version;
        } else if let Some(arch) = value(b"Architecture:") {
            self.arch = arch;
        } else if let Some(status) = value(b"Status:") {
            // What is wanted, whether it is in order, what it is: a held package is installed too.
            self.installed = status.split_ascii_whitespace().nth(2) == Some("installed");
        }
    }

    fn row(self) -> Option<Row> {
        let there = self.installed && !self.name.is_empty();
        there.then(|| {
            Row(vec![
                self.name.into(),
                self.version.into(),
                self.arch.into(),
                "dpkg".into(),
            ])
        })
    }
}

fn rpm(output: &str, rows: &mut Vec<Row>) {
    for line in output.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(version), Some(arch)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // Keys that packages are checked with are kept as if they were packages.
        if name != "gpg-pubkey" {
            rows.push(Row(vec![
                name.into(),
                version.into(),
                arch.into(),
                "rpm".into(),
            ]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rpm_says() {
        let mut rows = Vec::new();
        rpm(
            "bash\t5.1.8-9.el9\tx86_64\nvim\t2:8.2-1\tnoarch\ngpg-pubkey\t1-2\t(none)\n",
            &mut rows,
        );
        assert_eq!(rows.len(), 2);
        assert_eq!(
            rows[1],
            Row(vec![
                "vim".into(),
                "2:8.2-1".into(),
                "noarch".into(),
                "rpm".into()
            ])
        );
    }
}
