//! The file layers: the configuration file, then its drop-ins in order of name.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Key, Kind, Layers, Origin, Sources, Value};

pub(super) fn read_all(layers: &mut Layers, sources: &Sources) {
    if let Some(path) = &sources.file {
        read(layers, path, sources.file_required);
    }
    let Some(folder) = &sources.drop_in_dir else {
        return;
    };
    match drop_ins(folder) {
        Ok(paths) => {
            for path in paths {
                read(layers, &path, true);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            layers.fault(
                Origin::File(folder.clone(), 0),
                "",
                format!("cannot be read: {error}"),
            );
        }
    }
}

fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(layers: &mut Layers, path: &Path, required: bool) {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return,
        Err(error) => {
            layers.fault(
                Origin::File(path.to_owned(), 0),
                "",
                format!("cannot be read: {error}"),
            );
            return;
        }
    };
    // Where the grammar is broken the parser goes on after it, so that the rest is checked as well; what
    // it made of the broken part itself is not to be trusted, which only `Strictness::Warn` gets to see.
    let (table, errors) = DeTable::parse_recoverable(&text);
    let source = Source {
        path,
        text: &text,
        broken: !errors.is_empty(),
    };
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        layers.fault(source.at(at), "", error.message().replace('\n', ", "));
    }
    source.read_table(layers, "", table.get_ref());
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// Its grammar is.
    broken: bool,
}

impl Source<'_> {
    fn at(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Origin::File(self.path.to_owned(), line)
    }

    fn read_table(&self, layers: &mut Layers, section: &str, table: &DeTable<'_>) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (name, value) in entries {
            // What the parser puts where the grammar is broken; that was told already.
            if self.broken && name.get_ref().is_empty() {
                continue;
            }
            let path = join(section, name.get_ref());
            let origin = self.at(name.span().start);
            if let Some(key) = layers.key(&path) {
                self.read_value(layers, key, value.get_ref(), origin);
                continue;
            }
            let inner = format!("{path}.");
            match value.get_ref() {
                // An empty section sets nothing, whoever it belongs to.
                DeValue::Table(table) if table.is_empty() => {}
                DeValue::Table(table)
                    if layers.keys.iter().any(|key| key.name.starts_with(&inner)) =>
                {
                    self.read_table(layers, &path, table);
                }
                DeValue::Table(table) => self.refuse_all(layers, &path, table),
                _ if layers.keys.iter().any(|key| key.name.starts_with(&inner)) => {
                    layers.fault(origin, &path, "is a section, not a key");
                }
                _ => layers.unknown(origin, &path),
            }
        }
    }

    /// Every key of a section that does not exist, each on its own line.
    fn refuse_all(&self, layers: &mut Layers, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = join(section, name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.refuse_all(layers, &path, inner),
                _ => layers.unknown(self.at(name.span().start), &path),
            }
        }
    }

    fn read_value(
        &self,
        layers: &mut Layers,
        key: &'static Key,
        value: &DeValue<'_>,
        origin: Origin,
    ) {
        if let (Kind::Table, DeValue::Table(table)) = (key.kind, value) {
            // A drop-in adds to the entries of the file rather than replacing them all.
            let mut entries = match layers.values.get(key.name) {
                Some((Value::Table(entries), Origin::File(..))) => entries.clone(),
                _ => BTreeMap::new(),
            };
            self.read_entries(layers, key, "", table, &mut entries);
            layers.put(key, Value::Table(entries), origin);
            return;
        }
        match key.kind.read(value) {
            Ok(value) => layers.put(key, value, origin),
            Err(why) => layers.fault(origin, key.name, why),
        }
    }

    fn read_entries(
        &self,
        layers: &mut Layers,
        key: &'static Key,
        section: &str,
        table: &DeTable<'_>,
        entries: &mut BTreeMap<String, String>,
    ) {
        for (name, value) in table {
            let path = join(section, name.get_ref());
            match value.get_ref() {
                DeValue::String(text) => {
                    entries.insert(path, text.to_string());
                }
                DeValue::Table(inner) => self.read_entries(layers, key, &path, inner, entries),
                _ => layers.fault(
                    self.at(name.span().start),
                    &join(key.name, &path),
                    "only text in quotes can stand here",
                ),
            }
        }
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}
