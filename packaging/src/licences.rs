//! The licences of everything a program is linked from: which library stands under which, and their texts, each once.
//! Asked of cargo, which knows what this very workspace resolves to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nexus_runtime::fault::{Doing as _, Fault, Outcome};
use serde::Deserialize;

/// Files whose names begin so hold a licence, or what it demands to be passed on.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None: it is of this workspace.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// None: it is linked; else `dev` or `build`.
    kind: Option<String>,
}

/// Of one program.
pub(crate) fn of(program: &str) -> Outcome<String> {
    let metadata = metadata()?;
    let linked = linked(&metadata, program)?;
    let mut table = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in linked {
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see below");
        let _always_fits = writeln!(table, "{name}: {licence}");
        for text in texts_of(package)? {
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    let mut out = format!(
        "{program} is linked from the libraries below and from Rust's standard library (MIT OR Apache-2.0).\n\n{table}"
    );
    for (text, names) in texts {
        let names: Vec<_> = names.into_iter().collect();
        let _always_fits = write!(
            out,
            "\n{}\n{}\n\n{text}\n",
            "-".repeat(72),
            names.join(", ")
        );
    }
    Ok(out)
}

fn metadata() -> Outcome<Metadata> {
    let what = "ask cargo what there is";
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let answer = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
        ])
        .arg(platform)
        .output()
        .doing(what)?;
    if !answer.status.success() {
        return Err(Fault::new(what, String::from_utf8_lossy(&answer.stderr)));
    }
    serde_json::from_slice(&answer.stdout).doing(what)
}

/// What ends up in a program: neither what only builds it nor what only tests it, nor macros, which run at its build.
fn linked<'a>(metadata: &'a Metadata, program: &str) -> Outcome<Vec<&'a Package>> {
    let packages: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|one| (one.id.as_str(), one))
        .collect();
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .nodes
        .iter()
        .map(|one| (one.id.as_str(), one))
        .collect();
    let own = |one: &&Package| one.name == program && one.source.is_none();
    let root = metadata.packages.iter().find(own);
    let root = root.ok_or_else(|| Fault::new(program, "no such program in this workspace"))?;
    let mut seen = BTreeSet::from([root.id.as_str()]);
    let mut waiting = vec![root.id.as_str()];
    while let Some(id) = waiting.pop() {
        let node = nodes.get(id);
        for dependency in node.into_iter().flat_map(|node| &node.deps) {
            let linked = dependency.dep_kinds.iter().any(|one| one.kind.is_none());
            let package = packages.get(dependency.pkg.as_str());
            let is_macro = package.is_some_and(|one| {
                one.targets
                    .iter()
                    .any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
            });
            if linked && !is_macro && seen.insert(&dependency.pkg) {
                waiting.push(&dependency.pkg);
            }
        }
    }
    let mut linked: Vec<_> = seen
        .into_iter()
        .filter_map(|id| packages.get(id).copied())
        .collect();
    linked.retain(|one| one.source.is_some());
    linked.sort_by_key(|one| (&one.name, &one.version));
    Ok(linked)
}

/// Those in a library's folder, and in the folders right beneath it: there lies the C code that some bring along.
fn texts_of(package: &Package) -> Outcome<Vec<String>> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("/"));
    let mut folders = vec![folder.to_owned()];
    folders.extend(entries(folder)?.into_iter().filter(|path| path.is_dir()));
    let mut texts = Vec::new();
    for folder in folders {
        for path in entries(&folder)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_uppercase();
            if path.is_file() && NAMES.iter().any(|one| name.starts_with(one)) {
                let text = fs::read(&path).doing(format!("read {}", path.display()))?;
                texts.push(String::from_utf8_lossy(&text).trim().to_owned());
            }
        }
    }
    Ok(texts)
}

/// In the order of their names.
fn entries(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let what = || format!("read {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).doing(what())? {
        paths.push(entry.doing(what())?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_linked_from_libraries_and_not_from_what_builds_or_tests_it() {
        let metadata = metadata().unwrap();
        let names: Vec<_> = linked(&metadata, "nexus-agent")
            .unwrap()
            .into_iter()
            .map(|one| one.name.as_str())
            .collect();
        assert!(
            names.contains(&"rustls") && names.contains(&"aws-lc-sys"),
            "{names:?}"
        );
        for other in [
            "protox",
            "proptest",
            "clap_derive",
            "rusqlite",
            "nexus-proto",
        ] {
            assert!(!names.contains(&other), "{other}");
        }
    }

    #[test]
    fn the_licences_of_c_libraries_are_there_too() {
        let text = of("nexus-collector").unwrap();
        assert!(text.contains("libsqlite3-sys "), "the table");
        // Of the C library that zstd-sys brings along in a folder of its own.
        assert!(text.contains("For Zstandard software"), "the texts");
    }
}
