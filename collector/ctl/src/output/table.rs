//! Tables as kubectl prints them: capitals above, two spaces or more between columns, no lines.
//!
//! Widths come from the header and the first [`SAMPLE`] rows; later rows stream, and one that is wider
//! pushes its neighbours aside rather than being cut.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width};

use super::{Cell, Style};
use crate::{
    terminal::{Colour, Paint},
    visible::visible,
};

/// Rows that are looked at before the first is written.
pub(super) const SAMPLE: usize = 500;

pub(super) struct Table {
    columns: Vec<(usize, String)>,
    headers: bool,
    paint: Paint,
    widths: Vec<u16>,
    held: Vec<Vec<Shown>>,
    begun: bool,
}

struct Shown {
    text: String,
    colour: Option<Colour>,
    number: bool,
    null: bool,
}

impl Table {
    pub(super) fn new(columns: Vec<(usize, String)>, headers: bool, paint: Paint) -> Self {
        let widths = vec![0; columns.len()];
        Self {
            columns,
            headers,
            paint,
            widths,
            held: Vec::new(),
            begun: false,
        }
    }

    pub(super) fn row(
        &mut self,
        row: &[Cell],
        style: &Style,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let shown = self.columns.iter().map(|(index, _)| {
            let cell = row.get(*index).unwrap_or(&Cell::Null);
            Shown {
                text: cell.shown(style),
                colour: cell.colour(),
                number: cell.is_number(),
                null: matches!(cell, Cell::Null),
            }
        });
        let shown = shown.collect();
        self.held.push(shown);
        if self.held.len() >= SAMPLE {
            self.write(out)
        } else {
            Ok(())
        }
    }

    pub(super) fn finish(&mut self, _style: &Style, out: &mut impl Write) -> io::Result<()> {
        if self.held.is_empty() {
            Ok(())
        } else {
            self.write(out)
        }
    }

    fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        let header = self.headers && !self.begun;
        if header {
            let headers = self.columns.iter();
            table.set_header(headers.map(|(_, header)| visible(header).into_owned()));
        }
        // Numbers stand under numbers; one among words stands where the words do.
        let numbers: Vec<bool> = (0..self.columns.len())
            .map(|column| {
                let cells = held.iter().filter_map(|row| row.get(column));
                cells.clone().any(|cell| cell.number)
                    && cells.clone().all(|cell| cell.number || cell.null)
            })
            .collect();
        for row in &held {
            table.add_row(row.iter().zip(&numbers).map(|(cell, number)| {
                let align = if *number {
                    CellAlignment::Right
                } else {
                    CellAlignment::Left
                };
                comfy_table::Cell::new(&cell.text).set_alignment(align)
            }));
        }
        for (index, width) in table.column_max_content_widths().into_iter().enumerate() {
            if let Some(known) = self.widths.get_mut(index) {
                *known = width.max(*known);
            }
        }
        let last = self.columns.len().saturating_sub(1);
        for (index, width) in self.widths.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, if index == last { 0 } else { 3 }));
                let room = width.saturating_add(if index == last { 0 } else { 3 });
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(room)));
            }
        }
        let colours = usize::from(header);
        for (number, line) in table.to_string().lines().enumerate() {
            let row = number.checked_sub(colours).and_then(|row| held.get(row));
            writeln!(out, "{}", self.coloured(line.trim_end(), row))?;
        }
        self.begun = true;
        Ok(())
    }

    /// States stand apart from other cells by at least three spaces, so the text is found as a whole word.
    fn coloured(&self, line: &str, row: Option<&Vec<Shown>>) -> String {
        let states = row
            .into_iter()
            .flatten()
            .filter_map(|cell| Some((&cell.text, cell.colour?)));
        let mut line = line.to_owned();
        for (text, colour) in states {
            let painted = self.paint.apply(colour, text);
            line = line.replacen(&format!(" {text}"), &format!(" {painted}"), 1);
        }
        line
    }
}
