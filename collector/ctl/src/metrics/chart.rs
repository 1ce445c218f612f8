//! Lines in a terminal: of dots, eight a character (Unicode's Braille patterns), or of ASCII marks.

use std::{collections::BTreeSet, time::Duration};

use nexus_proto::time::Timestamp;

use super::{
    scale::{Unit, Values, times},
    series::Series,
};
use crate::{
    terminal::{Colour, Paint},
    visible::visible,
};

/// Lines of the plot itself.
const ROWS: usize = 12;
/// Columns that a chart is not narrower, nor wider, than.
const NARROW: usize = 40;
const WIDE: usize = 200;
/// What tells lines apart where no colour does.
const MARKS: [char; 6] = ['*', '+', 'o', 'x', '#', '@'];
/// A line is broken where nothing came for so many times its usual distance.
const GAP: i64 = 3;

/// What lines are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Two columns and four rows of dots a character.
    Dots,
    /// One mark a character.
    Marks,
}

/// A place to draw on.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    width: usize,
    ink: Ink,
    from: Timestamp,
    to: Timestamp,
}

impl Canvas {
    /// So many columns wide, axis included.
    pub(super) fn new(width: usize, ink: Ink) -> Self {
        Self {
            width: width.clamp(NARROW, WIDE),
            ink,
            from: Timestamp(0),
            to: Timestamp(0),
        }
    }

    /// Of this span of time.
    pub(super) fn over(self, from: Timestamp, to: Timestamp) -> Self {
        Self { from, to, ..self }
    }

    /// The step that makes about a point a column: whole minutes or hours where it is that long, which are what a
    /// collector keeps for longer.
    pub(super) fn step(&self, span: Duration) -> Duration {
        let columns = u32::try_from(self.width).unwrap_or(u32::MAX);
        let step = (span / columns).as_secs() + 1;
        let whole = match step {
            3601.. => 3600,
            61.. => 60,
            _ => 1,
        };
        Duration::from_secs(step.next_multiple_of(whole))
    }

