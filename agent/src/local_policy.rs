//! Who may run what as which user on this machine: `/etc/nexus/policy.toml`, root's own word beside the fleet's.
//!
//! ```toml
//! deny = "everything"      # or rules, of which one is enough:
//! [[allow]]
//! who = ["alice", "bob"]   # operators, as the signer policy names them; "*": all of them
//! run = ["/usr/bin/apt"]   # "*", "command", "script", or programs by their path
//! as = ["root"]            # users; "*": all of them
//! env = ["DEBIAN_FRONTEND"]
//! ```
//! What no rule allows is denied, and so is everything when there is no file. A program that is named by its path is
//! allowed with any arguments and on any input, but with no variable of the environment that `env` does not name, since
//! some make a program run another one. `"*"`, `"command"` and `"script"` let an operator run anything anyway, and
//! mind no variables.
//!
//! The file is read at each decision, so that what it says holds at once. It counts only while it and its folder are
//! root's and nobody else can write them.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nexus_proto::{
    job::{Action, Job},
    limits::LOCAL_POLICY_BYTES,
};
use nexus_runtime::settings::{Fault, Faults, Origin};
use rustix::fs::OFlags;
use toml::de::{DeTable, DeValue};

const ANY: &str = "*";
const EVERYTHING: &str = "everything";

/// Why there is no policy to go by, which denies everything.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// There is none.
    #[error("there is no local policy {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read the local policy {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody but root may have written it.
    #[error("the local policy does not count: {path} {why}", path = path.display())]
    Unsafe {
        /// The file or its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It says nothing that could be meant.
    #[error("the local policy has mistakes: {}", one_line(.0))]
    Faults(Faults),
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPolicy {
    path: PathBuf,
    everything_denied: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    who: Vec<String>,
    run: Vec<String>,
    users: Vec<String>,
    env: Vec<String>,
}

/// Reads a policy that belongs to `owner`, which is root but in tests.
pub fn load(path: &Path, owner: u32) -> Result<LocalPolicy, PolicyError> {
    let text = read(path, owner)?;
    parse(path, &text).map_err(PolicyError::Faults)
}

fn read(path: &Path, owner: u32) -> Result<String, PolicyError> {
    let fail = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return PolicyError::Missing(path.to_owned());
        }
        PolicyError::Read {
            path: path.to_owned(),
            source,
        }
    };
    // A pipe would never answer, and a link is somebody else's file.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path);
    let file = file.map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let of_folder = fs::metadata(folder).map_err(fail)?;
    let refuse = |path: &Path, why: String| PolicyError::Unsafe {
        path: path.to_owned(),
        why,
    };
    if !metadata.is_file() {
        return Err(refuse(path, "is no file".to_owned()));
    }
    for (path, metadata) in [(folder, &of_folder), (path, &metadata)] {
        let mode = metadata.mode() & 0o7777;
        if metadata.uid() != owner {
            let why = format!("belongs to the user {}, not to root", metadata.uid());
            return Err(refuse(path, why));
        }
        if mode & 0o022 != 0 {
            let why = format!("has mode {mode:04o}: others than root can write it (chmod go-w)");
            return Err(refuse(path, why));
        }
    }
    let most = u64::try_from(LOCAL_POLICY_BYTES).unwrap_or(u64::MAX);
    if metadata.len() > most {
        return Err(refuse(path, format!("has more than {most} bytes")));
    }
    let mut text = String::new();
    file.take(most).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// What it comes to, after its path.
impl fmt::Display for LocalPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.everything_denied, self.rules.len()) {
            (true, _) | (false, 0) => f.write_str("denies everything"),
            (false, 1) => f.write_str("has one rule that allows something"),
            (false, count) => write!(f, "has {count} rules that allow something"),
        }
    }
}

impl LocalPolicy {
    /// Whether the job may run as that user; the reason why not.
    pub fn judge(&self, job: &Job, user: &str) -> Result<(), String> {
        let path = self.path.display();
        if self.everything_denied {
            return Err(format!("the local policy {path} denies everything"));
        }
        if self.rules.iter().any(|rule| rule.allows(job, user)) {
            return Ok(());
        }
        let (what, hint) = match &job.action {
            Action::Command { argv, context, .. } => {
                let program = argv.first().map_or("", String::as_str);
                let hint = if !program.starts_with('/') && self.names_programs() {
                    "; its rules name programs by their path"
                } else if !context.env.is_empty() && self.names_programs() {
                    "; the environment that the job sets counts as well"
                } else {
                    ""
                };
                (format!("`{program}`"), hint)
            }
            Action::Script { .. } => ("a script".to_owned(), ""),
        };
        Err(format!(
            "the local policy {path} has no rule that lets {} run {what} as {user}{hint}",
            job.operator
        ))
    }

    fn names_programs(&self) -> bool {
        let mut all = self.rules.iter().flat_map(|rule| &rule.run);
        all.any(|what| what.starts_with('/'))
    }
}

