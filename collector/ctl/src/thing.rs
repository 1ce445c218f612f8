//! The types of thing users name: `TYPE/NAME` or `TYPE NAME`, in singular and plural.

use nexus_runtime::settings::nearest;

use crate::{
    fault::{Fault, Outcome},
    output::Shown::{self, Always, Wide},
};

/// A type of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    Nodes,
    Jobs,
    Runs,
    Tokens,
    Identities,
    Shards,
    Collectors,
    Events,
    Audit,
}

/// Names and columns of a type.
pub struct Facts {
    /// `job`
    pub singular: &'static str,
    /// `jobs`, also the name of its view
    pub plural: &'static str,
    /// Columns whose values, joined by `/`, are what `-o name` calls a thing.
    pub name: &'static [&'static str],
    /// Columns by which things are found.
    pub names: &'static [&'static str],
    /// Columns that tables show; the view's others are in JSON, YAML and CSV.
    pub columns: &'static [(&'static str, &'static str, Shown)],
    /// How rows are sorted.
    pub order: &'static str,
}

impl Thing {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Nodes,
        Self::Jobs,
        Self::Runs,
        Self::Tokens,
        Self::Identities,
        Self::Shards,
        Self::Collectors,
        Self::Events,
        Self::Audit,
    ];

    /// From singular or plural.
    pub fn parse(word: &str) -> Outcome<Self> {
        let lower = word.to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|thing| {
            let facts = thing.facts();
            lower == facts.singular || lower == facts.plural
        });
        found.ok_or_else(|| {
            let all = Self::ALL.map(|thing| thing.facts().plural);
            let meant = match nearest(&lower, all.into_iter()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the node of that name is `node/{word}`;"),
            };
            Fault::usage("command line", format!("there is no type `{word}`"))
                .hint(format!("{meant} types are {}", all.join(", ")))
        })
    }

    /// What a field can hold, where that is little.
    #[must_use]
    pub fn values(self, field: &str) -> &'static [&'static str] {
        match (self, field) {
            (Self::Nodes, "state") => &["connected", "disconnected", "quarantined", "revoked"],
            (Self::Jobs, "state") => &["active", "ended"],
            (Self::Runs, "state") => &[
                "pending",
                "dispatched",
                "running",
                "succeeded",
                "failed",
                "timed_out",
                "cancelled",
                "expired",
                "rejected",
                "lost",
                "unknown",
            ],
            (Self::Tokens, "state") => &["active", "used", "expired", "revoked"],
            (Self::Identities, "role") => &["agent", "collector", "operator"],
            (Self::Audit, "decision") => &["allowed", "refused", "damaged"],
            _ => &[],
        }
    }

    /// From `TYPE/NAME` or `TYPE` and the words after it.
    pub fn parse_named(first: &str, rest: &[String]) -> Outcome<(Self, Vec<String>)> {
        let Some((kind, name)) = first.split_once('/') else {
            let thing = Self::parse(first)?;
            return Ok((thing, rest.to_vec()));
        };
        let thing = Self::parse(kind)?;
        let mut names = Vec::new();
        for word in std::iter::once(first).chain(rest.iter().map(String::as_str)) {
            let name = match word.split_once('/') {
                Some((kind, name)) if Self::parse(kind)? == thing => name,
                Some(_) => {
                    return Err(Fault::usage(
                        "command line",
                        "the things are of different types",
                    ));
                }
                None => word,
            };
            names.push(name.to_owned());
        }
        if name.is_empty() || names.iter().any(String::is_empty) {
            return Err(Fault::usage(
                "command line",
                format!("`{first}` lacks the name after `/`"),
            ));
        }
        Ok((thing, names))
    }

    /// What is known of the type.
    #[must_use]
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Nodes => &NODES,
            Self::Jobs => &JOBS,
            Self::Runs => &RUNS,
            Self::Tokens => &TOKENS,
            Self::Identities => &IDENTITIES,
            Self::Shards => &SHARDS,
            Self::Collectors => &COLLECTORS,
            Self::Events => &EVENTS,
            Self::Audit => &AUDIT,
        }
    }
}

const NODES: Facts = Facts {
    singular: "node",
    plural: "nodes",
    name: &["name"],
    names: &["name", "id"],
    columns: &[],
    order: "name",
};

const JOBS: Facts = Facts {
    singular: "job",
    plural: "jobs",
    name: &["id"],
    names: &["id"],
    columns: &[
        ("id", "ID", Always),
        ("state", "STATE", Always),
        ("targets", "TARGETS", Always),
        ("succeeded", "SUCCEEDED", Always),
        ("operator", "OPERATOR", Always),
        ("summary", "COMMAND", Always),
        ("created_at", "AGE", Always),
        ("selector", "SELECTOR", Wide),
        ("expires_at", "EXPIRES", Wide),
        ("request_id", "REQUEST-ID", Wide),
    ],
    order: "created_at DESC",
};

