//! Every message of an error, under what it is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use nexus_runtime::fault::{Doing as _, Fault, Outcome};

use super::{explained::TOPICS, source};

/// What the programs are made of.
const SOURCES: [&str; 8] = [
    "agent/src",
    "collector/ctl/src",
    "collector/src",
    "collector/store/src",
    "pki/src",
    "proto/runtime/src",
    "proto/src",
    "proto/transport/src",
];

/// Whose texts tell of no error: metrics, tables, terminal output.
const OTHER: [&str; 6] = [
    "collector/src/pages/families.rs",
    "collector/src/pages/metrics.rs",
    "collector/store/src/query/views",
    "collector/store/src/query/functions.rs",
    "collector/ctl/src/demo/tour.rs",
    "proto/src/inventory.rs",
];

const HEAD: &str = "# Errors

Every message that `nexus-agent`, `nexus-collector` and `nexusctl` have for something that is wrong, by what it is about. `…` stands for a
value. A message is often made of several: `error: enroll: the collector refused: the join token is not accepted: the token has
expired` is four of these, and the last one is the cause. Search this page for the last part first. The commonest ones are explained at length in
[Troubleshooting](../troubleshooting.md).
";

pub(super) fn page() -> Outcome<String> {
    let mut topics: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for (file, texts) in texts()? {
        let topic = topic_of(&file).ok_or_else(|| {
            let why = "no topic of the reference of errors is about this file";
            Fault::new(file.clone(), why).hint("add it to packaging/src/reference/explained.rs")
        })?;
        topics.entry(topic).or_default().extend(texts);
    }
    let mut out = HEAD.to_owned();
    for (at, texts) in topics {
        let Some(topic) = TOPICS.get(at) else {
            continue;
        };
        let _always_fits = write!(out, "\n## {}\n\n{}\n\n", topic.title, topic.advice);
        for text in texts {
            // Backticks of a text would end the ones around it.
            let fence = if text.contains('`') { "`` " } else { "`" };
            let back: String = fence.chars().rev().collect();
            let _always_fits = writeln!(out, "- {fence}{text}{back}");
        }
    }
    Ok(out)
}

/// The most exact one.
fn topic_of(file: &str) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    for (at, topic) in TOPICS.iter().enumerate() {
        let lengths = topic
            .files
            .iter()
            .filter(|of| file.starts_with(**of))
            .map(|of| of.len());
        if let Some(length) = lengths.max()
            && best.is_none_or(|(_, most)| length > most)
        {
            best = Some((at, length));
        }
    }
    best.map(|(at, _)| at)
}

/// By file; files without any are left out.
fn texts() -> Outcome<BTreeMap<String, Vec<String>>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeMap::new();
    let mut folders: Vec<String> = SOURCES.iter().map(|&folder| folder.to_owned()).collect();
    while let Some(folder) = folders.pop() {
        let what = || format!("read {folder}");
        for entry in fs::read_dir(root.join(&folder)).doing(what())? {
            let entry = entry.doing(what())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{folder}/{name}");
            if entry.file_type().doing(what())?.is_dir() {
                if name != "tests" {
                    folders.push(path);
                }
            } else if is_told_in(&path) {
                let source = fs::read_to_string(entry.path()).doing(what())?;
                let texts = source::texts(&source);
                if !texts.is_empty() {
                    found.insert(path, texts);
                }
            }
        }
    }
    Ok(found)
}

/// Whether a file is a source whose texts may tell of errors.
fn is_told_in(path: &str) -> bool {
    let tests = ["/tests.rs", "/testing.rs"];
    path.ends_with(".rs")
        && !tests.iter().any(|end| path.ends_with(end))
        && !OTHER.iter().any(|begin| path.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of `docs/troubleshooting.md` that quote a message: headings in backticks.
    #[test]
    fn what_troubleshooting_quotes_is_said() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
        let page = fs::read_to_string(page).unwrap();
        let said: BTreeSet<_> = texts().unwrap().into_values().flatten().collect();
        let mut quoted = 0;
        for line in page.lines() {
            let Some(quote) = line.strip_prefix("### `") else {
                continue;
            };
            quoted += 1;
            let quote = quote.trim_end_matches('`');
            assert!(
                said.iter().any(|text| text.contains(quote)),
                "no program says `{quote}`"
            );
        }
        assert!(quoted > 10, "{quoted}");
    }

    #[test]
    fn every_topic_is_about_something() {
        let files = texts().unwrap();
        for (at, topic) in TOPICS.iter().enumerate() {
            assert!(
                files.keys().any(|file| topic_of(file) == Some(at)),
                "{} is about no file",
                topic.title
            );
        }
    }
}
