//! `nexusctl describe`: one thing with all that is known of it.

use nexus_proto::{
    inventory::{self, Kind},
    operator::v1::ListNodesRequest,
    time::Timestamp,
};
use serde_json::{Map, Value};

use crate::{
    cli::DescribeArgs,
    config,
    connection::Collector,
    fault::{Fault, Outcome},
    get,
    names::{self, identifier, quoted},
    nodes,
    output::{self, Cell, Field, Format, Printer, Shown, Style},
    session::{Session, within},
    thing::Thing,
};

/// Kinds of inventory that people see row by row; of the others they see how many rows there are.
const LISTED: [&str; 3] = ["interfaces", "addresses", "mounts"];
/// Runs and events that are shown.
const RECENT: u32 = 5;

/// Rows under one heading.
struct Section {
    name: &'static str,
    fields: Vec<Field>,
    rows: Vec<Vec<Cell>>,
}

pub(crate) async fn describe(session: &Session, args: &DescribeArgs) -> Outcome {
    let rest: Vec<_> = args.name.iter().cloned().collect();
    let (thing, names) = Thing::parse_named(&args.thing, &rest)?;
    let facts = thing.facts();
    let [name] = names.as_slice() else {
        return Err(
            Fault::usage("describe", format!("name one {}", facts.singular))
                .hint(format!("nexusctl describe {}/NAME", facts.singular)),
        );
    };
    let work = async {
        let mut collector = session.connect().await?;
        if thing == Thing::Nodes {
            return node(session, args, &mut collector, name).await;
        }
        let name = match thing {
            Thing::Jobs | Thing::Tokens => {
                names::whole_id(&mut collector, name, facts.plural, facts.singular).await?
            }
            _ => name.clone(),
        };
        let wanted = get::Wanted {
            names: vec![name],
            ..get::Wanted::default()
        };
        let (fields, rows) = get::lookup(&mut collector, thing, &wanted).await?;
        for row in rows {
            let keys = fields.iter().map(|field| field.key.as_str());
            config::one(session, &args.output, keys.zip(row).collect())?;
        }
        Ok(())
    };
    within(
        args.timeout,
        &format!("describe {}/{name}", facts.singular),
        work,
    )
    .await
}

async fn node(
    session: &Session,
    args: &DescribeArgs,
    collector: &mut Collector,
    name: &str,
) -> Outcome {
    let request = ListNodesRequest {
        names: vec![name.to_owned()],
        ..ListNodesRequest::default()
    };
    let node = collector.nodes(request).await?.into_iter().next();
    let node = node.ok_or_else(|| {
        Fault::new(
            format!("describe node/{name}"),
            format!("there is no node `{name}`"),
        )
    })?;
    let id = nodes::id_text(&node.id);
    let fields = nodes::fields();
    let cells = nodes::cells(node);
    let mut sections = Vec::new();
    for kind in inventory::SCHEMA {
        sections.push(section(collector, kind, &id).await?);
    }
    for (thing, name) in [(Thing::Runs, "runs"), (Thing::Events, "events")] {
        let wanted = get::Wanted {
            conditions: vec![format!("node_id = {}", quoted(&id))],
            limit: RECENT,
            ..get::Wanted::default()
        };
        let (fields, rows) = get::lookup(collector, thing, &wanted).await?;
        sections.push(Section { name, fields, rows });
    }
    if matches!(args.output.output, Format::Table | Format::Wide) {
        return print(session.style(&args.output), &fields, cells, sections);
    }
    let mut entries: Vec<_> = fields
        .iter()
        .map(|field| field.key.as_str())
        .zip(cells)
        .collect();
    let (recent, inventory): (Vec<_>, Vec<_>) = sections
        .iter()
        .partition(|section| matches!(section.name, "runs" | "events"));
    let all: Map<_, _> = inventory
        .iter()
        .map(|s| (s.name.to_owned(), objects(s)))
        .collect();
    entries.push(("inventory", Cell::Json(Value::Object(all))));
    entries.extend(
        recent
            .iter()
            .map(|section| (section.name, Cell::Json(objects(section)))),
    );
    config::one(session, &args.output, entries)
}

