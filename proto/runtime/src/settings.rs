//! Settings: a table of declared keys, filled in layers.
//!
//! Precedence: flag > environment > drop-ins (in order of file name, the last wins) > file > default. Files
//! are TOML; a key's dots are TOML's (`log.format = "json"` or `format` under `[log]`). The environment
//! variable of `log.format` is `PREFIX_LOG_FORMAT`. Every mistake in every layer is found before any is
//! reported, each with file, line and key. What a mistake means is the caller's choice ([`Strictness`]): a
//! daemon that is about to start refuses, one whose configuration and binary are rolled out separately
//! warns and takes the next lower layer's value.
//!
//! A variable of the environment that is no key of ours is only ever warned of: container runtimes put
//! variables there under names nobody chose.

mod defaults;
mod faults;
mod file;
mod value;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    defaults::{describe, print_defaults},
    faults::{Fault, Faults, Origin, nearest},
    value::{Kind, Value},
};

/// One declared setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name: words in lower case with `_`, sections with dots: `log.format`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// As it would be written in an environment variable. Must be valid; a test of each program loads its
    /// table without sources to see that.
    pub default: &'static str,
    /// For `--defaults`: bytes, a duration, host:port …; empty when there is none to tell.
    pub unit: &'static str,
    /// For `--defaults`: what it means.
    pub about: &'static str,
}

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Whether its absence is a mistake: it is when someone named it, not when it is the usual place.
    pub file_required: bool,
    /// The folder whose `*.toml` come after the file; absent is empty.
    pub drop_in_dir: Option<PathBuf>,
    /// `NEXUS_AGENT`: before `_LOG_FORMAT`.
    pub env_prefix: String,
    /// The environment; only names under the prefix are looked at.
    pub env: Vec<(String, String)>,
    /// Variables under the prefix that are no settings.
    pub env_ignored: Vec<String>,
    /// `--set KEY=VALUE` and its like, the last wins.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// A file with the drop-in folder beside it (`agent.toml.d/`) and this process's environment.
    #[must_use]
    pub fn new(env_prefix: &str, file: &Path, file_required: bool) -> Self {
        let mut drop_ins = file.as_os_str().to_owned();
        drop_ins.push(".d");
        Self {
            file: Some(file.to_owned()),
            file_required,
            drop_in_dir: Some(drop_ins.into()),
            env_prefix: env_prefix.to_owned(),
            // A variable that is not UTF-8 cannot be a value of ours.
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            env_ignored: Vec::new(),
            flags: Vec::new(),
        }
    }
}

/// What a mistake in a file or in the environment means. One in a flag is always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing is loaded.
    Refuse,
    /// It is reported and the next lower layer's value holds.
    Warn,
}

/// What [`load`] found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What was passed over.
    pub warnings: Vec<Fault>,
}

/// Every declared key with its value in force.
#[derive(Debug, Clone)]
pub struct Settings {
    values: BTreeMap<&'static str, (Value, Origin)>,
}

/// Reads all layers.
pub fn load(
    keys: &'static [Key],
    sources: &Sources,
    strictness: Strictness,
) -> Result<Loaded, Faults> {
    let mut layers = Layers {
        keys,
        values: BTreeMap::new(),
        faults: Vec::new(),
        notes: Vec::new(),
    };
    for key in keys {
        layers.set(key, key.default, Origin::Default);
    }
    file::read_all(&mut layers, sources);
    layers.read_environment(sources);
    let before_flags = layers.faults.len();
    for (name, text) in &sources.flags {
        match layers.key(name) {
            Some(key) => layers.set(key, text, Origin::Flag),
            None => layers.unknown(Origin::Flag, name),
        }
    }
    let refused = match strictness {
        Strictness::Refuse => !layers.faults.is_empty(),
        Strictness::Warn => layers.faults.len() > before_flags,
    };
    if refused {
        return Err(Faults(layers.faults));
    }
    let mut warnings = layers.faults;
    warnings.append(&mut layers.notes);
    Ok(Loaded {
        settings: Settings {
            values: layers.values,
        },
        warnings,
    })
}

struct Layers {
    keys: &'static [Key],
    values: BTreeMap<&'static str, (Value, Origin)>,
    faults: Vec<Fault>,
    /// Worth telling, never a reason to refuse.
    notes: Vec<Fault>,
}

impl Layers {
    fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    fn set(&mut self, key: &'static Key, text: &str, origin: Origin) {
        match key.kind.parse(text) {
            Ok(value) => self.put(key, value, origin),
            Err(why) => self.fault(origin, key.name, why),
        }
    }

