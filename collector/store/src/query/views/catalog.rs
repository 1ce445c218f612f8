//! The views that are not inventory, one function each.

use super::{
    Counted, Place, VALID, VALID_THEN, View, central, column, hex, joined, number, per_node, text,
    time, uuid,
};
use crate::query::live;

pub(super) fn nodes() -> View {
    let mut columns = vec![
        text("id", "its id, a UUID", uuid("t.node")),
        text("name", "its host name", "t.name"),
        text(
            "state",
            "connected, disconnected, quarantined or revoked",
            "t.state",
        ),
        text(
            "state_reason",
            "why it is held, or how its last session ended",
            "t.reason",
        ),
        text("labels", "a JSON object", "t.labels"),
        text("os", "PRETTY_NAME of os-release", "t.os"),
        text("kernel", "uname -r", "t.kernel"),
        text("arch", "uname -m", "t.arch"),
        text("agent_version", "of its agent", "t.agent_version"),
        text("transport", "quic or tcp", "t.transport"),
        text(
            "key_exchange",
            "negotiated by its newest session",
            "t.key_exchange",
        ),
        text("address", "where its newest session came from", "t.address"),
    ];
    columns.extend([
        text(
            "last_seen",
            "when a session or a record last came",
            time(&format!(
                "nullif(max(coalesce(n.last_seen_ms, 0), {}(n.node)), 0)",
                live::HEARD
            )),
        ),
        text(
            "enrolled_at",
            "when it was enrolled",
            time("n.enrolled_at_ms"),
        ),
        text(
            "certificate_expires_at",
            "when its newest certificate ends",
            time("n.certificate_expires_ms"),
        ),
        number(
            "rtt_us",
            "round trip of its newest session, microseconds",
            "n.rtt_us",
        ),
        text(
            "incarnation",
            "the life of its state folder",
            uuid("n.incarnation"),
        ),
        number("slot", "0 to 4095", "n.slot"),
        number("shard", "the shard that holds it", "{n}"),
    ]);
    View {
        name: "nodes",
        about: "an enrolled node",
        place: Place::Shards,
        columns,
        tables: vec!["node_history".to_owned(), "nodes".to_owned()],
        from: joined("node_history"),
        now: VALID,
        then: VALID_THEN,
        node: Some("t.node"),
        counted: None,
    }
}

pub(super) fn labels() -> View {
    let view = per_node(
        "labels",
        "a label of a node",
        "node_history",
        vec![
            text("key", "the label's name", "l.key"),
            text("value", "its value", "l.value"),
        ],
        VALID_THEN,
    );
    View {
        from: format!("{} JOIN json_each(t.labels) l", joined("node_history")),
        now: VALID,
        tables: vec![
            "node_history".to_owned(),
            "nodes".to_owned(),
            "json_each".to_owned(),
        ],
        ..view
    }
}

pub(super) fn package_versions() -> View {
    View {
        name: "package_versions",
        about: "a version of a package that nodes have, and how many: kept counted, while `packages` must be counted",
        place: Place::Shards,
        columns: vec![
            text("name", "package name", "t.name"),
            text("version", "as in `packages`", "t.version"),
            number("nodes", "how many nodes have it", "count(DISTINCT t.node)"),
        ],
        tables: vec![
            "package_versions".to_owned(),
            "inventory_packages".to_owned(),
        ],
        from: "{s}.inventory_packages t".to_owned(),
        now: "t.valid_to_ms IS NULL AND t.name IS NOT NULL AND t.version IS NOT NULL",
        then: "t.valid_from_ms <= {t} AND (t.valid_to_ms IS NULL OR t.valid_to_ms > {t}) \
               AND t.name IS NOT NULL AND t.version IS NOT NULL",
        node: Some("t.node"),
        counted: Some(Counted {
            table: "package_versions",
        }),
    }
}

pub(super) fn sections() -> View {
    per_node(
        "sections",
        "a kind of inventory, as a node last sent it",
        "sections",
        vec![
            text("kind", "which view its rows are in", "t.kind"),
            text("since", "since when it is so", time("t.since_ms")),
            text("error", "why newer rows could not be read", "t.error"),
            text("hash", "BLAKE3 of its rows", hex("t.hash")),
        ],
        "t.since_ms <= {t}",
    )
}

