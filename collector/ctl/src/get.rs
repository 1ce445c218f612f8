//! `nexusctl get`: nodes by their own call, every other type by a query on its view.

use nexus_proto::{
    operator::v1::{ListNodesRequest, QueryRequest, View},
    selector::FieldSelector,
};
use nexus_runtime::settings;
use serde_json::Value;

use crate::{
    cli::GetArgs,
    connection::Collector,
    fault::{Fault, Outcome},
    names::{identifier, quoted},
    nodes,
    output::{self, Cell, Field, Format, Printer, Shown, Style},
    session::{Session, within},
    terminal,
    thing::{Facts, Thing},
};

pub(crate) async fn get(session: &Session, args: &GetArgs) -> Outcome {
    let (thing, names) = Thing::parse_named(&args.thing, &args.names)?;
    // What cannot be read is refused before anyone is asked.
    if let Some(text) = &args.selector {
        nodes::selector(text)?;
    }
    if let Some(text) = &args.field_selector
        && thing == Thing::Nodes
    {
        field_selector(thing, text, nodes::SELECTABLE)?;
    }
    let as_of_ms = session.as_of(args.as_of.as_deref())?;
    let work = async {
        let mut collector = session.connect().await?;
        if thing == Thing::Nodes {
            get_nodes(session, args, names, as_of_ms, &mut collector).await
        } else {
            let wanted = Wanted {
                names,
                selector: args.selector.clone(),
                field_selector: args.field_selector.clone(),
                as_of_ms,
                limit: args.limit.unwrap_or(0),
                ..Wanted::default()
            };
            get_view(session, args, thing, &wanted, &mut collector).await
        }
    };
    within(args.timeout, &format!("get {}", thing.facts().plural), work).await
}

async fn get_nodes(
    session: &Session,
    args: &GetArgs,
    names: Vec<String>,
    as_of_ms: Option<i64>,
    collector: &mut Collector,
) -> Outcome {
    let request = ListNodesRequest {
        selector: args.selector.clone().unwrap_or_default(),
        field_selector: args.field_selector.clone().unwrap_or_default(),
        names,
        limit: args.limit.unwrap_or(0),
        as_of_ms,
    };
    let nodes = collector.nodes(request).await?;
    print_nodes(session.style(&args.output), nodes)
}

/// The node table; what `-o json` prints of nodes.
pub(crate) fn print_nodes(style: Style, nodes: Vec<nexus_proto::operator::v1::Node>) -> Outcome {
    let style = Style {
        name_prefix: "node/".to_owned(),
        ..style
    };
    let format = style.format;
    let mut printer = Printer::new(style, nodes::fields(), output::stdout())?;
    for node in nodes {
        printer.row(&nodes::cells(node))?;
    }
    let rows = printer.finish()?;
    say_if_none(rows, format, "nodes");
    Ok(())
}

/// Which rows of a type are wanted.
#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) names: Vec<String>,
    pub(crate) selector: Option<String>,
    pub(crate) field_selector: Option<String>,
    pub(crate) conditions: Vec<String>,
    pub(crate) as_of_ms: Option<i64>,
    /// 0: all.
    pub(crate) limit: u32,
}

/// Fields and rows of a type that has a view.
pub(crate) async fn lookup(
    collector: &mut Collector,
    thing: Thing,
    wanted: &Wanted,
) -> Outcome<(Vec<Field>, Vec<Vec<Cell>>)> {
    let facts = thing.facts();
    let schema = crate::query::views(collector).await?;
    let Some(view) = schema
        .views
        .into_iter()
        .find(|view| view.name == facts.plural)
    else {
        let what = format!("get {}", facts.plural);
        return Err(Fault::new(what, "this collector does not list them"));
    };
    let mut conditions = wanted.conditions.clone();
    conditions.extend(name_condition(facts, &view, &wanted.names));
    if let Some(text) = &wanted.field_selector {
        conditions.extend(field_conditions(thing, &view, text)?);
    }
    if let Some(selector) = &wanted.selector {
        let as_of_ms = wanted.as_of_ms;
        conditions.push(label_condition(facts, &view, selector, as_of_ms, collector).await?);
    }
    let request = QueryRequest {
        sql: statement(facts, &view, &conditions),
        as_of_ms: wanted.as_of_ms,
        limit: wanted.limit.into(),
        ..QueryRequest::default()
    };
    let answer = collector.answer(request).await?;
    if answer.rows.is_empty()
        && let Some(name) = wanted.names.first()
    {
        let what = format!("get {}/{name}", facts.singular);
        return Err(
            Fault::new(what, format!("there is no {} `{name}`", facts.singular))
                .hint(format!("`nexusctl get {}` lists them", facts.plural)),
        );
    }
    let (fields, order) = arrange(facts, &answer.columns);
    let rows = answer.rows.into_iter().map(|row| {
        let cells = order.iter().map(|index| {
            let column = answer.columns.get(*index).map_or("", String::as_str);
            meaning(column, row.get(*index).cloned().unwrap_or(Cell::Null))
        });
        cells.collect()
    });
    let rows = rows.collect();
    Ok((fields, rows))
}

