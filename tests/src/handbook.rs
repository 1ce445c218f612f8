//! What people are told, as tests read it: README.md and the pages in docs/, their blocks of code, and who runs each.
//!
//! A block is fenced and says what it holds. Data is `text`, `toml`, `yaml`, `ini`, `json` or `sql`. A shell block says who runs it:
//!
//! | block | runs |
//! | --- | --- |
//! | `sh` | in order with the others of its page, in one shell, in an empty folder, not as root, with the programs on PATH and only loopback for a network (`e2e/handbook.rs`) |
//! | `sh fails` | so does this; it must fail |
//! | `sh ci` | each of its lines is one of `.ci/run`'s |
//! | `sh debian` | as root on a Debian machine that systemd booted, with a page's others in order (`packages/handbook.rs`) |
//!
//! Any other is a mistake, so that no command stands in a page that nobody runs. The next `text` block
//! under the same heading is a shell block's output: each line must come in that order, where `…` is anything and numbers, ids and widths do not count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::fault::{Fault, Outcome};

/// The pages whose `sh debian` blocks `packages/handbook.rs` runs.
pub const DEBIAN_PAGES: &[&str] = &["docs/install.md"];

const DATA: [&str; 6] = ["text", "toml", "yaml", "ini", "json", "sql"];

/// Who runs a shell block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// A shell on this machine, cut off from its network.
    Loopback,
    /// The same, and it must fail.
    Fails,
    /// `.ci/run` itself.
    Ci,
    /// Root on a machine booted for it.
    Debian,
}

/// One page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its path in the repository.
    pub name: String,
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
}

/// One block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its first fence, from 1.
    pub line: usize,
    /// `None`: data.
    pub runner: Option<Runner>,
    /// What stands in it.
    pub text: String,
    /// What it must print: the `text` block after it.
    pub output: Option<String>,
}

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page.
pub fn pages() -> Outcome<Vec<Page>> {
    let mut names = vec!["README.md".to_owned()];
    for folder in ["docs", "docs/reference"] {
        let entries = fs::read_dir(root().join(folder)).map_err(Fault::io(folder))?;
        for entry in entries {
            let name = entry.map_err(Fault::io(folder))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".md") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    names.iter().map(|name| page(name)).collect()
}

/// One of them.
pub fn page(name: &str) -> Outcome<Page> {
    let text = fs::read_to_string(root().join(name)).map_err(Fault::io(name))?;
    let blocks = blocks(&text).map_err(|why| Fault::new(format!("{name}:{why}")))?;
    Ok(Page {
        name: name.to_owned(),
        blocks,
    })
}

/// The blocks of a page, or the line and what is wrong with it.
fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = (1..).zip(text.lines());
    // Whether only words stand between here and the shell block that came last.
    let mut follows = false;
    let mut blank = true;
    while let Some((line, words)) = lines.next() {
        let Some(info) = words.strip_prefix("```") else {
            if blank && (words.starts_with("    ") || words.starts_with('\t')) {
                return Err(format!("{line}: a block is fenced, and says what it holds"));
            }
            blank = words.is_empty();
            follows &= !words.starts_with('#');
            continue;
        };
        let mut inside = String::new();
        loop {
            match lines.next() {
                None => return Err(format!("{line}: the block does not end")),
                Some((_, "```")) => break,
                Some((_, words)) => {
                    inside.push_str(words);
                    inside.push('\n');
                }
            }
        }
        let runner = runner(info).map_err(|why| format!("{line}: {why}"))?;
        let is_output = follows && info == "text";
        if runner.is_none() && !is_output && inside.lines().any(|line| line.starts_with("$ ")) {
            return Err(format!("{line}: commands stand in a block of `sh`"));
        }
        let last = blocks.last_mut().filter(|_| is_output);
        if let Some(shell) = last {
            shell.output = Some(inside);
            follows = false;
        } else {
            follows = runner.is_some();
            blocks.push(Block {
                line,
                runner,
                text: inside,
                output: None,
            });
        }
        blank = true;
    }
    Ok(blocks)
}

fn runner(info: &str) -> Result<Option<Runner>, String> {
    match info {
        "sh" => Ok(Some(Runner::Loopback)),
        "sh fails" => Ok(Some(Runner::Fails)),
        "sh ci" => Ok(Some(Runner::Ci)),
        "sh debian" => Ok(Some(Runner::Debian)),
        other if DATA.contains(&other) => Ok(None),
        other => Err(format!("nobody knows what to do with a block of `{other}`")),
    }
}

impl Page {
    /// What one shell runs of it, for these runners: each block's output goes to the file of its line in `outputs`, and the
    /// last line of the file `at` there is the block that was begun last.
    #[must_use]
    pub fn script(&self, runners: &[Runner], outputs: &Path) -> String {
        let outputs = outputs.display();
        // What a page starts in the background ends with it.
        let mut script =
            "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n".to_owned();
        for block in self.of(runners) {
            let line = block.line;
            script.push_str(&format!(
                "exec >'{outputs}/{line}' 2>&1\necho {line} >>'{outputs}/at'\n"
            ));
            if block.runner == Some(Runner::Fails) {
                script.push_str(&format!(
                    "set +e\n(\nset -e\n{})\nif [ $? = 0 ]; then echo 'it should have failed'; exit 1; fi\nset -e\n",
                    block.text
                ));
            } else {
                script.push_str(&block.text);
            }
        }
        script.push_str(&format!("echo done >>'{outputs}/at'\n"));
        script
    }

