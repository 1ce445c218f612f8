//! The views a query may name: what they show, from which tables, and how each column is computed.
//!
//! Times are RFC 3339 text in UTC, which sorts as time does; sizes and durations carry their unit in the name.

use nexus_proto::{
    inventory::{ColumnType, SCHEMA},
    time::Timestamp,
};

use crate::{
    rows::{ColumnInfo, ViewInfo},
    shard::schema::table_of,
};

/// Where a view's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In every shard.
    Shards,
    /// In the control projections.
    Control,
    /// In the audit file.
    Audit,
    /// In a virtual table of that name.
    Virtual(&'static str),
}

/// A view, with what SQL makes it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) place: Place,
    /// Name, type, meaning, expression.
    pub(super) columns: Vec<(String, &'static str, String, String)>,
    /// Tables it reads; all others are refused within it.
    pub(super) tables: Vec<String>,
    /// FROM clause with `{s}` for the schema.
    pub(super) from: String,
    /// The rows that hold now.
    pub(super) now: &'static str,
    /// The rows that held at `{t}` milliseconds.
    pub(super) then: &'static str,
    /// The node column that a restriction to some nodes looks at.
    pub(super) node: Option<&'static str>,
}

fn uuid(column: &str) -> String {
    let hex = format!("lower(hex({column}))");
    let part = |from: u8, length: u8| format!("substr({hex}, {from}, {length})");
    format!(
        "{} || '-' || {} || '-' || {} || '-' || {} || '-' || {}",
        part(1, 8),
        part(9, 4),
        part(13, 4),
        part(17, 4),
        part(21, 12)
    )
}

fn time(column: &str) -> String {
    format!("strftime('%Y-%m-%dT%H:%M:%fZ', {column} / 1000.0, 'unixepoch')")
}

fn lane(column: &str) -> String {
    format!("CASE {column} WHEN 1 THEN 'results' WHEN 2 THEN 'inventory' ELSE 'metrics' END")
}

fn hex(column: &str) -> String {
    format!("lower(hex({column}))")
}

fn column(
    name: &str,
    kind: &'static str,
    about: &str,
    sql: impl Into<String>,
) -> (String, &'static str, String, String) {
    (name.to_owned(), kind, about.to_owned(), sql.into())
}

fn text(name: &str, about: &str, sql: impl Into<String>) -> (String, &'static str, String, String) {
    column(name, "TEXT", about, sql)
}

fn number(
    name: &str,
    about: &str,
    sql: impl Into<String>,
) -> (String, &'static str, String, String) {
    column(name, "INTEGER", about, sql)
}

/// The two columns that begin every view about nodes.
fn of_node() -> Vec<(String, &'static str, String, String)> {
    vec![
        text("node", "the node's name", "n.name"),
        text("node_id", "the node's id", uuid("t.node")),
    ]
}

const VALID: &str = "t.valid_to_ms IS NULL";
const VALID_THEN: &str =
    "t.valid_from_ms <= {t} AND (t.valid_to_ms IS NULL OR t.valid_to_ms > {t})";

fn joined(table: &str) -> String {
    format!("{{s}}.{table} t JOIN {{s}}.nodes n ON n.node = t.node")
}

