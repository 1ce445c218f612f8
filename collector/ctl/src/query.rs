//! `nexusctl query`: SQL over the fleet.

use std::io::Read as _;

use nexus_proto::operator::v1::{QueryRequest, QuerySchemaRequest, QuerySchemaResponse};

use crate::{
    cli::QueryArgs,
    connection::{Collector, fault},
    fault::{Context as _, Fault, Outcome},
    output::{self, Cell, Field, Format, Printer, Shown},
    session::Session,
    terminal,
};

pub(crate) async fn query(session: &Session, args: &QueryArgs) -> Outcome {
    let as_of_ms = session.as_of(args.as_of.as_deref())?;
    let sql = match args.sql.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .doing("read standard input")?;
            text
        }
        Some(text) => text.to_owned(),
        None => String::new(),
    };
    if !args.schema && sql.trim().is_empty() {
        return Err(Fault::usage("query", "the statement is empty")
            .hint("`nexusctl query --schema` lists the tables"));
    }
    let mut collector = session.connect().await?;
    if args.schema {
        return schema(session, args, &mut collector).await;
    }
    let timeout = args.timeout.map_or(0, |span| {
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    });
    let request = collector.request(QueryRequest {
        sql,
        as_of_ms,
        timeout_ms: timeout,
        limit: args.limit.unwrap_or(0),
    });
    let work = stream(session, args, &mut collector, request);
    match args.timeout {
        // The collector ends it at that time; this one is for a collector that does not.
        Some(span) => {
            let span = span.saturating_add(std::time::Duration::from_secs(5));
            crate::session::within(span, "query", work).await
        }
        None => work.await,
    }
}

async fn stream(
    session: &Session,
    args: &QueryArgs,
    collector: &mut Collector,
    request: tonic::Request<QueryRequest>,
) -> Outcome {
    let mut stream = collector
        .client
        .query(request)
        .await
        .map_err(fault)?
        .into_inner();
    let mut printer = None;
    let mut truncated = false;
    while let Some(message) = stream.message().await.map_err(fault)? {
        truncated |= message.truncated;
        if printer.is_none() {
            let fields = message.columns.iter().map(|name| {
                let shown = Shown::Always;
                Field {
                    key: name.clone(),
                    header: name.to_uppercase(),
                    shown,
                }
            });
            let style = output::Style {
                null: "NULL",
                ..session.style(&args.output)
            };
            printer = Some(Printer::new(style, fields.collect(), output::stdout())?);
        }
        if let Some(printer) = &mut printer {
            for row in message.rows {
                let row = row
                    .values
                    .into_iter()
                    .map(|value| Cell::from_wire(value.value));
                printer.row(&row.collect::<Vec<_>>())?;
            }
            printer.flush()?;
        }
    }
    let rows = match printer {
        Some(printer) => printer.finish()?,
        None => 0,
    };
    if rows == 0 && matches!(args.output.output, Format::Table | Format::Wide) {
        terminal::say("no rows");
    }
    if truncated {
        terminal::warn(&format!(
            "the answer was cut after {rows} rows; see --limit"
        ));
    }
    Ok(())
}

/// The views there are.
pub(crate) async fn views(collector: &mut Collector) -> Outcome<QuerySchemaResponse> {
    let request = collector.request(QuerySchemaRequest {});
    Ok(collector
        .client
        .query_schema(request)
        .await
        .map_err(fault)?
        .into_inner())
}

async fn schema(session: &Session, args: &QueryArgs, collector: &mut Collector) -> Outcome {
    let views = views(collector).await?.views;
    let fields = vec![
        Field::titled("table", "TABLE", Shown::Always),
        Field::titled("column", "COLUMN", Shown::Always),
        Field::new("type", Shown::Always),
        Field::titled("about", "MEANING", Shown::Always),
        Field::titled("table_about", "TABLE-MEANING", Shown::Never),
    ];
    let mut printer = Printer::new(session.style(&args.output), fields, output::stdout())?;
    let names_only = args.output.output == Format::Name;
    for view in views {
        if names_only {
            printer.row(&[Cell::text(view.name)])?;
            continue;
        }
        for column in view.columns {
            printer.row(&[
                Cell::text(view.name.clone()),
                Cell::text(column.name),
                Cell::text(column.r#type),
                Cell::text(column.about),
                Cell::text(view.about.clone()),
            ])?;
        }
    }
    printer.finish().map(drop)
}
