//! `units`: systemd's units.
//!
//! Where systemd runs it is asked, by `systemctl`; where it does not, the unit files are read and
//! their state worked out from links, as `systemctl --root` would. Asking costs systemd some
//! milliseconds, so it happens only when units started or ended (`/run/systemd/units` has a link for each
//! active one), unit files changed, or after a while in any case.

mod offline;

use std::{collections::BTreeMap, path::Path};

use nexus_proto::record::{Cell, Row};

use super::{InventoryConfig, InventoryError, command, files::Sign, files::names, worker::Source};

pub(super) const SOURCE: Source = Source {
    kind: "units",
    reread_after: Some(60),
    sign,
    collect,
};

/// Where unit files are, the ones that count first.
const FOLDERS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "lib/systemd/system",
    "usr/lib/systemd/system",
];
/// Further folders whose change says that units changed.
const RUN_FOLDERS: [&str; 3] = [
    "run/systemd/transient",
    "run/systemd/generator",
    "run/systemd/generator.late",
];

fn sign(config: &InventoryConfig, sign: &mut Sign) {
    for folder in FOLDERS.iter().chain(&RUN_FOLDERS) {
        sign.file(&config.file(folder));
    }
    // Links that enable units lie in folders of the unit that wants them.
    for folder in ["etc/systemd/system", "run/systemd/system"] {
        let folder = config.file(folder);
        for name in names(&folder) {
            if is_dependency_folder(&name) {
                sign.file(&folder.join(name));
            }
        }
    }
    let active = config.file("run/systemd/units");
    for name in names(&active) {
        sign.link(&active.join(name));
    }
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let units = if runs(config) {
        ask(config)?
    } else {
        offline::read_all(config)
    };
    Ok(units
        .into_iter()
        .map(|(name, unit)| unit.row(name))
        .collect())
}

/// sd_booted(3), for the host itself: the units of another root are not the ones that run.
fn runs(config: &InventoryConfig) -> bool {
    config.root == Path::new("/") && config.file("run/systemd/system").is_dir()
}

fn is_dependency_folder(name: &str) -> bool {
    [".wants", ".requires", ".upholds"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Unit {
    load_state: Option<String>,
    active_state: Option<String>,
    sub_state: Option<String>,
    unit_file_state: Option<String>,
}

impl Unit {
    fn row(self, name: String) -> Row {
        let cells = [
            self.load_state,
            self.active_state,
            self.sub_state,
            self.unit_file_state,
        ];
        Row(std::iter::once(Cell::from(name))
            .chain(cells.map(Cell::from))
            .collect())
    }
}

fn ask(config: &InventoryConfig) -> Result<BTreeMap<String, Unit>, InventoryError> {
    let ask = |verb: &'static str| {
        let arguments = [
            verb,
            "--all",
            "--full",
            "--plain",
            "--no-legend",
            "--no-pager",
        ];
        command::output("systemctl", &arguments, config.command_timeout)
    };
    let mut units = BTreeMap::new();
    parse_units(&ask("list-units")?, &mut units);
    parse_unit_files(&ask("list-unit-files")?, &mut units);
    Ok(units)
}

/// `UNIT LOAD ACTIVE SUB DESCRIPTION`.
fn parse_units(text: &str, units: &mut BTreeMap<String, Unit>) {
    for line in text.lines() {
        // A unit in a bad state is marked before its name.
        let mut fields = line
            .trim_start_matches(['●', '○', '×', '*', ' '])
            .split_whitespace();
        let Some(name) = fields.next() else { continue };
        let mut next = || fields.next().map(str::to_owned);
        let unit = Unit {
            load_state: next(),
            active_state: next(),
            sub_state: next(),
            unit_file_state: None,
        };
        units.insert(name.to_owned(), unit);
    }
}

/// `UNIT STATE PRESET`. A unit that systemd has not loaded is inactive; a template never is active.
fn parse_unit_files(text: &str, units: &mut BTreeMap<String, Unit>) {
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (Some(name), Some(state)) = (fields.next(), fields.next()) else {
            continue;
        };
        let unit = units.entry(name.to_owned()).or_insert_with(|| {
            let known = |state: &str| (!name.contains("@.")).then(|| state.to_owned());
            Unit {
                active_state: known("inactive"),
                sub_state: known("dead"),
                ..Unit::default()
            }
        });
        unit.unit_file_state = Some(state.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_systemctl_says() {
        let mut units = BTreeMap::new();
        parse_units(
            "ssh.service loaded active running OpenBSD Secure Shell server\n● x.service not-found inactive dead x.service\n",
            &mut units,
        );
        parse_unit_files(
            "ssh.service enabled enabled\ngetty@.service enabled enabled\nb.timer disabled -\n",
            &mut units,
        );
        let states = |name: &str| {
            let unit = units[name].clone();
            [
                unit.load_state,
                unit.active_state,
                unit.sub_state,
                unit.unit_file_state,
            ]
            .map(|state| state.unwrap_or_default())
        };
        assert_eq!(
            states("ssh.service"),
            ["loaded", "active", "running", "enabled"]
        );
        assert_eq!(states("x.service"), ["not-found", "inactive", "dead", ""]);
        assert_eq!(states("getty@.service"), ["", "", "", "enabled"]);
        assert_eq!(states("b.timer"), ["", "inactive", "dead", "disabled"]);
    }
}
