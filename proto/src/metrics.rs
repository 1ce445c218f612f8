//! Metric samples and their coding: what changed since the report before, in as few bytes as that takes.
//!
//! A stream of reports (one upload, one spool segment) begins with a key frame, which defines every
//! series it mentions; from then on a report carries only the series whose value changed, as the
//! difference of an integer mantissa. A key frame now and then bounds what one lost report can cost.
//! Decoding gives back every value bit for bit: a mantissa is used only when the decoder's arithmetic
//! on it yields exactly the double that was sampled, anything else travels as the double itself.
//! `record.proto` describes the message.

mod decode;
mod encode;
mod pool;
mod scale;

use std::{fmt, sync::Arc};

use crate::{agent::v1 as wire, limits};

pub use decode::Decoder;
pub use encode::Encoder;
pub use pool::KeyPool;
pub use scale::Scale;

/// The identity of a series: a metric's name with its labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// `node_cpu_seconds_total`.
    pub name: String,
    /// Names and values, sorted by name, no name twice.
    pub labels: Vec<(String, String)>,
}

impl SeriesKey {
    /// A key of these labels, in any order.
    #[must_use]
    pub fn new(name: &str, labels: &[(&str, &str)]) -> Self {
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        labels.sort_unstable();
        Self {
            name: name.to_owned(),
            labels,
        }
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Bytes of the name and the labels together, as [`limits::SERIES_BYTES`] counts them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let labels = self
            .labels
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.name.len() + labels.sum::<usize>()
    }

    /// Whether it is a series Prometheus would take, within our limits.
    pub fn check(&self) -> Result<(), MetricError> {
        if self.bytes() > limits::SERIES_BYTES {
            return Err(MetricError::KeyTooLong {
                name: self.name.chars().take(64).collect(),
                bytes: self.bytes(),
            });
        }
        let ordered = self.labels.iter().zip(self.labels.iter().skip(1));
        let sorted = ordered
            .into_iter()
            .all(|((before, _), (after, _))| before < after);
        let labels_named = self.labels.iter().all(|(name, _)| is_name(name, false));
        if is_name(&self.name, true) && labels_named && sorted {
            Ok(())
        } else {
            Err(MetricError::BadKey(self.to_string()))
        }
    }
}

/// Prometheus' grammar of metric names and, without colons, of label names.
fn is_name(name: &str, colons: bool) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || (colons && byte == b':');
    let mut bytes = name.bytes();
    bytes.next().is_some_and(letter) && bytes.all(|byte| letter(byte) || byte.is_ascii_digit())
}

impl fmt::Display for SeriesKey {
    /// As Prometheus writes it: `name{a="b",c="d"}`, with `\`, `"` and line ends escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (index, (name, value)) in self.labels.iter().enumerate() {
            write!(f, "{}{name}=\"", if index == 0 { '{' } else { ',' })?;
            let mut rest = value.as_str();
            while let Some(at) = rest.find(['\\', '"', '\n']) {
                let (plain, special) = rest.split_at(at);
                f.write_str(plain)?;
                let mut chars = special.chars();
                match chars.next() {
                    Some('\n') => f.write_str("\\n")?,
                    Some(other) => write!(f, "\\{other}")?,
                    None => {}
                }
                rest = chars.as_str();
            }
            write!(f, "{rest}\"")?;
        }
        f.write_str(if self.labels.is_empty() { "" } else { "}" })
    }
}

/// What a series' values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SeriesType {
    /// Not said.
    Untyped,
    /// Only rises, but for restarts.
    Counter,
    /// Rises and falls.
    Gauge,
}

impl SeriesType {
    /// As the text formats name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Untyped => "untyped",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }

    /// From a wire enum.
    pub fn from_wire(number: i32) -> Result<Self, MetricError> {
        match wire::SeriesType::try_from(number) {
            Ok(wire::SeriesType::Untyped) => Ok(Self::Untyped),
            Ok(wire::SeriesType::Counter) => Ok(Self::Counter),
            Ok(wire::SeriesType::Gauge) => Ok(Self::Gauge),
            Err(_) => Err(MetricError::Type(number)),
        }
    }

    /// As a wire enum.
    #[must_use]
    pub fn to_wire(self) -> wire::SeriesType {
        match self {
            Self::Untyped => wire::SeriesType::Untyped,
            Self::Counter => wire::SeriesType::Counter,
            Self::Gauge => wire::SeriesType::Gauge,
        }
    }
}

/// One value of one series.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Which series; shared by all samples of it.
    pub key: Arc<SeriesKey>,
    /// What the value means.
    pub kind: SeriesType,
    /// The value, absolute, in the series' base unit.
    pub value: f64,
}

impl PartialEq for Sample {
    /// Equal to the bit, so that NaN equals itself.
    fn eq(&self, other: &Self) -> bool {
        self.value.to_bits() == other.value.to_bits()
            && self.kind == other.kind
            && self.key == other.key
    }
}

/// All that one sampling of a host gave: absolute values, no series twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Time between samplings, in milliseconds.
    pub interval_ms: u32,
    /// The samples, in no particular order.
    pub samples: Vec<Sample>,
}

impl Snapshot {
    /// The sample of a series.
    #[must_use]
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Sample> {
        let key = SeriesKey::new(name, labels);
        self.samples.iter().find(|sample| *sample.key == key)
    }
}

/// A report that cannot be decoded. The decoder then takes nothing but a key frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetricError {
    /// Differences without the values they differ from.
    #[error("the report continues a stream whose key frame was not seen")]
    NoKeyFrame,
    /// Two lists that belong together.
    #[error("{ids} {what} come with {values} values")]
    Uneven {
        /// Which lists.
        what: &'static str,
        /// Length of the ids.
        ids: usize,
        /// Length of the values.
        values: usize,
    },
    /// An id that no series has.
    #[error("series {0} is not defined")]
    Undefined(u32),
    /// An id that a series has already.
    #[error("series {0} is defined twice")]
    Redefined(u32),
    /// Ids that do not rise.
    #[error("series ids do not rise after {0}")]
    Unordered(u32),
    /// A series under two ids.
    #[error("{0} stands under two ids")]
    Duplicate(String),
    /// Names that are none, or labels out of order.
    #[error("`{0}` is no series key: bad names, or labels not sorted")]
    BadKey(String),
    /// More than [`limits::SERIES_BYTES`].
    #[error(
        "the key of `{name}…` has {bytes} bytes, more than {limit}",
        limit = limits::SERIES_BYTES
    )]
    KeyTooLong {
        /// The beginning of its name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// More than [`limits::STREAM_KEY_BYTES`].
    #[error(
        "the keys of all series have {0} bytes, more than {limit}",
        limit = limits::STREAM_KEY_BYTES
    )]
    KeysTooLong(usize),
    /// More than [`limits::SERIES`].
    #[error("series {id} is beyond the limit of {limit} series", limit = limits::SERIES)]
    TooMany {
        /// The first id beyond.
        id: u32,
    },
    /// A type outside the enum.
    #[error("series type {0} does not exist")]
    Type(i32),
    /// Digits outside what doubles can mean.
    #[error("{0} decimal digits are more than a value can have")]
    Scale(u32),
}

#[cfg(test)]
mod tests;