pub(super) fn metrics(name: &'static str, about: &'static str, place: Place) -> View {
    let table = match place {
        Place::Virtual(table) => table,
        _ => "",
    };
    View {
        name,
        about,
        place,
        columns: vec![
            text("node", "the node's name", "t.node"),
            text("node_id", "the node's id", "t.node_id"),
            text("name", "the metric, as node_exporter names it", "t.name"),
            text("labels", "a JSON object", "t.labels"),
            column(
                "value",
                "REAL",
                "in the metric's base unit; null for NaN",
                "t.value",
            ),
            text("time", "when the node sampled it", "t.time"),
        ],
        tables: vec![table.to_owned()],
        from: format!("{table} t"),
        now: "1",
        then: "1",
        node: None,
        counted: None,
    }
}

pub(super) fn jobs() -> View {
    central(
        "jobs",
        "a signed job",
        "jobs",
        vec![
            text("id", "its id, a UUID", uuid("t.job")),
            text(
                "state",
                "active or ended",
                "CASE WHEN t.ended_ms IS NULL THEN 'active' ELSE 'ended' END",
            ),
            number(
                "succeeded",
                "targets that succeeded, once it has ended",
                "CASE WHEN t.ended_ms IS NOT NULL THEN coalesce(json_extract(t.counts, '$.succeeded'), 0) END",
            ),
            text("summary", "the command", "t.summary"),
            text("operator", "who signed it", "t.operator"),
            text("selector", "what was asked for", "t.selector"),
            number("targets", "how many nodes", "t.targets"),
            text("created_at", "when it was made", time("t.created_ms")),
            text(
                "not_before",
                "no execution starts before this",
                time("nullif(t.not_before_ms, 0)"),
            ),
            text(
                "expires_at",
                "no execution starts at or after this",
                time("t.expires_ms"),
            ),
            text("cancelled", "why it was cancelled", "t.cancelled"),
            text(
                "ended_at",
                "when its last run became final",
                time("t.ended_ms"),
            ),
            text(
                "counts",
                "final state to targets, a JSON object",
                "t.counts",
            ),
            text("request_id", "the request that made it", "t.request_id"),
        ],
        "t.created_ms <= {t}",
    )
}

pub(super) fn runs() -> View {
    per_node(
        "runs",
        "a job on one node",
        "runs",
        vec![
            text("job_id", "the job's id", uuid("t.job")),
            text(
                "state",
                "pending, dispatched, running, or one of the final states",
                "t.state",
            ),
            number("exit_code", "what it exited with", "t.exit_code"),
            number("signal", "what signal ended it", "t.signal"),
            text("reason", "in words", "t.reason"),
            text("created_at", "when it was planned", time("t.planned_ms")),
            text("dispatched_at", "when it was sent", time("t.dispatched_ms")),
            text("started_at", "when it began", time("t.started_ms")),
            text("finished_at", "when it ended", time("t.finished_ms")),
            number("stdout_bytes", "produced, kept or not", "t.stdout_bytes"),
            number("stderr_bytes", "produced, kept or not", "t.stderr_bytes"),
            number(
                "stdout_dropped_bytes",
                "of those, not kept",
                "t.stdout_dropped_bytes",
            ),
            number(
                "stderr_dropped_bytes",
                "of those, not kept",
                "t.stderr_dropped_bytes",
            ),
            text(
                "late_state",
                "what a report said that came after the state was final",
                "t.late_state",
            ),
        ],
        "t.planned_ms <= {t}",
    )
}

pub(super) fn run_output() -> View {
    per_node(
        "run_output",
        "a piece of a run's output",
        "run_outputs",
        vec![
            text("job_id", "the job's id", uuid("t.job")),
            text("stream", "stdout or stderr", "t.stream"),
            number("offset", "bytes of the stream before it", "t.offset"),
            column("data", "BLOB", "the piece", "t.data"),
        ],
        "1",
    )
}

