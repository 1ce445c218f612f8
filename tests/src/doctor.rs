//! What `nexus-agent doctor` says, taken apart.

use tokio::process::Command;

use crate::{fault::Outcome, process};

/// One examination.
#[derive(Debug)]
pub struct Examined {
    /// The program's exit code.
    pub code: Option<i32>,
    /// What it said of each thing, with its hint behind it.
    pub findings: Vec<String>,
    /// Its standard error.
    pub err: String,
}

impl Examined {
    /// Lets the program have its say. `command` is all of the command line but its last word.
    pub async fn by(command: &mut Command) -> Outcome<Self> {
        let output = process::run(command.arg("doctor"), b"").await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut findings: Vec<String> = Vec::new();
        for line in text.lines() {
            let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
            match (words.starts_with("hint: "), findings.last_mut()) {
                (true, Some(last)) => {
                    last.push_str("; ");
                    last.push_str(&words);
                }
                _ => findings.push(words),
            }
        }
        Ok(Self {
            code: output.status.code(),
            findings,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// What it said of one thing; nothing is empty.
    #[must_use]
    pub fn of(&self, what: &str) -> &str {
        let mut all = self.findings.iter();
        let finding = all.find(|finding| finding.split(' ').next() == Some(what));
        finding.map_or("", String::as_str)
    }

    /// Checks the verdict on one thing, and what is said of it.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn says(&self, what: &str, verdict: &str, words: &[&str]) {
        let finding = self.of(what);
        let fits = finding.starts_with(&format!("{what} {verdict} "));
        let said = words.iter().all(|word| finding.contains(word));
        assert!(
            fits && said,
            "{what} {verdict} {words:?}, and not {finding}\n{self:#?}"
        );
    }

    /// What is not as it should be.
    #[must_use]
    pub fn complaints(&self) -> Vec<&str> {
        let all = self.findings.iter();
        all.filter(|finding| finding.split(' ').nth(1) != Some("ok"))
            .map(String::as_str)
            .collect()
    }
}
