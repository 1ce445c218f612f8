//! Columns of integers: constant ones cost a few bytes, the others are differences, byte plane after byte plane.
//!
//! A column is its unit, its form, its first value, and what follows as differences (form `0x1w`) or differences
//! of differences (`0x2w`), each in zigzag and `w` bytes wide. The lowest bytes of all columns come first, then the
//! next ones: what is alike stands together, which is most of what makes it small when it is compressed.

use super::{
    ChunkError,
    bytes::{self, Bytes, low_byte, put_signed, unzigzag, zigzag},
    unit::Unit,
};

const CONSTANT: u8 = 0;
const ONCE: u8 = 0x10;
const TWICE: u8 = 0x20;

/// What one series has, in its order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub(super) unit: Unit,
    pub(super) mantissas: Vec<i64>,
}

impl Column {
    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let unit = self.unit;
        self.mantissas.iter().map(move |m| unit.value(*m))
    }
}

/// Columns on their way to a chunk.
#[derive(Debug, Default)]
pub(super) struct Columns {
    heads: Vec<Head>,
    residuals: Vec<u64>,
    mantissas: Vec<i64>,
}

#[derive(Debug)]
struct Head {
    unit: Unit,
    order: u8,
    width: u8,
    first: i64,
    /// Where its residuals end.
    end: usize,
}

impl Columns {
    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.residuals.clear();
    }

    /// Adds values in the unit they fit. Without any nothing is added.
    pub(super) fn push(&mut self, values: &[f64]) {
        let Some(first) = values.first() else {
            return;
        };
        let mut mantissas = std::mem::take(&mut self.mantissas);
        let same = values
            .iter()
            .all(|value| value.to_bits() == first.to_bits());
        let fitted = if same {
            std::slice::from_ref(first)
        } else {
            values
        };
        let unit = Unit::fit(fitted, &mut mantissas);
        self.push_integers(unit, &mantissas);
        self.mantissas = mantissas;
    }

    /// Adds values as they are in a unit. One stands for any number of the same.
    pub(super) fn push_integers(&mut self, unit: Unit, mantissas: &[i64]) {
        let Some((first, rest)) = mantissas.split_first() else {
            return;
        };
        let mut head = Head {
            unit,
            order: CONSTANT,
            width: 0,
            first: *first,
            end: self.residuals.len(),
        };
        if rest.iter().any(|m| m != first) {
            (head.order, head.width) = self.push_residuals(*first, rest);
            head.end = self.residuals.len();
        }
        self.heads.push(head);
    }

    fn push_residuals(&mut self, first: i64, rest: &[i64]) -> (u8, u8) {
        let (mut before, mut difference) = (first, 0_i64);
        // Bits that each order would take, and which any value takes.
        let (mut once, mut twice) = ((0_u32, 0_u64), (0_u32, 0_u64));
        for mantissa in rest {
            let step = mantissa.wrapping_sub(before);
            let (one, two) = (zigzag(step), zigzag(step.wrapping_sub(difference)));
            once = (once.0 + 64 - one.leading_zeros(), once.1 | one);
            twice = (twice.0 + 64 - two.leading_zeros(), twice.1 | two);
            (before, difference) = (*mantissa, step);
        }
        let order = if twice.0 < once.0 { TWICE } else { ONCE };
        let all = if order == TWICE { twice.1 } else { once.1 };
        (before, difference) = (first, 0);
        for mantissa in rest {
            let step = mantissa.wrapping_sub(before);
            let residual = if order == TWICE {
                step.wrapping_sub(difference)
            } else {
                step
            };
            self.residuals.push(zigzag(residual));
            (before, difference) = (*mantissa, step);
        }
        (order, width(all))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.heads.iter().map(|head| head.unit.code()));
        out.extend(self.heads.iter().map(|head| head.order | head.width));
        for head in &self.heads {
            put_signed(out, head.first);
        }
        for plane in 0..8_u8 {
            let mut start = 0;
            for head in &self.heads {
                if plane < head.width {
                    let residuals = self.residuals.get(start..head.end).unwrap_or_default();
                    out.extend(residuals.iter().map(|r| low_byte(r >> (8 * plane))));
                }
                start = head.end;
            }
        }
    }
}

/// Bytes of the widest of these, whose bits are united here.
fn width(all: u64) -> u8 {
    low_byte(u64::from((64 - all.leading_zeros()).div_ceil(8)))
}