fn per_node(
    name: &'static str,
    about: &'static str,
    table: &str,
    more: Vec<(String, &'static str, String, String)>,
    then: &'static str,
) -> View {
    let mut columns = of_node();
    columns.extend(more);
    View {
        name,
        about,
        place: Place::Shards,
        columns,
        tables: vec![table.to_owned(), "nodes".to_owned()],
        from: joined(table),
        now: "1",
        then,
        node: Some("t.node"),
    }
}

fn central(
    name: &'static str,
    about: &'static str,
    table: &str,
    columns: Vec<(String, &'static str, String, String)>,
    then: &'static str,
) -> View {
    View {
        name,
        about,
        place: Place::Control,
        columns,
        tables: vec![table.to_owned()],
        from: format!("{{s}}.{table} t"),
        now: "1",
        then,
        node: None,
    }
}

/// Every view.
pub(super) fn all() -> Vec<View> {
    let mut views = vec![nodes(), labels()];
    for kind in SCHEMA {
        let table = table_of(kind);
        let more = kind.columns.iter().map(|c| {
            let sql = format!("t.\"{}\"", c.name);
            let type_name = match c.kind {
                ColumnType::Text => "TEXT",
                ColumnType::Integer => "INTEGER",
            };
            column(c.name, type_name, c.about, sql)
        });
        let mut more: Vec<_> = more.collect();
        more.push(text(
            "since",
            "when the collector first saw the row so",
            time("t.valid_from_ms"),
        ));
        let view = per_node(kind.name, kind.about, &table, more, VALID_THEN);
        views.push(View { now: VALID, ..view });
    }
    views.extend([
        sections(),
        metrics(
            "metrics",
            "a series' newest value",
            Place::Virtual("nexus_newest"),
        ),
        metrics(
            "metric_history",
            "a series' value at one time; asks for node = … (name or id) AND name = …",
            Place::Virtual("nexus_history"),
        ),
        jobs(),
        runs(),
        run_output(),
        tokens(),
        identities(),
        operators(),
        shards(),
        collectors(),
        per_node(
            "events",
            "something that happened to a node or its agent",
            "events",
            vec![
                text("kind", "agent_started, spool_quarantined …", "t.kind"),
                text("message", "in words", "t.message"),
                text("time", "when", time("t.time_ms")),
            ],
            "t.time_ms <= {t}",
        ),
        per_node(
            "gaps",
            "records that will never arrive",
            "gaps",
            vec![
                text("lane", "results, inventory or metrics", lane("t.lane")),
                number("first_seq", "the first of them", "t.first_seq"),
                number("last_seq", "the last of them", "t.last_seq"),
                text(
                    "reason",
                    "spool_full, unclean_start, corrupt_segment",
                    "t.reason",
                ),
                text("time", "when it was reported", time("t.time_ms")),
            ],
            "t.time_ms <= {t}",
        ),
        per_node(
            "dead_letters",
            "a record that could not be read",
            "dead_letters",
            vec![
                text("lane", "results, inventory or metrics", lane("t.lane")),
                number("seq", "its place in the lane", "t.seq"),
                text("reason", "why", "t.reason"),
                number("data_bytes", "its size", "length(t.data)"),
                text("time", "when it came", time("t.time_ms")),
            ],
            "t.time_ms <= {t}",
        ),
        audit(),
    ]);
    views
}

fn nodes() -> View {
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
            time("n.last_seen_ms"),
        ),
        text(
            "enrolled_at",
            "when it was enrolled",
            time("n.enrolled_at_ms"),
        ),
        text(
            "certificate_expires",
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
    }
}

fn labels() -> View {
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

fn sections() -> View {
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

fn metrics(name: &'static str, about: &'static str, place: Place) -> View {
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
    }
}

fn jobs() -> View {
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
            text("summary", "the command", "t.summary"),
            text("operator", "who signed it", "t.operator"),
            text("selector", "what was asked for", "t.selector"),
            number("targets", "how many nodes", "t.targets"),
            text("created", "when it was made", time("t.created_ms")),
            text(
                "not_before",
                "no execution starts before this",
                time("nullif(t.not_before_ms, 0)"),
            ),
            text(
                "expires",
                "no execution starts at or after this",
                time("t.expires_ms"),
            ),
            text("cancelled", "why it was cancelled", "t.cancelled"),
            text(
                "ended",
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

fn runs() -> View {
    per_node(
        "runs",
        "a job on one node",
        "runs",
        vec![
            text("job", "the job's id", uuid("t.job")),
            text(
                "state",
                "pending, dispatched, running, or one of the final states",
                "t.state",
            ),
            number("exit_code", "what it exited with", "t.exit_code"),
            number("signal", "what signal ended it", "t.signal"),
            text("reason", "in words", "t.reason"),
            text("dispatched", "when it was sent", time("t.dispatched_ms")),
            text("started", "when it began", time("t.started_ms")),
            text("finished", "when it ended", time("t.finished_ms")),
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

fn run_output() -> View {
    per_node(
        "run_output",
        "a piece of a run's output",
        "run_outputs",
        vec![
            text("job", "the job's id", uuid("t.job")),
            text("stream", "stdout or stderr", "t.stream"),
            number("offset", "bytes of the stream before it", "t.offset"),
            column("data", "BLOB", "the piece", "t.data"),
        ],
        "1",
    )
}

fn tokens() -> View {
    central(
        "tokens",
        "a join token",
        "tokens",
        vec![
            text("id", "its id, a UUID", uuid("t.token")),
            text("labels", "labels its nodes get, a JSON object", "t.labels"),
            number("uses", "how many nodes may use it", "t.uses"),
            number("used", "how many have", "t.used"),
            text("operator", "who signed it", "t.operator"),
            text("created", "when it was made", time("t.created_ms")),
            text("expires", "when it ends", time("t.expires_ms")),
            text("revoked", "when it was revoked", time("t.revoked_ms")),
        ],
        "t.created_ms <= {t}",
    )
}

fn identities() -> View {
    central(
        "identities",
        "a certificate that was issued",
        "serials",
        vec![
            text("serial", "its serial number", "t.serial"),
            text("identity", "its SPIFFE id", "t.identity"),
            text("role", "agent, collector or operator", "t.role"),
            text("issued", "when", time("t.issued_ms")),
            text("expires", "when it ends", time("t.expires_ms")),
        ],
        "t.issued_ms <= {t}",
    )
}

fn operators() -> View {
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
            text("first_login", "when", time("t.first_login_ms")),
            text("last_login", "when", time("t.last_login_ms")),
        ],
        "t.first_login_ms <= {t}",
    )
}

fn shards() -> View {
    View {
        name: "shards",
        about: "a part of the fleet",
        place: Place::Shards,
        columns: vec![
            number("shard", "its number", "{n}"),
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
                "log_index",
                "the log row its projections have reached",
                "t.value",
            ),
        ],
        tables: vec!["meta".to_owned(), "nodes".to_owned(), "slots".to_owned()],
        from: "{s}.meta t".to_owned(),
        now: "t.key = 'applied'",
        then: "t.key = 'applied'",
        node: None,
    }
}

fn collectors() -> View {
    central(
        "collectors",
        "a collector",
        "collectors",
        vec![
            text("id", "its id", "t.id"),
            text("region", "its region", "t.region"),
            text("version", "of its program", "t.version"),
            text("started", "when it last started", time("t.started_ms")),
        ],
        "1",
    )
}

fn audit() -> View {
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
    }
}

impl View {
    /// The statement that makes it, over schemas of these names.
    pub(super) fn sql(
        &self,
        shards: &[String],
        control: &str,
        audit: &str,
        as_of: Option<Timestamp>,
        some: bool,
    ) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _, _, sql)| format!("{sql} AS \"{name}\""))
            .collect();
        let held = match as_of {
            Some(then) => self.then.replace("{t}", &then.as_ms().to_string()),
            None => self.now.to_owned(),
        };
        let permitted = match self.node {
            Some(node) if some => format!(" AND {node} IN (SELECT node FROM temp.nexus_permitted)"),
            _ => String::new(),
        };
        let template = format!(
            "SELECT {} FROM {} WHERE {held}{permitted}",
            columns.join(", "),
            self.from
        );
        let parts: Vec<String> = match self.place {
            Place::Shards => (0..)
                .zip(shards)
                .map(|(number, schema): (usize, _)| {
                    template
                        .replace("{s}", schema)
                        .replace("{c}", control)
                        .replace("{n}", &number.to_string())
                })
                .collect(),
            Place::Control => vec![template.replace("{s}", control)],
            Place::Audit => vec![template.replace("{s}", audit)],
            Place::Virtual(_) => vec![template],
        };
        format!(
            "CREATE TEMP VIEW \"{}\" AS {}",
            self.name,
            parts.join(" UNION ALL ")
        )
    }
}

/// For people.
pub(super) fn describe() -> Vec<ViewInfo> {
    let describe = |view: View| ViewInfo {
        name: view.name.to_owned(),
        about: view.about.to_owned(),
        columns: view
            .columns
            .into_iter()
            .map(|(name, kind, about, _)| ColumnInfo { name, kind, about })
            .collect(),
    };
    all().into_iter().map(describe).collect()
}