const RUNS: Facts = Facts {
    singular: "run",
    plural: "runs",
    name: &["job_id", "node"],
    names: &["job_id", "node", "node_id"],
    columns: &[
        ("job_id", "JOB", Always),
        ("node", "NODE", Always),
        ("state", "STATE", Always),
        ("exit_code", "EXIT", Always),
        ("signal", "SIGNAL", Wide),
        ("stdout_bytes", "STDOUT", Wide),
        ("stderr_bytes", "STDERR", Wide),
        ("started_at", "STARTED", Always),
        ("finished_at", "FINISHED", Always),
        ("reason", "REASON", Wide),
    ],
    order: "created_at DESC, node",
};

const TOKENS: Facts = Facts {
    singular: "token",
    plural: "tokens",
    name: &["id"],
    names: &["id"],
    columns: &[
        ("id", "ID", Always),
        ("state", "STATE", Always),
        ("used", "USED", Always),
        ("uses", "USES", Always),
        ("operator", "OPERATOR", Always),
        ("labels", "LABELS", Wide),
        ("created_at", "AGE", Always),
        ("expires_at", "EXPIRES", Always),
    ],
    order: "created_at DESC",
};

const IDENTITIES: Facts = Facts {
    singular: "identity",
    plural: "identities",
    name: &["serial"],
    names: &["serial", "spiffe_id"],
    columns: &[
        ("serial", "SERIAL", Always),
        ("role", "ROLE", Always),
        ("spiffe_id", "SPIFFE-ID", Always),
        ("issued_at", "AGE", Always),
        ("not_after", "EXPIRES", Always),
    ],
    order: "issued_at DESC",
};

const SHARDS: Facts = Facts {
    singular: "shard",
    plural: "shards",
    name: &["id"],
    names: &["id"],
    columns: &[
        ("id", "SHARD", Always),
        ("state", "STATE", Always),
        ("nodes", "NODES", Always),
        ("slots", "SLOTS", Always),
        ("log_index", "LOG-INDEX", Always),
        ("applied_index", "APPLIED", Always),
        ("log_bytes", "LOG-BYTES", Wide),
        ("state_bytes", "STATE-BYTES", Wide),
    ],
    order: "id",
};

const COLLECTORS: Facts = Facts {
    singular: "collector",
    plural: "collectors",
    name: &["id"],
    names: &["id"],
    columns: &[
        ("id", "ID", Always),
        ("region", "REGION", Always),
        ("state", "STATE", Always),
        ("version", "VERSION", Always),
        ("started_at", "AGE", Always),
    ],
    order: "id",
};

const EVENTS: Facts = Facts {
    singular: "event",
    plural: "events",
    name: &["node"],
    names: &["node", "node_id"],
    columns: &[
        ("time", "AGE", Always),
        ("node", "NODE", Always),
        ("kind", "KIND", Always),
        ("message", "MESSAGE", Always),
    ],
    order: "time DESC",
};

const AUDIT: Facts = Facts {
    singular: "audit",
    plural: "audit",
    name: &["seq"],
    names: &["seq"],
    columns: &[
        ("seq", "SEQ", Always),
        ("time", "AGE", Always),
        ("actor", "ACTOR", Always),
        ("action", "ACTION", Always),
        ("subject", "SUBJECT", Always),
        ("decision", "DECISION", Always),
        ("detail", "DETAIL", Wide),
        ("request_id", "REQUEST-ID", Wide),
    ],
    order: "seq",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Exit;

    fn named(first: &str, rest: &[&str]) -> Outcome<(Thing, Vec<String>)> {
        let rest: Vec<_> = rest.iter().map(|word| (*word).to_owned()).collect();
        Thing::parse_named(first, &rest)
    }

    #[test]
    fn a_word_that_is_no_type_is_taken_for_a_mistyped_one_or_for_a_node() {
        let hint = |word: &str| Thing::parse(word).unwrap_err().hint.unwrap();
        let said = hint("nodez");
        assert!(
            said.starts_with("did you mean `nodes`? types are nodes, jobs"),
            "{said}"
        );
        let said = hint("alpha");
        assert!(
            said.starts_with("the node of that name is `node/alpha`; types are"),
            "{said}"
        );
    }

    #[test]
    fn singular_plural_and_names() {
        assert_eq!(Thing::parse("identity").unwrap(), Thing::Identities);
        assert_eq!(Thing::parse("Nodes").unwrap(), Thing::Nodes);
        assert_eq!(named("node/a", &["node/b"]).unwrap().1, ["a", "b"]);
        assert_eq!(
            named("nodes", &["a", "b"]).unwrap(),
            (Thing::Nodes, vec!["a".into(), "b".into()])
        );
        for (first, rest) in [
            ("nodez", vec![]),
            ("node/", vec![]),
            ("node/a", vec!["job/b"]),
        ] {
            assert_eq!(
                named(first, &rest).unwrap_err().exit,
                Exit::Usage,
                "{first}"
            );
        }
    }
}