pub(super) fn tokens() -> View {
    central(
        "tokens",
        "a join token",
        "tokens",
        vec![
            text("id", "its id, a UUID", uuid("t.token")),
            text(
                "state",
                "active, used (up), expired or revoked",
                "CASE WHEN t.revoked_ms IS NOT NULL THEN 'revoked' WHEN t.used >= t.uses THEN 'used' \
                 WHEN t.expires_ms <= unixepoch() * 1000 THEN 'expired' ELSE 'active' END",
            ),
            text("labels", "labels its nodes get, a JSON object", "t.labels"),
            number("uses", "how many nodes may use it", "t.uses"),
            number("used", "how many have", "t.used"),
            text("operator", "who signed it", "t.operator"),
            text("created_at", "when it was made", time("t.created_ms")),
            text("expires_at", "when it ends", time("t.expires_ms")),
            text("revoked_at", "when it was revoked", time("t.revoked_ms")),
        ],
        "t.created_ms <= {t}",
    )
}

pub(super) fn identities() -> View {
    central(
        "identities",
        "a certificate that was issued",
        "serials",
        vec![
            text("serial", "its serial number", "t.serial"),
            text("spiffe_id", "its SPIFFE id", "t.identity"),
            text("role", "agent, collector or operator", "t.role"),
            text("issued_at", "when", time("t.issued_ms")),
            text("not_after", "when it ends", time("t.expires_ms")),
        ],
        "t.issued_ms <= {t}",
    )
}

pub(super) fn operators() -> View {
    central(
        "operators",
        "who has logged in",
        "operators",
        vec![
            text("name", "who", "t.name"),
            text(
                "signing_key",
                "the Ed25519 public key, hex",
                hex("t.signing_key"),
            ),
            text("first_login_at", "when", time("t.first_login_ms")),
            text("last_login_at", "when", time("t.last_login_ms")),
        ],
        "t.first_login_ms <= {t}",
    )
}

pub(super) fn shards() -> View {
    View {
        name: "shards",
        about: "a part of the fleet",
        place: Place::Shards,
        columns: vec![
            number("id", "its number", "{n}"),
            text("state", "serving: it takes and answers", "'serving'"),
            number("nodes", "nodes in it", "(SELECT count(*) FROM {s}.nodes)"),
            number(
                "connected",
                "of those, connected",
                "(SELECT count(*) FROM {s}.nodes WHERE session IS NOT NULL)",
            ),
            number(
                "slots",
                "slots placed on it",
                "(SELECT count(*) FROM {c}.slots WHERE shard = {n})",
            ),
            number(
                "applied_index",
                "the log row its projections have reached",
                // A shard nothing was ever written to has none, and is a shard all the same.
                "coalesce((SELECT value FROM {s}.meta WHERE key = 'applied'), 0)",
            ),
        ],
        tables: vec!["meta".to_owned(), "nodes".to_owned(), "slots".to_owned()],
        from: "(SELECT 1)".to_owned(),
        now: "1",
        then: "1",
        node: None,
        counted: None,
    }
}

pub(super) fn collectors() -> View {
    central(
        "collectors",
        "a collector",
        "collectors",
        vec![
            text("id", "its id", "t.id"),
            text("region", "its region", "t.region"),
            text("version", "of its program", "t.version"),
            text("started_at", "when it last started", time("t.started_ms")),
        ],
        "1",
    )
}

pub(super) fn audit() -> View {
    View {
        name: "audit",
        about: "a privileged act, allowed or refused",
        place: Place::Audit,
        columns: vec![
            number("seq", "its place in the chain", "t.seq"),
            text("time", "when", time("t.time_ms")),
            text(
                "actor",
                "SPIFFE id, or local:… for a command on the collector's host",
                "t.actor",
            ),
            text("action", "what was asked", "t.action"),
            text("subject", "of what", "t.subject"),
            text("decision", "allowed or refused", "t.decision"),
            text("detail", "JSON", "t.detail"),
            text("request_id", "the request", "t.request_id"),
            text("hash", "of the row and all before it", hex("t.hash")),
        ],
        tables: vec!["audit".to_owned()],
        from: "{s}.audit t".to_owned(),
        now: "1",
        then: "t.time_ms <= {t}",
        node: None,
        counted: None,
    }
}