async fn get_view(
    session: &Session,
    args: &GetArgs,
    thing: Thing,
    wanted: &Wanted,
    collector: &mut Collector,
) -> Outcome {
    let facts = thing.facts();
    let (fields, found) = lookup(collector, thing, wanted).await?;
    let position = |name: &&str| fields.iter().position(|field| field.key == **name);
    let name_fields = facts.name.iter().filter_map(position).collect();
    let style = Style {
        name_prefix: format!("{}/", facts.singular),
        name_fields,
        ..session.style(&args.output)
    };
    let format = style.format;
    let mut printer = Printer::new(style, fields, output::stdout())?;
    for row in &found {
        printer.row(row)?;
    }
    let rows = printer.finish()?;
    say_if_none(rows, format, facts.plural);
    Ok(())
}

fn say_if_none(rows: u64, format: Format, plural: &str) {
    if rows == 0 && matches!(format, Format::Table | Format::Wide | Format::Name) {
        terminal::say(&format!("no {plural} found"));
    }
}

fn has(view: &View, column: &str) -> bool {
    view.columns.iter().any(|known| known.name == column)
}

/// A name has several parts, as `-o name` prints it, or is what any one column holds.
fn name_condition(facts: &Facts, view: &View, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let text = |column: &str| format!("CAST({} AS TEXT)", identifier(column));
    let parts = |name: &String| -> Vec<String> { name.split('/').map(quoted).collect() };
    let (whole, single): (Vec<_>, Vec<_>) = names
        .iter()
        .partition(|name| facts.name.len() > 1 && parts(name).len() == facts.name.len());
    let mut any = Vec::new();
    if !single.is_empty() {
        let literals: Vec<_> = single.iter().map(|name| quoted(name)).collect();
        let literals = literals.join(", ");
        let columns = facts.names.iter().filter(|column| has(view, column));
        any.extend(columns.map(|column| format!("{} IN ({literals})", text(column))));
    }
    any.extend(whole.into_iter().map(|name| {
        let columns = facts.name.iter().zip(parts(name));
        let all: Vec<_> = columns
            .map(|(column, part)| format!("{} = {part}", text(column)))
            .collect();
        format!("({})", all.join(" AND "))
    }));
    Some(format!("({})", any.join(" OR ")))
}

fn field_conditions(thing: Thing, view: &View, text: &str) -> Outcome<Vec<String>> {
    let known: Vec<_> = view
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    let selector = field_selector(thing, text, &known)?;
    let conditions = selector.requirements().iter().map(|requirement| {
        let operator = if requirement.equal { "=" } else { "<>" };
        let (column, value) = (identifier(&requirement.field), quoted(&requirement.value));
        format!("COALESCE(CAST({column} AS TEXT), '') {operator} {value}")
    });
    Ok(conditions.collect())
}

/// A selector of these fields, or what is wrong with it.
fn field_selector(thing: Thing, text: &str, known: &[&str]) -> Outcome<FieldSelector> {
    let fault = |why: &dyn std::fmt::Display| Fault::usage(format!("field selector `{text}`"), why);
    let selector = FieldSelector::parse(text, known).map_err(|error| fault(&error))?;
    for requirement in selector.requirements() {
        let (field, value) = (&requirement.field, &requirement.value);
        let values = thing.values(field);
        if values.is_empty() || values.contains(&value.as_str()) {
            continue;
        }
        let all = values.join(", ");
        let fault = fault(&format!(
            "there is no {field} `{value}`; it is one of {all}"
        ));
        return Err(match settings::nearest(value, values.iter().copied()) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault,
        });
    }
    Ok(selector)
}

/// Things of the nodes that have these labels.
async fn label_condition(
    facts: &Facts,
    view: &View,
    selector: &str,
    as_of_ms: Option<i64>,
    collector: &mut Collector,
) -> Outcome<String> {
    if !has(view, "node_id") {
        let what = format!("get {} -l", facts.plural);
        return Err(Fault::usage(
            what,
            format!("{} belong to no node", facts.plural),
        ));
    }
    let selector = selector.to_owned();
    let request = ListNodesRequest {
        selector,
        as_of_ms,
        ..ListNodesRequest::default()
    };
    let nodes = collector.nodes(request).await?;
    let ids = nodes.iter().map(|node| quoted(&nodes::id_text(&node.id)));
    Ok(format!(
        "node_id IN ({})",
        ids.collect::<Vec<_>>().join(", ")
    ))
}

fn statement(facts: &Facts, view: &View, conditions: &[String]) -> String {
    let mut sql = format!("SELECT * FROM {}", identifier(&view.name));
    if !conditions.is_empty() {
        sql.push_str(" WHERE ");
        sql.push_str(&conditions.join(" AND "));
    }
    let order = facts.order.split(", ").filter(|term| {
        term.split_whitespace()
            .next()
            .is_some_and(|column| has(view, column))
    });
    let order = order.collect::<Vec<_>>().join(", ");
    if !order.is_empty() {
        sql.push_str(" ORDER BY ");
        sql.push_str(&order);
    }
    sql
}