    /// The plot, its axes, and what each line is.
    pub(super) fn draw(&self, all: &[Series], unit: Unit, paint: Paint) -> String {
        // Dots of several lines are told apart by colour alone.
        let told_apart = all.len() < 2 || paint != Paint::PLAIN;
        let ink = if told_apart { self.ink } else { Ink::Marks };
        let low = all.iter().map(Series::lowest).fold(f64::INFINITY, f64::min);
        let high = all
            .iter()
            .map(Series::highest)
            .fold(f64::NEG_INFINITY, f64::max);
        let values = Values::new(low, high, 4, unit);
        let labels = values.ticks.iter().map(|(_, label)| label.len());
        let margin = labels.max().unwrap_or(0);
        let columns = self.width.saturating_sub(margin + 2).max(1);
        let mut plot = Plot::new(columns, ink);
        // The first line is drawn last, over the others.
        for (number, series) in all.iter().enumerate().rev() {
            self.line(&mut plot, number, series, &values);
        }
        let mut text = String::new();
        let (wall, tick, corner, floor) = match self.ink {
            Ink::Dots => ('│', '┤', '└', '─'),
            Ink::Marks => ('|', '+', '+', '-'),
        };
        for row in 0..ROWS {
            let label = values.ticks.iter().find(|(value, _)| {
                ROWS - 1 - cell(fraction(*value, values.low, values.high), ROWS) == row
            });
            let edge = if label.is_some() { tick } else { wall };
            let label = label.map_or("", |(_, label)| label.as_str());
            let line = format!("{label:>margin$} {edge}{}", plot.row(row, paint));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let (axis, below) = self.time_axis(columns, floor);
        text.push_str(&format!("{:margin$} {corner}{axis}\n", ""));
        text.push_str(format!("{:margin$}  {below}", "").trim_end());
        text.push('\n');
        text.push_str(&legend(all, unit, ink, self.ink, paint, self.width));
        text
    }

    fn line(&self, plot: &mut Plot, number: usize, series: &Series, values: &Values) {
        let (width, height) = plot.size();
        let x = |time_ms: i64| {
            let span = float(self.to.as_ms().saturating_sub(self.from.as_ms()));
            let into = float(time_ms.saturating_sub(self.from.as_ms()));
            cell(into / span.max(1.0), width)
        };
        let y = |value: f64| cell(fraction(value, values.low, values.high), height);
        let usual = usual_distance(series);
        let mut before: Option<(i64, usize, usize)> = None;
        for dot in &series.dots {
            let (at, to) = (x(dot.time_ms), y(dot.value));
            for row in y(dot.low)..=y(dot.high) {
                plot.set(at, row, number);
            }
            if let Some((time, from_x, from_y)) = before
                && dot.time_ms.saturating_sub(time) <= usual.saturating_mul(GAP)
            {
                plot.join((from_x, from_y), (at, to), number);
            }
            before = Some((dot.time_ms, at, to));
        }
    }

    /// The line under the plot, and the times under that.
    fn time_axis(&self, columns: usize, floor: char) -> (String, String) {
        let mut axis: Vec<char> = vec![floor; columns];
        let mut below = String::new();
        let span = float(self.to.as_ms().saturating_sub(self.from.as_ms())).max(1.0);
        for (time, label) in times(self.from, self.to, columns / 12) {
            let into = float(time.saturating_sub(self.from.as_ms()));
            let at = cell(into / span, columns);
            let start = at.saturating_sub(label.len() / 2);
            let room = below.len() + usize::from(!below.is_empty());
            if start >= room && start + label.len() <= columns {
                below.push_str(&" ".repeat(start - below.len()));
                below.push_str(&label);
                if let Some(mark) = axis.get_mut(at) {
                    *mark = if self.ink == Ink::Dots { '┬' } else { '+' };
                }
            }
        }
        let zone = "UTC";
        if below.len() + 1 + zone.len() <= columns {
            below.push(' ');
            below.push_str(zone);
        }
        (axis.into_iter().collect(), below)
    }
}

/// The characters of a plot and whose they are.
struct Plot {
    columns: usize,
    ink: Ink,
    cells: Vec<(u8, usize)>,
}

impl Plot {
    fn new(columns: usize, ink: Ink) -> Self {
        Self {
            columns,
            ink,
            cells: vec![(0, 0); columns * ROWS],
        }
    }

    /// In dots.
    fn size(&self) -> (usize, usize) {
        match self.ink {
            Ink::Dots => (self.columns * 2, ROWS * 4),
            Ink::Marks => (self.columns, ROWS),
        }
    }

