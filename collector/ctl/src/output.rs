//! Rows to standard output in every format users can ask for.
//!
//! A [`Printer`] takes [`Field`]s once and then rows, and writes as they come: JSON arrays, JSON lines,
//! YAML and CSV at once, tables after the first [`table::SAMPLE`] rows have settled the widths. Programs that read
//! CSV, YAML or names get texts as they are; a terminal, and tables, get them without control characters.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write},
};

use clap::ValueEnum;
use nexus_proto::time::Timestamp;
use serde_json::{Map, Value};

use crate::{
    fault::{Fault, Outcome},
    terminal::Paint,
    visible::{visible, visible_json, visible_lines},
};

mod cell;
mod table;

pub use cell::{Cell, json_of};
use table::Table;

/// `-o`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// One JSON array (or object).
    Json,
    /// One JSON object a line.
    Jsonl,
    /// YAML.
    Yaml,
    /// Comma-separated values with a header line (RFC 4180).
    Csv,
    /// Names alone, one a line.
    Name,
}

/// Where a field shows in tables; the other formats always carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// In tables.
    Always,
    /// In wide tables.
    Wide,
    /// In no table.
    Never,
}

/// One field of every row.
#[derive(Debug, Clone)]
pub struct Field {
    /// Key in JSON, YAML and CSV.
    pub key: String,
    /// Header in tables.
    pub header: String,
    /// Where it shows.
    pub shown: Shown,
}

impl Field {
    /// With the key in capitals as its header.
    #[must_use]
    pub fn new(key: &str, shown: Shown) -> Self {
        Self {
            key: key.to_owned(),
            header: key.to_uppercase().replace('_', "-"),
            shown,
        }
    }

    /// With a header of its own.
    #[must_use]
    pub fn titled(key: &str, header: &str, shown: Shown) -> Self {
        Self {
            key: key.to_owned(),
            header: header.to_owned(),
            shown,
        }
    }
}

/// How rows are to be written.
#[derive(Debug, Clone)]
pub struct Style {
    /// `-o`
    pub format: Format,
    /// `--no-headers` leaves it false.
    pub headers: bool,
    /// `--color`, `NO_COLOR` and whether stdout is a terminal.
    pub paint: Paint,
    /// Whether a terminal reads it, which must see no control characters.
    pub terminal: bool,
    /// What ages count from.
    pub now: Timestamp,
    /// What a missing value is in a table.
    pub null: &'static str,
    /// What stands before the first field with `-o name`: `node/`.
    pub name_prefix: String,
    /// Which fields make the name that `-o name` prints, joined by `/`.
    pub name_fields: Vec<usize>,
}

impl Style {
    /// A text for a line of its own or a cell.
    fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.terminal {
            visible(text)
        } else {
            Cow::Borrowed(text)
        }
    }
}

/// Writes rows.
pub struct Printer<W: Write> {
    style: Style,
    fields: Vec<Field>,
    out: W,
    table: Table,
    rows: u64,
}

impl<W: Write> Printer<W> {
    /// A printer of rows with these fields; the header of CSV goes out at once.
    pub fn new(style: Style, fields: Vec<Field>, mut out: W) -> Outcome<Self> {
        let wide = style.format == Format::Wide;
        let columns = fields
            .iter()
            .enumerate()
            .filter(|(_, field)| {
                field.shown == Shown::Always || (wide && field.shown == Shown::Wide)
            })
            .map(|(index, field)| (index, field.header.clone()))
            .collect();
        if style.format == Format::Csv && style.headers {
            csv_line(&mut out, fields.iter().map(|field| style.text(&field.key)))?;
        }
        let table = Table::new(columns, style.headers, style.paint);
        Ok(Self {
            style,
            fields,
            out,
            table,
            rows: 0,
        })
    }

    /// Writes one row, its cells in the order of the fields.
    pub fn row(&mut self, row: &[Cell]) -> Outcome {
        let first = self.rows == 0;
        self.rows += 1;
        match self.style.format {
            Format::Table | Format::Wide => self
                .table
                .row(row, &self.style, &mut self.out)
                .map_err(broken),
            Format::Json => {
                let lead = if first { "[\n  " } else { ",\n  " };
                let object = visible_json(self.object(row).to_string());
                write!(self.out, "{lead}{object}").map_err(broken)
            }
            Format::Jsonl => {
                let object = visible_json(self.object(row).to_string());
                writeln!(self.out, "{object}").map_err(broken)
            }
            Format::Yaml => {
                let mut text = yaml(&[self.object(row)])?;
                if self.style.terminal {
                    text = visible_lines(&text).into_owned();
                }
                self.out.write_all(text.as_bytes()).map_err(broken)
            }
            Format::Csv => {
                let cells: Vec<_> = row.iter().map(Cell::plain).collect();
                let cells = cells.iter().map(|cell| self.style.text(cell));
                csv_line(&mut self.out, cells)
            }
            Format::Name => {
                let fields = self.style.name_fields.iter();
                let cells = fields.filter_map(|field| row.get(*field));
                let name = cells.map(Cell::plain).collect::<Vec<_>>().join("/");
                let name = self.style.text(&name);
                writeln!(self.out, "{}{name}", self.style.name_prefix).map_err(broken)
            }
        }
    }