/// Reads the columns that are wanted of those that have so many values each. Columns of none are empty.
pub(super) fn read(
    bytes: &mut Bytes<'_>,
    counts: &[usize],
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<(usize, Column)>, ChunkError> {
    let filled: Vec<(usize, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(index, count)| (index, *count))
        .collect();
    let units = bytes.take(filled.len())?;
    let forms = bytes.take(filled.len())?;
    let mut columns = Vec::with_capacity(filled.len());
    for (((index, count), unit), form) in filled.into_iter().zip(units).zip(forms) {
        let unit = Unit::from_code(*unit).ok_or(ChunkError::Damaged("there is no such unit"))?;
        let (order, width) = (form & 0xf0, form & 0x0f);
        let known = match order {
            CONSTANT => width == 0,
            ONCE | TWICE => (1..=8).contains(&width),
            _ => false,
        };
        if !known {
            return Err(ChunkError::Damaged("there is no such form"));
        }
        columns.push(Reading {
            index,
            count,
            unit,
            order,
            width,
            first: 0,
            residuals: Vec::new(),
        });
    }
    for column in &mut columns {
        column.first = bytes.signed()?;
    }
    let wanted = |column: &Reading| wanted(column.index);
    for plane in 0..8 {
        for column in &mut columns {
            if plane >= column.width {
                continue;
            }
            let part = bytes.take(column.count - 1)?;
            if !wanted(column) {
                continue;
            }
            column.residuals.resize(part.len(), 0);
            for (residual, byte) in column.residuals.iter_mut().zip(part) {
                *residual |= u64::from(*byte) << (8 * plane);
            }
        }
    }
    Ok(columns
        .into_iter()
        .filter(wanted)
        .map(|column| (column.index, column.finish()))
        .collect())
}

struct Reading {
    index: usize,
    count: usize,
    unit: Unit,
    order: u8,
    width: u8,
    first: i64,
    residuals: Vec<u64>,
}

impl Reading {
    fn finish(self) -> Column {
        let mut mantissas = Vec::with_capacity(self.count);
        mantissas.push(self.first);
        if self.order == CONSTANT {
            mantissas.resize(self.count, self.first);
        }
        let (mut value, mut step) = (self.first, 0_i64);
        for residual in self.residuals {
            let residual = unzigzag(residual);
            step = if self.order == TWICE {
                step.wrapping_add(residual)
            } else {
                residual
            };
            value = value.wrapping_add(step);
            mantissas.push(value);
        }
        Column {
            unit: self.unit,
            mantissas,
        }
    }
}

/// Times, which mostly are as far apart as the ones before.
pub(super) fn write_times(out: &mut Vec<u8>, times: impl Iterator<Item = i64>) {
    let (mut before, mut step) = (0_i64, 0_i64);
    for (index, time) in times.enumerate() {
        let now = time.wrapping_sub(before);
        put_signed(out, now.wrapping_sub(step));
        // The first one's distance from the epoch foretells nothing.
        step = if index == 0 { 0 } else { now };
        before = time;
    }
}

/// Reads so many times, each of which must be later than the one before.
pub(super) fn read_times(bytes: &mut Bytes<'_>, count: usize) -> Result<Vec<i64>, ChunkError> {
    let mut times: Vec<i64> = Vec::with_capacity(count);
    let mut step = 0_i64;
    for _ in 0..count {
        let now = bytes.signed()?.wrapping_add(step);
        let Some(before) = times.last().copied() else {
            times.push(now);
            continue;
        };
        let time = before.wrapping_add(now);
        if time <= before {
            return Err(ChunkError::Damaged("its times do not rise"));
        }
        times.push(time);
        step = now;
    }
    Ok(times)
}

/// Runs of equal numbers.
pub(super) fn write_runs(out: &mut Vec<u8>, numbers: impl Iterator<Item = u32>) {
    let mut run: Option<(u32, usize)> = None;
    let mut end = |run: Option<(u32, usize)>| {
        if let Some((number, length)) = run {
            bytes::put(out, u64::from(number));
            bytes::put_size(out, length);
        }
    };
    for number in numbers {
        run = match run {
            Some((known, length)) if known == number => Some((known, length + 1)),
            other => {
                end(other);
                Some((number, 1))
            }
        };
    }
    end(run);
}

pub(super) fn read_runs(bytes: &mut Bytes<'_>, count: usize) -> Result<Vec<u32>, ChunkError> {
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let number = bytes.number()?;
        let number =
            u32::try_from(number).map_err(|_| ChunkError::Damaged("an interval is too long"))?;
        let run = bytes.size("intervals", count - numbers.len())?;
        if run == 0 {
            return Err(ChunkError::Damaged("a run is empty"));
        }
        numbers.resize(numbers.len() + run, number);
    }
    Ok(numbers)
}
