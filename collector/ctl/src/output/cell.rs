//! One value of a row.

use std::collections::BTreeMap;

use bytes::Bytes;
use nexus_proto::{operator::v1::sql_value::Value as Wire, time::Timestamp};
use serde_json::{Number, Value};

use super::{Style, labels_text};
use crate::{terminal::Colour, visible::visible, when};

/// A value with what is known of its meaning.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Not there.
    Null,
    /// A number of anything.
    Integer(i64),
    /// A number that may exceed `i64`.
    Unsigned(u64),
    /// A floating-point number.
    Real(f64),
    /// Words.
    Text(String),
    /// A state, coloured by how good it is.
    State(String),
    /// Bytes, shown in hexadecimal.
    Blob(Bytes),
    /// A point in time: an age in tables, RFC 3339 elsewhere.
    Time(Timestamp),
    /// Labels: an object in JSON.
    Labels(BTreeMap<String, String>),
    /// Any other structure.
    Json(Value),
}

impl Cell {
    /// From a query's answer.
    #[must_use]
    pub fn from_wire(value: Option<Wire>) -> Self {
        match value {
            None => Self::Null,
            Some(Wire::Integer(number)) => Self::Integer(number),
            Some(Wire::Real(number)) => Self::Real(number),
            Some(Wire::Text(text)) => Self::Text(text),
            Some(Wire::Blob(bytes)) => Self::Blob(bytes),
        }
    }

    /// An empty text is nothing.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.is_empty() {
            Self::Null
        } else {
            Self::Text(text)
        }
    }

    /// A time that may be missing.
    #[must_use]
    pub fn time(ms: Option<i64>) -> Self {
        ms.map_or(Self::Null, |ms| Self::Time(Timestamp(ms)))
    }

    /// As CSV and `-o name` have it: nothing for a missing value.
    #[must_use]
    pub fn plain(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Integer(number) => number.to_string(),
            Self::Unsigned(number) => number.to_string(),
            Self::Real(number) => real_text(*number),
            Self::Text(text) | Self::State(text) => text.clone(),
            Self::Blob(bytes) => hex(bytes),
            Self::Time(time) => time.to_string(),
            Self::Labels(labels) => labels_text(labels),
            Self::Json(value) => value.to_string(),
        }
    }

    /// As a table has it, on one line and without control characters.
    pub(super) fn shown(&self, style: &Style) -> String {
        match self {
            Self::Null => style.null.to_owned(),
            Self::Time(time) => when::age_of(*time, style.now),
            Self::Labels(labels) if labels.is_empty() => style.null.to_owned(),
            other => visible(&other.plain()).into_owned(),
        }
    }

    /// How good a state is.
    pub(super) fn colour(&self) -> Option<Colour> {
        let Self::State(state) = self else {
            return None;
        };
        Colour::of_state(state)
    }

    /// Whether tables align it to the right.
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Integer(_) | Self::Unsigned(_) | Self::Real(_))
    }
}

/// As JSON has it.
#[must_use]
pub fn json_of(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(number) => Value::from(*number),
        Cell::Unsigned(number) => Value::from(*number),
        // JSON has no infinities; as text they are at least not lost.
        Cell::Real(number) => Number::from_f64(*number)
            .map_or_else(|| Value::String(real_text(*number)), Value::Number),
        Cell::Text(_) | Cell::State(_) | Cell::Blob(_) | Cell::Time(_) => {
            Value::String(cell.plain())
        }
        Cell::Labels(labels) => labels
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.clone())))
            .collect(),
        Cell::Json(value) => value.clone(),
    }
}

fn real_text(number: f64) -> String {
    if number.is_finite() {
        format!("{number:?}")
    } else {
        number.to_string()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
