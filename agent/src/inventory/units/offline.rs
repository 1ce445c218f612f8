//! Unit files on disk, where no systemd runs to be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{FOLDERS, Unit, is_dependency_folder};
use crate::inventory::{InventoryConfig, files::names, files::read};

const SUFFIXES: [&str; 10] = [
    ".service",
    ".socket",
    ".timer",
    ".target",
    ".mount",
    ".automount",
    ".swap",
    ".path",
    ".slice",
    ".scope",
];

pub(super) fn read_all(config: &InventoryConfig) -> BTreeMap<String, Unit> {
    let enabled = enabled(config);
    let mut units = BTreeMap::new();
    for folder in FOLDERS {
        let folder = config.file(folder);
        for name in names(&folder) {
            if !SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) || units.contains_key(&name) {
                continue;
            }
            if let Some(state) = state(&folder.join(&name), &name, &enabled) {
                let unit_file_state = Some(state.to_owned());
                units.insert(
                    name,
                    Unit {
                        unit_file_state,
                        ..Unit::default()
                    },
                );
            }
        }
    }
    units
}

/// Names of the units that links in the administrator's folder enable; of an instance, its template too.
fn enabled(config: &InventoryConfig) -> BTreeSet<String> {
    let folder = config.file("etc/systemd/system");
    let mut enabled = BTreeSet::new();
    let mut note = |name: &str| {
        if let Some((template, instance)) = name.split_once('@')
            && let Some((_, suffix)) = instance.rsplit_once('.')
        {
            enabled.insert(format!("{template}@.{suffix}"));
        }
        enabled.insert(name.to_owned());
    };
    for name in names(&folder) {
        let path = folder.join(&name);
        if is_dependency_folder(&name) {
            names(&path).iter().for_each(|name| note(name));
        } else if let Some(target) = target(&path).filter(|target| *target != name) {
            // An alias of it was made when it was enabled.
            note(&target);
        }
    }
    enabled
}

/// The last part of where a link leads.
fn target(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

fn state(path: &Path, name: &str, enabled: &BTreeSet<String>) -> Option<&'static str> {
    let link = fs::read_link(path).ok();
    if link.as_deref() == Some(Path::new("/dev/null")) {
        return Some("masked");
    }
    if target(path).is_some_and(|target| target != name) {
        return Some("alias");
    }
    if link.is_none()
        && fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
    {
        return Some("masked");
    }
    // A link that leads nowhere, or a folder.
    let text = read(path).ok()?;
    if enabled.contains(name) {
        return Some("enabled");
    }
    let mut section = "";
    let (mut installs, mut also) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[Install]" {
            let set = |key: &str| {
                let value = line
                    .strip_prefix(key)
                    .and_then(|rest| rest.trim_start().strip_prefix('='));
                value.is_some_and(|value| !value.trim().is_empty())
            };
            let ways = ["WantedBy", "RequiredBy", "UpheldBy", "Alias"];
            installs = installs || ways.iter().any(|way| set(way));
            also = also || set("Also");
        }
    }
    Some(match (installs, also) {
        (true, _) => "disabled",
        (false, true) => "indirect",
        (false, false) => "static",
    })
}
