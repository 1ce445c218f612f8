//! Sections of inventory.

use prost::{
    Message as _,
    bytes::Bytes,
    encoding::{WireType, encode_key, encode_varint},
};

use crate::{agent::v1 as wire, limits};

use super::{RecordError, check_limit, check_reason};

/// One kind of inventory of one node, whole. Its columns stand in [`crate::inventory::SCHEMA`]; a
/// kind that is not there comes from a newer agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Which kind.
    pub kind: String,
    /// Of the rows; zeros when they could not be read.
    pub hash: [u8; 32],
    /// Sorted, none twice.
    pub rows: Vec<Row>,
    /// Why the rows could not be read. The rows known before stay valid.
    pub error: Option<String>,
}

/// Cells in the order of the kind's columns; missing ones at the end are null.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Row(pub Vec<Cell>);

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Cell {
    /// Unknown, or not applicable.
    #[default]
    Null,
    /// UTF-8.
    Text(String),
    /// A count, an id, or a size in the column's unit.
    Integer(i64),
}

impl Section {
    /// The section of these rows, in any order.
    #[must_use]
    pub fn new(kind: &str, mut rows: Vec<Row>) -> Self {
        rows.sort_unstable();
        rows.dedup();
        Self {
            kind: kind.to_owned(),
            hash: hash_sorted(kind, rows.iter()),
            rows,
            error: None,
        }
    }

    /// The section that says its rows cannot be read.
    #[must_use]
    pub fn failed(kind: &str, error: String) -> Self {
        Self {
            kind: kind.to_owned(),
            hash: [0; 32],
            rows: Vec::new(),
            error: Some(error),
        }
    }

    /// As a message.
    #[must_use]
    pub fn to_wire(&self) -> wire::InventorySection {
        wire::InventorySection {
            kind: self.kind.clone(),
            hash: Bytes::copy_from_slice(&self.hash),
            rows: Some(wire::InventoryRows {
                rows: self.rows.iter().map(Row::to_wire).collect(),
            }),
            error: self.error.clone().unwrap_or_default(),
        }
    }

    /// From a message, whose hash must be that of its rows.
    pub fn from_wire(section: wire::InventorySection) -> Result<Self, RecordError> {
        let kind = section.kind;
        let letters = kind
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if kind.is_empty() || kind.len() > 64 || !letters {
            return Err(RecordError::Kind(kind.chars().take(64).collect()));
        }
        if !section.error.is_empty() {
            check_reason("bytes of a section's error", &section.error)?;
            return Ok(Self::failed(&kind, section.error));
        }
        let rows = section.rows.unwrap_or_default().rows;
        check_limit("rows of a section", rows.len(), limits::SECTION_ROWS)?;
        let rows = rows
            .into_iter()
            .map(Row::from_wire)
            .collect::<Result<_, _>>()?;
        let parsed = Self::new(&kind, rows);
        if parsed.hash.as_slice() == section.hash {
            Ok(parsed)
        } else {
            Err(RecordError::Hash(kind))
        }
    }
}

impl Row {
    /// As a message.
    #[must_use]
    pub fn to_wire(&self) -> wire::InventoryRow {
        wire::InventoryRow {
            cells: self.0.iter().map(Cell::to_wire).collect(),
        }
    }

    /// From a message.
    pub fn from_wire(row: wire::InventoryRow) -> Result<Self, RecordError> {
        check_limit("cells of a row", row.cells.len(), 64)?;
        row.cells
            .into_iter()
            .map(Cell::from_wire)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Cell {
    /// As a message.
    #[must_use]
    pub fn to_wire(&self) -> wire::Cell {
        wire::Cell {
            value: match self {
                Self::Null => None,
                Self::Text(text) => Some(wire::cell::Value::Text(text.clone())),
                Self::Integer(integer) => Some(wire::cell::Value::Integer(*integer)),
            },
        }
    }

    /// From a message.
    pub fn from_wire(cell: wire::Cell) -> Result<Self, RecordError> {
        match cell.value {
            None => Ok(Self::Null),
            Some(wire::cell::Value::Text(text)) => {
                check_limit("bytes of a cell", text.len(), limits::CELL_BYTES)?;
                Ok(Self::Text(text))
            }
            Some(wire::cell::Value::Integer(integer)) => Ok(Self::Integer(integer)),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(integer: i64) -> Self {
        Self::Integer(integer)
    }
}

impl From<u32> for Cell {
    fn from(integer: u32) -> Self {
        Self::Integer(integer.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The hash of a section of these rows, in any order.
#[must_use]
pub fn section_hash(kind: &str, rows: &[Row]) -> [u8; 32] {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    hash_sorted(kind, sorted.into_iter())
}

/// Row by row, so that a long section is never encoded as a whole.
fn hash_sorted<'a>(kind: &str, rows: impl Iterator<Item = &'a Row>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes()).update(&[0]);
    let mut buffer = Vec::new();
    for row in rows {
        let row = row.to_wire();
        buffer.clear();
        encode_key(1, WireType::LengthDelimited, &mut buffer);
        encode_varint(
            row.encoded_len().try_into().unwrap_or(u64::MAX),
            &mut buffer,
        );
        row.encode_raw(&mut buffer);
        hasher.update(&buffer);
    }
    hasher.finalize().into()
}