    fn put(&mut self, key: &'static Key, value: Value, origin: Origin) {
        self.values.insert(key.name, (value, origin));
    }

    fn fault(&mut self, origin: Origin, key: &str, why: impl Into<String>) {
        self.faults.push(Fault::new(origin, key, why));
    }

    fn unknown(&mut self, origin: Origin, name: &str) {
        let why = match nearest(name, self.keys.iter().map(|key| key.name)) {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => "unknown key".to_owned(),
        };
        self.fault(origin, name, why);
    }

    fn read_environment(&mut self, sources: &Sources) {
        if sources.env_prefix.is_empty() {
            return;
        }
        let prefix = format!("{}_", sources.env_prefix);
        let mut variables: Vec<_> = sources.env.iter().collect();
        variables.sort();
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix(&prefix) else {
                continue;
            };
            let found = self
                .keys
                .iter()
                .find(|key| variable_suffix(key.name) == rest);
            let origin = Origin::Environment(variable.clone());
            match found {
                Some(key) => self.set(key, text, origin),
                None if sources.env_ignored.contains(variable) => {}
                None => self.notes.push(Fault::new(origin, "", "stands for no key")),
            }
        }
    }
}

/// `LOG_FORMAT` of `log.format`.
fn variable_suffix(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '.' | '-' => '_',
            other => other.to_ascii_uppercase(),
        })
        .collect()
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $type:ty, $convert:expr) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self, key: &str) -> $type {
            let value = match self.value(key) {
                Value::$variant(value) => Some(value),
                _ => None,
            };
            $convert(value.expect("settings are read as the kind they were declared"))
        }
    };
}

/// The getters take declared keys only, by the kind they were declared with: anything else is a mistake in
/// the program that its first test finds, and panics.
impl Settings {
    getter!(
        /// Of [`Kind::Text`] and [`Kind::Choice`].
        text, Text, &str, String::as_str
    );
    getter!(
        /// Of [`Kind::Duration`].
        duration, Duration, Duration, |span: &Duration| *span
    );
    getter!(
        /// Of [`Kind::Bytes`].
        bytes, Bytes, u64, |size: &u64| *size
    );
    getter!(
        /// Of [`Kind::Integer`].
        integer, Integer, i64, |number: &i64| *number
    );
    getter!(
        /// Of [`Kind::Boolean`].
        boolean, Boolean, bool, |truth: &bool| *truth
    );
    getter!(
        /// Of [`Kind::List`].
        list, List, &[String], Vec::as_slice
    );
    getter!(
        /// Of [`Kind::Table`].
        table, Table, &BTreeMap<String, String>, |table| table
    );

    /// Of [`Kind::Path`]; empty when unset.
    #[must_use]
    pub fn path(&self, key: &str) -> &Path {
        self.optional_path(key).unwrap_or(Path::new(""))
    }

    /// Of [`Kind::Path`]; `None` when it is empty.
    #[must_use]
    pub fn optional_path(&self, key: &str) -> Option<&Path> {
        let path = match self.value(key) {
            Value::Path(path) => Some(path),
            _ => None,
        };
        let path = path.expect("settings are read as the kind they were declared");
        (!path.as_os_str().is_empty()).then_some(path.as_path())
    }

    /// Of [`Kind::Integer`], for a count whose declared range is not negative.
    #[must_use]
    pub fn count(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or(0)
    }

    /// Which layer the value in force came from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        &self.entry(key).1
    }

    /// Every key with its value and where it came from, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value, &Origin)> {
        self.values
            .iter()
            .map(|(name, (value, origin))| (*name, value, origin))
    }

    /// The keys whose values are not those of `other`.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        self.iter()
            .filter(|(name, value, _)| other.value(name) != *value)
            .map(|(name, _, _)| name)
    }

    /// Takes the values of these keys from `other`.
    pub fn take(&mut self, keys: &[&'static str], other: &Self) {
        for key in keys {
            self.values.insert(key, other.entry(key).clone());
        }
    }

    fn value(&self, key: &str) -> &Value {
        &self.entry(key).0
    }

    fn entry(&self, key: &str) -> &(Value, Origin) {
        self.values
            .get(key)
            .expect("only declared keys are asked for")
    }
}

/// As TOML, dotted keys.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value, _) in self.iter() {
            writeln!(f, "{name} = {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