    /// Ends what was begun and says how many rows there were.
    pub fn finish(mut self) -> Outcome<u64> {
        match self.style.format {
            Format::Table | Format::Wide => self.table.finish(&self.style, &mut self.out),
            Format::Json if self.rows == 0 => writeln!(self.out, "[]"),
            Format::Json => writeln!(self.out, "\n]"),
            Format::Yaml if self.rows == 0 => writeln!(self.out, "[]"),
            _ => Ok(()),
        }
        .and_then(|()| self.out.flush())
        .map_err(broken)?;
        Ok(self.rows)
    }

    /// Lets a reader see what has been written so far.
    pub fn flush(&mut self) -> Outcome {
        self.out.flush().map_err(broken)
    }

    fn object(&self, row: &[Cell]) -> Value {
        let mut object = Map::new();
        for (field, cell) in self.fields.iter().zip(row) {
            let mut key = field.key.clone();
            let mut number = 2;
            // A statement may give two columns the same name; neither may hide the other.
            while object.contains_key(&key) {
                key = format!("{}_{number}", field.key);
                number += 1;
            }
            object.insert(key, json_of(cell));
        }
        Value::Object(object)
    }
}

/// Standard output, buffered; flushed when dropped or asked.
#[must_use]
pub fn stdout() -> io::BufWriter<io::Stdout> {
    io::BufWriter::with_capacity(32 * 1024, io::stdout())
}

/// Writes one line, or a document of several, to standard output.
pub fn line(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() {
        visible_lines(text)
    } else {
        Cow::Borrowed(text)
    };
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(broken)
}

/// Writes a text that has its own colours, and nothing of others that was not made visible.
pub fn painted(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(broken)
}

/// Columns of standard output, and whether a terminal is there that shows more than ASCII.
#[must_use]
pub fn screen() -> (usize, bool) {
    const WIDTH: usize = 80;
    if !io::stdout().is_terminal() {
        return (WIDTH, false);
    }
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // The first of them that is set says it (POSIX, 8.2).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    let unicode = locale.contains("utf-8") || locale.contains("utf8");
    let dumb = set("TERM").is_none_or(|term| term == "dumb");
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
    let width = if columns == 0 { WIDTH } else { columns.into() };
    (width, unicode && !dumb)
}

/// One whole value as JSON, JSON lines or YAML; `None` for the formats that need columns.
pub fn document(format: Format, value: &Value) -> Option<Outcome<String>> {
    match format {
        Format::Json => Some(Ok(visible_json(format!("{value:#}")))),
        Format::Jsonl => Some(Ok(visible_json(value.to_string()))),
        Format::Yaml => Some(yaml(value).map(|text| text.trim_end().to_owned())),
        _ => None,
    }
}

/// A failed write to standard output. A reader that has gone away is no news.
pub fn broken(error: io::Error) -> Fault {
    let mut fault = Fault::because("write to standard output", &error);
    fault.quiet = error.kind() == io::ErrorKind::BrokenPipe;
    fault
}

/// Labels as `k=v,k2=v2`.
#[must_use]
pub fn labels_text(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn yaml<T: serde::Serialize + ?Sized>(value: &T) -> Outcome<String> {
    serde_yaml_ng::to_string(value).map_err(|error| Fault::because("write YAML", &error))
}

fn csv_line<'a>(out: &mut impl Write, cells: impl Iterator<Item = Cow<'a, str>>) -> Outcome {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let fault = |error: &dyn std::error::Error| Fault::because("write CSV", error);
    writer
        .write_record(cells.map(|cell| cell.into_owned()))
        .map_err(|error| fault(&error))?;
    let line = writer.into_inner().map_err(|error| fault(&error))?;
    out.write_all(&line).map_err(broken)
}

#[cfg(test)]
mod tests;
