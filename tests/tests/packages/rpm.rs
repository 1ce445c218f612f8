//! The rpms that `packaging/build.sh` left in `dist/`, later versions of them, and one that stands for the distribution
//! they are installed on.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{debian::succeeds, package};

pub(super) const ALL: [&str; 3] = ["nexus-agent", "nexus-collector", "nexusctl"];

/// What a spec says of a package besides its files.
const SPEC: &str = "Name: %{NAME}\n\
    Version: %{VERSION}\n\
    Release: %{RELEASE}\n\
    Summary: %{SUMMARY}\n\
    License: %{LICENSE}\n\
    AutoReqProv: no\n\
    [Requires: %{REQUIRENEVRS}\n]\
    [Provides: %{PROVIDENEVRS}\n]\
    [Conflicts: %{CONFLICTNEVRS}\n]\
    %%description\n%{DESCRIPTION}\n\
    %|POSTIN?{%%post\n%{POSTIN}\n}|\
    %|PREUN?{%%preun\n%{PREUN}\n}|\
    %|POSTUN?{%%postun\n%{POSTUN}\n}|";
const FILES: &str = "[%{FILEFLAGS:fflags} %{FILEMODES:octal} %{FILENAMES}\n]";
/// As things are: neither stripped nor split nor packed again, nor packed for long.
const AS_IT_IS: [&str; 4] = [
    "debug_package %{nil}",
    "__os_install_post %{nil}",
    "_build_id_links none",
    "_binary_payload w1.gzdio",
];
const STAND_IN: &str = "Name: distribution\n\
    Version: 1\n\
    Release: 1\n\
    Summary: What a distribution has\n\
    License: none\n\
    BuildArch: noarch\n";

/// The rpm of that package.
pub(super) fn built(name: &str) -> PathBuf {
    let version = |rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or_default();
        rest.starts_with(|first: char| first.is_ascii_digit()) && rest.ends_with(".rpm")
    };
    package::in_dist(name, version)
}

/// The version of what was built.
pub(super) async fn version(name: &str) -> String {
    ask(&built(name), "%{VERSION}").await
}

/// The same package with that added to its version, in the folder `to`, once its files have been changed. Its relations
/// and its scriptlets are the same.
pub(super) async fn later(name: &str, added: &str, to: &Path, change: impl FnOnce(&Path)) {
    let built = built(name);
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    extract(&built, &tree).await;
    change(&tree);
    let version = version(name).await;
    let next = format!("{version}{added}");
    let mut spec = String::new();
    for line in ask(&built, SPEC).await.lines() {
        match line.split_once(": ") {
            Some(("Version" | "Provides" | "Conflicts", _)) => {
                spec.push_str(&line.replace(&version, &next));
            }
            // What rpm itself must know is for rpmbuild to say.
            Some(("Requires", needed)) if needed.starts_with("rpmlib(") => {}
            _ => spec.push_str(line),
        }
        spec.push('\n');
    }
    let tree = tree.display();
    spec.push_str(&format!(
        "%install\ncp --archive {tree}/. %{{buildroot}}\n%files\n"
    ));
    for file in ask(&built, FILES).await.lines() {
        spec.push_str(&file_in_spec(file));
    }
    let made = build(&spec, work.path(), to).await;
    assert_eq!(scripts(&made).await, scripts(&built).await);
}

fn file_in_spec(line: &str) -> String {
    let mut words = line.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    let (flags, mode, path) = (word(), word(), word());
    let kind = match flags {
        "cn" => "%config(noreplace) ",
        "d" => "%doc ",
        "" => "",
        other => panic!("{path} is {other}"),
    };
    let (kind, permissions) = match mode.strip_prefix("40") {
        Some(permissions) => ("%dir ", permissions),
        None => (kind, mode.strip_prefix("100").unwrap()),
    };
    format!("{kind}%attr({permissions}, root, root) \"{path}\"\n")
}

/// An rpm without files that provides what the packages need of others: Debian's packages are none of rpm's.
pub(super) async fn stand_in(to: &Path) -> PathBuf {
    let (mut needed, mut provided) = (BTreeSet::new(), BTreeSet::new());
    for name in ALL {
        let built = built(name);
        let lines = ask(&built, "[%{REQUIRENEVRS}\n]").await;
        needed.extend(lines.lines().map(str::to_owned));
        let names = ask(&built, "[%{PROVIDENAME}\n]").await;
        provided.extend(names.lines().map(str::to_owned));
    }
    let mut spec = STAND_IN.to_owned();
    for capability in needed {
        let name = capability.split(' ').next().unwrap();
        if !name.starts_with("rpmlib(") && !provided.contains(name) {
            spec.push_str(&format!("Provides: {capability}\n"));
        }
    }
    spec.push_str("%description\nNothing.\n%files\n");
    let work = tempfile::tempdir().unwrap();
    build(&spec, work.path(), to).await
}

async fn build(spec: &str, work: &Path, to: &Path) -> PathBuf {
    let file = work.join("package.spec");
    fs::write(&file, spec).unwrap();
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet"]);
    for define in AS_IT_IS {
        build.arg("--define").arg(define);
    }
    let folders = [
        ("_topdir", work.join("build")),
        ("_rpmdir", work.join("made")),
    ];
    for (name, folder) in folders {
        let define = format!("{name} {}", folder.display());
        build.arg("--define").arg(define);
    }
    build.args([
        "--define",
        "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
    ]);
    succeeds(build.arg(&file)).await;
    let mut made = fs::read_dir(work.join("made")).unwrap();
    let made = made.next().unwrap().unwrap();
    let to = to.join(made.file_name());
    fs::copy(made.path(), &to).unwrap();
    to
}

async fn extract(rpm: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let pipe = r#"set -e; rpm2archive --nocompression - <"$0" >"$1.tar"; tar --extract --file "$1.tar" --directory "$1""#;
    let mut extract = Command::new("sh");
    succeeds(extract.args(["-c", pipe]).arg(rpm).arg(to)).await;
}

/// What scriptlets do, but for how their ends are written.
async fn scripts(rpm: &Path) -> Vec<String> {
    let mut scripts = Vec::new();
    for tag in [
        "PRETRANS",
        "PREIN",
        "POSTIN",
        "PREUN",
        "POSTUN",
        "POSTTRANS",
    ] {
        let format = format!("%|{tag}?{{%{{{tag}}}}}|");
        scripts.push(ask(rpm, &format).await.trim_end().to_owned());
    }
    scripts
}

async fn ask(rpm: &Path, format: &str) -> String {
    let mut ask = Command::new("rpm");
    ask.args([
        "--query",
        "--package",
        "--nosignature",
        "--queryformat",
        format,
    ]);
    succeeds(ask.arg(rpm)).await
}
