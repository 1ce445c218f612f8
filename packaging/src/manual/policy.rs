//! The page of a machine's own policy, nexus-policy.toml(5). The agent's parser has no words about its keys, so they stand
//! here; the tests hold keys and examples against it.

use clap_mangen::roff::{Roff, bold, italic, roman};
use nexus_proto::limits::LOCAL_POLICY_BYTES;

use super::{
    MANUAL,
    section::{self, Example},
    source,
};
use crate::Settings;

pub(crate) const NAME: &str = "nexus-policy.toml";

struct Key {
    /// As it may stand in the file.
    sample: &'static str,
    about: &'static str,
}

/// Of the file as a whole.
const FILE_KEYS: [Key; 2] = [
    Key {
        sample: "deny = \"everything\"",
        about: "No job runs on this machine. The key has no other value, and there can be no rule beside it.",
    },
    Key {
        sample: "[[allow]]",
        about: "A rule, of which there may be any number. A job runs when one rule allows all of it.",
    },
];

/// Of a rule.
const RULE_KEYS: [Key; 4] = [
    Key {
        sample: "who = [\"alice\", \"bob\"]",
        about: "Operators, by their names in the signer policy (`nexusctl config` shows one's own); \"*\": all of them. Must be there.",
    },
    Key {
        sample: "run = [\"/usr/bin/apt-get\"]",
        about: "\"command\": any program; \"script\": any script; \"*\": both. Or programs by their paths, each exactly as the job names \
                it, with any arguments, on any input, in any working folder. Must be there.",
    },
    Key {
        sample: "as = [\"root\"]",
        about: "Users of this machine; \"*\": all of them. A job that names none runs as root, or as the agent's own user where there \
                is no helper. Must be there.",
    },
    Key {
        sample: "env = [\"DEBIAN_FRONTEND\"]",
        about: "Variables of the environment that a job may set for a program that is named by its path; \"*\": all of them. Without \
                this key there are none, since some (LD_PRELOAD) make a program run another one. \"*\", \"command\" and \"script\" let \
                an operator run anything anyway, and mind no variables.",
    },
];

const EXAMPLES: [(&str, &str); 2] = [
    (
        "A machine that runs no job, whatever operators sign:",
        "deny = \"everything\"\n",
    ),
    (
        "Alice and Bob run anything as anybody. Every operator may restart services and read the log, as root:",
        "[[allow]]\n\
         who = [\"alice\", \"bob\"]\n\
         run = [\"*\"]\n\
         as = [\"*\"]\n\
         \n\
         [[allow]]\n\
         who = [\"*\"]\n\
         run = [\"/usr/bin/systemctl\", \"/usr/bin/journalctl\"]\n\
         as = [\"root\"]\n\
         env = [\"SYSTEMD_COLORS\"]\n",
    ),
];

/// `settings` are the agent's: one of them says where the file lies.
pub(super) fn page(settings: &Settings) -> String {
    let mut roff = Roff::new();
    roff.control("TH", [NAME, "5", "", &source(), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!(
        "{NAME} - who may run what as which user on a machine"
    ))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic(place(settings))]);
    description(&mut roff);
    keys(&mut roff);
    let files = vec![(
        place(settings).to_owned(),
        "Where the policy lies. The key `policy` of nexus-agent.toml(5) names another place."
            .to_owned(),
    )];
    section::files(&mut roff, &files);
    section::examples(&mut roff, &examples());
    let pages = [("nexus-agent", "8"), ("nexus-agent.toml", "5")];
    section::see_also(
        &mut roff,
        &pages.map(|(name, section)| (name.to_owned(), section)),
    );
    roff.render()
}

fn place(settings: &Settings) -> &'static str {
    let key = settings.keys.iter().find(|key| key.name == "policy");
    key.map_or("", |key| key.default)
}

fn description(roff: &mut Roff) {
    roff.control("SH", ["DESCRIPTION"]);
    let paragraphs = [
        "The machine's own word about jobs, which holds whatever the fleet's operators sign: a TOML file that only root writes. \
         `nexus-agent helper` asks it before it runs anything, and so does an agent that runs jobs itself."
            .to_owned(),
        "What no rule allows is denied. So an empty file denies everything, and so does one with a mistake in it, one that \
         cannot be read, and one that does not count. Without a file the helper runs nothing; an agent without a helper then \
         runs what the fleet's operators sign. A job that is denied is a run in the state rejected, whose reason names this \
         file."
            .to_owned(),
        format!(
            "The file counts only while it and its folder are root's and nobody else can write them, while it is a file and no \
             link, and has {LOCAL_POLICY_BYTES} bytes at most. It is read at each job: a change holds for the next one."
        ),
        "`nexus-agent check-config` finds every mistake at once, with line and key, and `nexus-agent doctor` says what the \
         policy comes to."
            .to_owned(),
    ];
    for (at, paragraph) in paragraphs.iter().enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text(section::words(paragraph));
    }
}

fn keys(roff: &mut Roff) {
    roff.control("SH", ["KEYS"]);
    for key in &FILE_KEYS {
        section::entry(roff, vec![bold(key.sample)], key.about);
    }
    roff.control("PP", []);
    roff.text([roman(
        "A rule has these keys, each with a text or a list of texts. Any other key is a mistake.",
    )]);
    for key in &RULE_KEYS {
        section::entry(roff, vec![bold(key.sample)], key.about);
    }
}

fn examples() -> Vec<Example> {
    let examples = EXAMPLES.map(|(about, text)| Example {
        about,
        lines: text.lines().map(str::to_owned).collect(),
    });
    examples.into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nexus_agent::local_policy::parse;

    use super::*;

    fn said(text: &str) -> String {
        match parse(Path::new("policy.toml"), text) {
            Ok(policy) => policy.to_string(),
            Err(faults) => faults.to_string(),
        }
    }

    #[test]
    fn the_examples_do_what_is_said_of_them() {
        let said = EXAMPLES.map(|(_, text)| said(text));
        assert_eq!(
            said,
            ["denies everything", "has 2 rules that allow something"]
        );
    }

    /// A rule of these keys.
    fn rule<'a>(keys: impl Iterator<Item = &'a Key>) -> String {
        let lines: Vec<_> = keys.map(|key| key.sample).collect();
        said(&format!("[[allow]]\n{}\n", lines.join("\n")))
    }

    #[test]
    fn the_keys_are_those_that_the_agent_knows() {
        let [deny, allow] = &FILE_KEYS;
        assert_eq!(said(deny.sample), "denies everything");
        assert!(
            said(&format!("{}\n{}\n", deny.sample, allow.sample)).contains("one of them has to go")
        );
        let all = RULE_KEYS.iter();
        assert_eq!(rule(all.clone()), "has one rule that allows something");
        for (at, key) in RULE_KEYS.iter().enumerate() {
            let others = RULE_KEYS.iter().enumerate();
            let others = others.filter(|(other, _)| *other != at);
            let said = rule(others.map(|(_, key)| key));
            let required = key.about.ends_with("Must be there.");
            assert_eq!(
                said.contains("is missing from this rule"),
                required,
                "{said}"
            );
        }
        // It names those there are.
        let unknown = said("[[allow]]\nwhoever = \"a\"\n");
        let name = |key: &Key| key.sample.split(' ').next().map(|name| format!("`{name}`"));
        let named = RULE_KEYS.iter().filter_map(name);
        assert!(
            named.clone().all(|name| unknown.contains(&name)),
            "{unknown}"
        );
        let first = unknown.lines().next().unwrap();
        assert_eq!(first.matches('`').count(), 2 * named.count(), "{first}");
    }
}
