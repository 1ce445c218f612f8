//! The views a query may name: what they show, from which tables, and how each column is computed.
//!
//! Times are RFC 3339 text in UTC, which sorts as time does; sizes and durations carry their unit in the name.

mod catalog;

use nexus_proto::{
    ids::Lane,
    inventory::{ColumnType, SCHEMA},
    time::Timestamp,
};

use crate::{
    query::live,
    rows::{ColumnInfo, ViewInfo},
    shard::schema::table_of,
};

use catalog::{
    audit, collectors, identities, jobs, labels, metrics, nodes, operators, package_versions,
    run_output, runs, sections, shards, tokens,
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
    /// Of a view that counts.
    pub(super) counted: Option<Counted>,
}

/// How a view counts: its last column is a count of rows that are alike in the others. It is summed over the shards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    /// The table of counts that are kept: for whoever sees all nodes, as they are now. Its columns are the view's.
    pub(super) table: &'static str,
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

/// A figure of a cursor: metrics stand apart.
fn of_metrics(before: &str, function: &str, after: &str, else_: &str) -> String {
    let lane = i32::from(Lane::Metrics.to_wire());
    format!(
        "CASE t.lane WHEN {lane} THEN {before}{function}(t.node, t.incarnation){after} ELSE {else_} END"
    )
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
        counted: None,
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
        counted: None,
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
        package_versions(),
        sections(),
        metrics(
            "metrics",
            "a series' newest value",
            Place::Virtual("nexus_newest"),
        ),
        metrics(
            "metric_history",
            "a series' value at one time; asks for node = … (name or id) AND name = …; single samples, or the last value of each minute or hour where the time asked for begins before the samples that are kept",
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
            "lanes",
            "how far a node's records have come",
            "cursors",
            vec![
                text(
                    "incarnation",
                    "the life of its state folder",
                    uuid("t.incarnation"),
                ),
                text("lane", "results, inventory or metrics", lane("t.lane")),
                number(
                    "seq",
                    "everything up to here is committed or in `gaps`",
                    of_metrics("max(t.seq, ", live::SEQ, ")", "t.seq"),
                ),
                number(
                    "records",
                    "how many records came, gaps counted as one",
                    of_metrics("(t.records + ", live::RECORDS, ")", "t.records"),
                ),
            ],
            "1",
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
                    "spool_full, spool_age, unclean_start, corrupt_segment",
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

impl View {
    /// Whether it looks into the control projections.
    pub(super) fn reads_control(&self) -> bool {
        self.place == Place::Control || self.columns.iter().any(|(.., sql)| sql.contains("{c}"))
    }

    /// Whether it looks into the audit file.
    pub(super) fn reads_audit(&self) -> bool {
        self.place == Place::Audit
    }

    /// The statement that makes it, over schemas of these names.
    pub(super) fn sql(
        &self,
        shards: &[String],
        control: &str,
        audit: &str,
        as_of: Option<Timestamp>,
        some: bool,
    ) -> String {
        if let Some(counted) = self.counted {
            return self.counting_sql(counted, shards, as_of, some);
        }
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _, _, sql)| format!("{sql} AS \"{name}\""))
            .collect();
        let template = format!(
            "SELECT {} FROM {} WHERE {}",
            columns.join(", "),
            self.from,
            self.seen(as_of, some)
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

    /// Which rows are seen: what holds, of the caller's nodes.
    fn seen(&self, as_of: Option<Timestamp>, some: bool) -> String {
        let held = match as_of {
            Some(then) => self.then.replace("{t}", &then.as_ms().to_string()),
            None => self.now.to_owned(),
        };
        match self.node {
            Some(node) if some => {
                format!("{held} AND {node} IN (SELECT node FROM temp.nexus_permitted)")
            }
            _ => held,
        }
    }

    /// [`View::sql`] of a view that counts: from the counts that are kept, or else from the rows themselves.
    fn counting_sql(
        &self,
        counted: Counted,
        shards: &[String],
        as_of: Option<Timestamp>,
        some: bool,
    ) -> String {
        let names: Vec<String> = self
            .columns
            .iter()
            .map(|(name, ..)| format!("\"{name}\""))
            .collect();
        let alike = names.split_last().map_or(&[][..], |(_, alike)| alike);
        let (names, alike) = (names.join(", "), alike.join(", "));
        let count = self.columns.last();
        let (count, rows) = count.map_or(("", ""), |(name, _, _, sql)| (name, sql));
        let part = if as_of.is_none() && !some {
            format!("SELECT {names} FROM {{s}}.{}", counted.table)
        } else {
            let seen = self.seen(as_of, some);
            let from = &self.from;
            format!(
                "SELECT {alike}, {rows} AS \"{count}\" FROM {from} WHERE {seen} GROUP BY {alike}"
            )
        };
        let parts: Vec<String> = shards
            .iter()
            .map(|schema| part.replace("{s}", schema))
            .collect();
        format!(
            "CREATE TEMP VIEW \"{}\" AS SELECT {alike}, sum(\"{count}\") AS \"{count}\" FROM ({}) GROUP BY {alike}",
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