impl Rule {
    fn allows(&self, job: &Job, user: &str) -> bool {
        has(&self.who, &job.operator) && has(&self.users, user) && self.allows_action(&job.action)
    }

    fn allows_action(&self, action: &Action) -> bool {
        let says = |word: &str| self.run.iter().any(|what| what == word);
        match action {
            Action::Script { .. } => says(ANY) || says("script"),
            Action::Command { argv, context, .. } => {
                let named = argv.first().is_some_and(|program| says(program));
                let plain = context.env.iter().all(|(name, _)| has(&self.env, name));
                says(ANY) || says("command") || named && plain
            }
        }
    }
}

fn has(list: &[String], name: &str) -> bool {
    list.iter().any(|entry| entry == ANY || entry == name)
}

/// Reads the text of one, whoever it belongs to; every mistake at once.
pub fn parse(path: &Path, text: &str) -> Result<LocalPolicy, Faults> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reading = Reading {
        path,
        text,
        faults: Vec::new(),
    };
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        reading.fault(at, "", error.message().replace('\n', ", "));
    }
    if !errors.is_empty() {
        return Err(Faults(reading.faults));
    }
    let policy = reading.policy(table.get_ref());
    if reading.faults.is_empty() {
        Ok(policy)
    } else {
        Err(Faults(reading.faults))
    }
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    faults: Vec<Fault>,
}

impl Reading<'_> {
    fn policy(&mut self, table: &DeTable<'_>) -> LocalPolicy {
        let mut policy = LocalPolicy {
            path: self.path.to_owned(),
            everything_denied: false,
            rules: Vec::new(),
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let at = key.span().start;
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("deny", DeValue::String(what)) if what.as_ref() == EVERYTHING => {
                    policy.everything_denied = true;
                }
                ("deny", _) => self.fault(at, "deny", "can only be \"everything\""),
                ("allow", DeValue::Array(rules)) => {
                    for rule in rules {
                        match rule.get_ref() {
                            DeValue::Table(entries) => {
                                let rule = self.rule(rule.span().start, entries);
                                policy.rules.push(rule);
                            }
                            _ => self.fault(
                                rule.span().start,
                                "allow",
                                "each is a section, [[allow]]",
                            ),
                        }
                    }
                }
                ("allow", _) => self.fault(at, "allow", "is a list of sections, [[allow]]"),
                (other, _) => {
                    self.fault(at, other, "unknown key; there are `deny` and [[allow]]");
                }
            }
        }
        if policy.everything_denied && !policy.rules.is_empty() {
            self.fault(
                0,
                "deny",
                "everything is denied, and [[allow]] allows something: one of them has to go",
            );
        }
        policy
    }

    fn rule(&mut self, begin: usize, entries: &DeTable<'_>) -> Rule {
        let mut rule = Rule::default();
        let mut seen = Vec::new();
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let at = key.span().start;
            let name = key.get_ref().as_ref();
            let list = match name {
                "who" => &mut rule.who,
                "run" => &mut rule.run,
                "as" => &mut rule.users,
                "env" => &mut rule.env,
                other => {
                    let name = format!("allow.{other}");
                    self.fault(
                        at,
                        &name,
                        "unknown key; there are `who`, `run`, `as` and `env`",
                    );
                    continue;
                }
            };
            seen.push(name.to_owned());
            match words(value.get_ref()) {
                Some(words) => *list = words,
                None => self.fault(
                    at,
                    &format!("allow.{name}"),
                    "is a text or a list of texts, and not empty",
                ),
            }
            if name == "run" {
                let known = |what: &&String| {
                    [ANY, "command", "script"].contains(&what.as_str()) || what.starts_with('/')
                };
                if let Some(unknown) = rule.run.iter().find(|what| !known(what)) {
                    let why = format!(
                        "`{unknown}` is neither \"*\", \"command\", \"script\" nor the path of a program"
                    );
                    self.fault(at, "allow.run", &why);
                }
            }
        }
        for name in ["who", "run", "as"] {
            if !seen.iter().any(|known| known == name) {
                self.fault(begin, &format!("allow.{name}"), "is missing from this rule");
            }
        }
        rule
    }

    fn fault(&mut self, at: usize, key: &str, why: impl AsRef<str>) {
        let before = self.text.as_bytes().iter().take(at);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        let origin = Origin::File(self.path.to_owned(), line);
        self.faults.push(Fault::new(origin, key, why.as_ref()));
    }
}

fn words(value: &DeValue<'_>) -> Option<Vec<String>> {
    let word = |value: &DeValue<'_>| match value {
        DeValue::String(text) if !text.is_empty() => Some(text.to_string()),
        _ => None,
    };
    match value {
        DeValue::Array(list) if !list.is_empty() => {
            list.iter().map(|entry| word(entry.get_ref())).collect()
        }
        other => word(other).map(|word| vec![word]),
    }
}

fn one_line(faults: &Faults) -> String {
    faults.to_string().replace('\n', "; ")
}

#[cfg(test)]
mod tests;