/// The type's own columns first, then whatever else the view has.
fn arrange(facts: &Facts, columns: &[String]) -> (Vec<Field>, Vec<usize>) {
    let position = |name: &str| columns.iter().position(|column| column == name);
    let mut fields = Vec::new();
    let mut order = Vec::new();
    for (key, header, shown) in facts.columns {
        if let Some(index) = position(key) {
            fields.push(Field::titled(key, header, *shown));
            order.push(index);
        }
    }
    for (index, column) in columns.iter().enumerate() {
        if !order.contains(&index) {
            fields.push(Field::new(column, Shown::Never));
            order.push(index);
        }
    }
    (fields, order)
}

/// What a view's column means, by its name: times are RFC 3339 texts, labels and details JSON.
pub(crate) fn meaning(column: &str, cell: Cell) -> Cell {
    match (column, cell) {
        ("state" | "decision" | "late_state", Cell::Text(state)) => Cell::State(state),
        ("labels" | "detail" | "counts", Cell::Text(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(labels)) if column == "labels" => Cell::Labels(
                labels
                    .into_iter()
                    .map(|(key, value)| (key, value.as_str().unwrap_or_default().to_owned()))
                    .collect(),
            ),
            Ok(value) => Cell::Json(value),
            Err(_) => Cell::Text(text),
        },
        (name, Cell::Text(text)) if is_time(name) => match text.parse() {
            Ok(time) => Cell::Time(time),
            Err(_) => Cell::Text(text),
        },
        (_, cell) => cell,
    }
}

fn is_time(column: &str) -> bool {
    column == "time"
        || column.ends_with("_at")
        || matches!(column, "last_seen" | "not_after" | "not_before")
}

#[cfg(test)]
mod tests {
    use nexus_proto::operator::v1::Column;

    use super::*;

    fn view(columns: &[&str]) -> View {
        let columns = columns.iter().map(|name| Column {
            name: (*name).to_owned(),
            ..Column::default()
        });
        View {
            name: "runs".to_owned(),
            about: String::new(),
            columns: columns.collect(),
        }
    }

    #[test]
    fn builds_statements() {
        let view = view(&["job_id", "node", "state", "created_at"]);
        let facts = Thing::Runs.facts();
        let mut conditions = field_conditions(Thing::Runs, &view, "state!=failed").unwrap();
        conditions.extend(name_condition(facts, &view, &["it's".to_owned()]));
        assert_eq!(
            statement(facts, &view, &conditions),
            "SELECT * FROM \"runs\" WHERE COALESCE(CAST(\"state\" AS TEXT), '') <> 'failed' \
             AND (CAST(\"job_id\" AS TEXT) IN ('it''s') OR CAST(\"node\" AS TEXT) IN ('it''s')) \
             ORDER BY created_at DESC, node"
        );
        assert!(field_conditions(Thing::Runs, &view, "nope=1").is_err());
    }

    #[test]
    fn a_value_that_a_field_never_has_is_refused_with_those_it_may_have() {
        let said = |thing, text: &str, known: &[&str]| {
            let fault = field_selector(thing, text, known).unwrap_err();
            assert_eq!(fault.exit, crate::fault::Exit::Usage);
            (fault.why, fault.hint)
        };
        let (why, hint) = said(Thing::Nodes, "state=foo", nodes::SELECTABLE);
        assert_eq!(
            why,
            "there is no state `foo`; it is one of connected, disconnected, quarantined, revoked"
        );
        assert_eq!(hint, None);
        let (_, hint) = said(Thing::Runs, "node=foo,state!=timedout", &["node", "state"]);
        assert_eq!(hint.unwrap(), "did you mean `timed_out`?");
        field_selector(Thing::Audit, "actor=foo", &["actor"]).unwrap();
    }

    #[test]
    fn a_run_is_named_by_its_job_and_node() {
        let facts = Thing::Runs.facts();
        let view = view(&["job_id", "node"]);
        let names = ["j/web-1".to_owned(), "k".to_owned()];
        assert_eq!(
            name_condition(facts, &view, &names).unwrap(),
            "(CAST(\"job_id\" AS TEXT) IN ('k') OR CAST(\"node\" AS TEXT) IN ('k') \
             OR (CAST(\"job_id\" AS TEXT) = 'j' AND CAST(\"node\" AS TEXT) = 'web-1'))"
        );
    }

    #[test]
    fn keeps_unknown_columns() {
        let columns = ["extra", "node", "job_id"].map(str::to_owned);
        let (fields, order) = arrange(Thing::Runs.facts(), &columns);
        assert_eq!(order, [2, 1, 0]);
        assert_eq!(
            fields.last().map(|field| (field.key.as_str(), field.shown)),
            Some(("extra", Shown::Never))
        );
    }

    #[test]
    fn gives_columns_their_meaning() {
        assert!(matches!(
            meaning("created_at", Cell::text("2026-01-01T00:00:00Z")),
            Cell::Time(_)
        ));
        assert!(matches!(
            meaning("labels", Cell::text("{\"a\":\"b\"}")),
            Cell::Labels(_)
        ));
        assert!(matches!(
            meaning("message", Cell::text("{}")),
            Cell::Text(_)
        ));
    }
}