    /// Sets a dot, counted from the lower left.
    fn set(&mut self, x: usize, y: usize, whose: usize) {
        let (column, row, bit) = match self.ink {
            Ink::Marks => (x, y, 1),
            Ink::Dots => {
                // Bits of a pattern: 1 2 3 7 down its left, 4 5 6 8 down its right.
                const BITS: [[u8; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];
                let bit = BITS.get(x % 2).and_then(|side| side.get(y % 4));
                (x / 2, y / 4, bit.copied().unwrap_or(0))
            }
        };
        let Some(top) = (ROWS - 1).checked_sub(row) else {
            return;
        };
        if let Some((bits, owner)) = self.cells.get_mut(top * self.columns + column) {
            *bits |= bit;
            *owner = whose;
        }
    }

    /// Sets the dots between two.
    fn join(&mut self, (x0, y0): (usize, usize), (x1, y1): (usize, usize), whose: usize) {
        let steps = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
        let between = |a: usize, b: usize, step: usize| {
            if a <= b {
                a + (b - a) * step / steps
            } else {
                a - (a - b) * step / steps
            }
        };
        for step in 0..=steps {
            self.set(between(x0, x1, step), between(y0, y1, step), whose);
        }
    }

    fn row(&self, row: usize, paint: Paint) -> String {
        let cells = self
            .cells
            .iter()
            .skip(row * self.columns)
            .take(self.columns);
        let mut text = String::new();
        let mut run = String::new();
        let mut of = None;
        let end = |run: &mut String, of: Option<usize>, text: &mut String| {
            match of {
                Some(whose) => text.push_str(&paint.apply(Colour::numbered(whose), run)),
                None => text.push_str(run),
            }
            run.clear();
        };
        for (bits, whose) in cells {
            let owner = (*bits != 0).then_some(*whose);
            if owner != of {
                end(&mut run, of, &mut text);
                of = owner;
            }
            run.push(match (owner, self.ink) {
                (None, _) => ' ',
                (Some(_), Ink::Dots) => char::from_u32(0x2800 + u32::from(*bits)).unwrap_or(' '),
                (Some(whose), Ink::Marks) => mark(whose),
            });
        }
        if of.is_some() {
            end(&mut run, of, &mut text);
        }
        text
    }
}

fn mark(number: usize) -> char {
    MARKS.get(number % MARKS.len()).copied().unwrap_or('*')
}

/// A line a series: how it is drawn, what it is, its lowest, highest and last value.
fn legend(all: &[Series], unit: Unit, ink: Ink, screen: Ink, paint: Paint, width: usize) -> String {
    let names: BTreeSet<&str> = all
        .iter()
        .flat_map(|series| series.labels.keys().map(String::as_str))
        .collect();
    let value = |series: &Series, name: &str| series.labels.get(name).cloned();
    // What all have in common tells nothing, but for a series alone.
    let told: Vec<&str> = names
        .into_iter()
        .filter(|name| {
            all.len() < 2
                || all.iter().any(|series| {
                    Some(value(series, name)) != all.first().map(|first| value(first, name))
                })
        })
        .collect();
    let mut rows = vec![["SERIES", "MIN", "MAX", "LAST"].map(str::to_owned)];
    for series in all {
        let labels = told.iter().filter_map(|name| {
            let value = series.labels.get(*name)?;
            Some(format!("{name}={}", visible(value)))
        });
        let labels: Vec<_> = labels.collect();
        let last = series.dots.last().map_or(f64::NAN, |dot| dot.value);
        let last = series
            .points
            .last()
            .filter(|_| !unit.is_rate())
            .map_or(last, |point| point.last);
        rows.push([
            labels.join(","),
            unit.write(series.lowest()),
            unit.write(series.highest()),
            unit.write(last),
        ]);
    }
    let most = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (low, high, last) = (most(1), most(2), most(3));
    let room = width.saturating_sub(low + high + last + 8).max(8);
    let label = most(0).min(room);
    let mut text = String::new();
    for (number, [name, min, max, newest]) in rows.into_iter().enumerate() {
        let sign = match (number.checked_sub(1), ink) {
            (None, _) => " ".to_owned(),
            (Some(number), Ink::Dots) => paint.apply(Colour::numbered(number), "●"),
            (Some(number), Ink::Marks) => {
                paint.apply(Colour::numbered(number), &mark(number).to_string())
            }
        };
        let name = shortened(&name, label, screen);
        let line = format!("{sign} {name:<label$}  {min:>low$}  {max:>high$}  {newest:>last$}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shortened(text: &str, most: usize, screen: Ink) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let dots = if screen == Ink::Dots { "…" } else { "..." };
    let kept = most.saturating_sub(dots.chars().count());
    text.chars().take(kept).chain(dots.chars()).collect()
}

/// The median distance of a series' points.
fn usual_distance(series: &Series) -> i64 {
    let next = series.dots.iter().skip(1);
    let mut distances: Vec<i64> = series
        .dots
        .iter()
        .zip(next)
        .map(|(a, b)| b.time_ms.saturating_sub(a.time_ms))
        .collect();
    distances.sort_unstable();
    distances.get(distances.len() / 2).copied().unwrap_or(0)
}

fn fraction(value: f64, low: f64, high: f64) -> f64 {
    // Halved, so that their difference is finite.
    (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0)
}

/// Which of so many cells holds this part of the whole.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and a few hundred"
)]
fn cell(part: f64, cells: usize) -> usize {
    let last = cells.saturating_sub(1);
    (part.clamp(0.0, 1.0) * float(i64::try_from(last).unwrap_or(0))).round() as usize
}

#[expect(clippy::cast_precision_loss, reason = "a chart is coarser than that")]
fn float(number: i64) -> f64 {
    number as f64
}