    /// Its blocks for these runners.
    pub fn of<'a>(&'a self, runners: &'a [Runner]) -> impl Iterator<Item = &'a Block> {
        let is = |block: &&Block| block.runner.is_some_and(|runner| runners.contains(&runner));
        self.blocks.iter().filter(is)
    }

    /// Whether a script came to its end, and each block printed what the page says.
    pub fn check(&self, runners: &[Runner], outputs: &Path) -> Outcome {
        let said = |line: &str| fs::read_to_string(outputs.join(line)).unwrap_or_default();
        let at = said("at");
        let last = at.lines().last().unwrap_or("nowhere");
        if last != "done" {
            return Err(Fault::new(format!(
                "{}:{last}: the block failed:\n{}",
                self.name,
                said(last)
            )));
        }
        for block in self.of(runners) {
            let printed = said(&block.line.to_string());
            if let Some(missing) = block.missing(&printed) {
                return Err(Fault::new(format!(
                    "{}:{}: `{missing}` is not printed, or not there:\n{printed}",
                    self.name, block.line
                )));
            }
        }
        Ok(())
    }
}

impl Block {
    /// The first line of its output that was not printed after those above it.
    #[must_use]
    pub fn missing(&self, printed: &str) -> Option<&str> {
        missing(self.output.as_deref()?, printed)
    }
}

/// The first line that was not printed after those above it.
fn missing<'a>(told: &'a str, printed: &str) -> Option<&'a str> {
    let mut printed = printed.lines().map(essence);
    told.lines()
        .filter(|line| !matches!(line.trim(), "" | "…"))
        .find(|line| {
            let line = essence(line);
            !printed.any(|seen| matches(&line, &seen))
        })
}

/// Words, where one with a digit in it is as good as another.
fn essence(line: &str) -> String {
    let word = |word: &str| {
        if word.bytes().any(|byte| byte.is_ascii_digit()) {
            "0".to_owned()
        } else {
            word.to_owned()
        }
    };
    line.split_whitespace()
        .map(word)
        .collect::<Vec<_>>()
        .join(" ")
}

fn matches(told: &str, seen: &str) -> bool {
    let mut rest = seen;
    let mut parts = told.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(after) = rest.strip_prefix(first) else {
        return false;
    };
    rest = after;
    let mut open = false;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
        open = part.is_empty();
    }
    open || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_what_it_is_and_what_comes_of_it() {
        let page = "# A\n\n```sh\necho a\n```\n\n```text\na\n```\n\nAnd\n```toml\nx = 1\n```\n```sh fails\nfalse\n```\n";
        let found = blocks(page).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[0].line, found[0].runner),
            (3, Some(Runner::Loopback))
        );
        assert_eq!(found[0].output.as_deref(), Some("a\n"));
        assert_eq!(found[1].runner, None);
        assert_eq!(found[2].runner, Some(Runner::Fails));
    }

    #[test]
    fn what_nobody_would_run_is_a_mistake() {
        for page in [
            "```\nls\n```\n",
            "```bash\nls\n```\n",
            "```sh fedora\nls\n```\n",
            "```text\n$ ls\n```\n",
            "\n    ls\n",
            "```sh\nls\n",
        ] {
            assert!(blocks(page).is_err(), "{page}");
        }
    }

    #[test]
    fn output_is_compared_by_its_words() {
        let printed = "NAME    STATE\nweb-1   connected   12s\nerror: no: why\n";
        assert_eq!(
            missing("NAME STATE\nweb-2 connected 1s\n…\nerror: …\n", printed),
            None
        );
        assert_eq!(
            missing("error: no: …\nNAME STATE\n", printed),
            Some("NAME STATE")
        );
        assert_eq!(missing("error: yes\n", printed), Some("error: yes"));
        assert_eq!(missing("error: no\n", printed), Some("error: no"));
    }

    #[test]
    fn a_script_stops_where_a_block_does() {
        let dir = tempfile::tempdir().unwrap();
        let run = |text: &str| {
            let page = Page {
                name: "page".to_owned(),
                blocks: blocks(text).unwrap(),
            };
            let all = [Runner::Loopback, Runner::Fails];
            let outputs = dir.path().join("outputs");
            drop(fs::remove_dir_all(&outputs));
            fs::create_dir(&outputs).unwrap();
            let script = page.script(&all, &outputs);
            std::process::Command::new("bash")
                .args(["-c", &script])
                .status()
                .unwrap();
            page.check(&all, &outputs)
                .map_err(|fault| fault.to_string())
        };
        let good = "```sh\nx=7\n```\n```sh\necho \"x is $x\"\n```\n```text\nx is 7\n```\n```sh fails\necho bad; false\n```\n";
        assert_eq!(run(good), Ok(()));
        for (bad, why) in [
            ("```sh\ntrue\n```\n```sh\nfalse\necho on\n```\n", "page:4"),
            ("```sh fails\ntrue\n```\n", "should have failed"),
            (
                "```sh\necho a\n```\n```text\nb\n```\n",
                "`b` is not printed",
            ),
        ] {
            let said = run(bad).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