async fn section(collector: &mut Collector, kind: &'static Kind, id: &str) -> Outcome<Section> {
    let columns: Vec<_> = kind
        .columns
        .iter()
        .map(|column| identifier(column.name))
        .collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE node_id = {} ORDER BY 1",
        columns.join(", "),
        identifier(kind.name),
        quoted(id)
    );
    let rows = collector.rows(&sql).await?.rows;
    let fields: Vec<_> = kind
        .columns
        .iter()
        .map(|column| Field::new(column.name, Shown::Always))
        .collect();
    let rows = rows.into_iter().map(|row| {
        let cells = kind.columns.iter().zip(row);
        cells
            .map(|(column, cell)| meaning(column.name, cell))
            .collect()
    });
    Ok(Section {
        name: kind.name,
        rows: rows.collect(),
        fields,
    })
}

/// Inventory has its times in seconds since the epoch.
fn meaning(column: &str, cell: Cell) -> Cell {
    match cell {
        Cell::Integer(seconds) if column.ends_with("_at") => {
            Cell::Time(Timestamp(seconds.saturating_mul(1000)))
        }
        other => other,
    }
}

fn objects(section: &Section) -> Value {
    let rows = section.rows.iter().map(|row| {
        let pairs = section.fields.iter().zip(row);
        pairs
            .map(|(field, cell)| (field.key.clone(), output::json_of(cell)))
            .collect::<Value>()
    });
    rows.collect()
}

fn print(style: Style, fields: &[Field], cells: Vec<Cell>, sections: Vec<Section>) -> Outcome {
    use std::io::Write as _;

    let mut out = output::stdout();
    let keys = fields.iter().map(|field| field.key.replace('_', " "));
    let rows: Vec<_> = keys
        .zip(cells)
        .map(|(key, cell)| vec![Cell::Text(key), cell])
        .collect();
    write!(out, "{}", table(&style, &pair_fields(), rows, "")?).map_err(output::broken)?;
    for section in sections {
        let text = shown(&style, section)?;
        write!(out, "{text}").map_err(output::broken)?;
    }
    out.flush().map_err(output::broken)
}

fn shown(style: &Style, section: Section) -> Outcome<String> {
    let Section { name, fields, rows } = section;
    let recent = matches!(name, "runs" | "events");
    if rows.is_empty() {
        return Ok(format!("{name}: {}\n", style.null));
    }
    if recent || LISTED.contains(&name) {
        return Ok(format!("{name}:\n{}", table(style, &fields, rows, "  ")?));
    }
    if rows.len() > 1 {
        return Ok(format!("{name}: {}\n", rows.len()));
    }
    let keys = fields.iter().map(|field| field.key.replace('_', " "));
    let cells = rows.into_iter().flatten();
    let rows = keys
        .zip(cells)
        .map(|(key, cell)| vec![Cell::Text(key), cell])
        .collect();
    Ok(format!(
        "{name}:\n{}",
        table(style, &pair_fields(), rows, "  ")?
    ))
}

fn pair_fields() -> Vec<Field> {
    vec![
        Field::titled("key", "", Shown::Always),
        Field::titled("value", "", Shown::Always),
    ]
}

fn table(style: &Style, fields: &[Field], rows: Vec<Vec<Cell>>, indent: &str) -> Outcome<String> {
    let headers = style.headers && fields.iter().any(|field| !field.header.is_empty());
    let style = Style {
        format: Format::Table,
        headers,
        ..style.clone()
    };
    let mut text = Vec::new();
    let mut printer = Printer::new(style, fields.to_vec(), &mut text)?;
    for row in rows {
        printer.row(&row)?;
    }
    printer.finish()?;
    let text = String::from_utf8_lossy(&text);
    Ok(text
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect())
}
