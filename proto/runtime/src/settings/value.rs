//! What a setting holds, and how its text is read: the same in flags, variables and defaults, and for the
//! strings of a file.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use toml::de::{DeInteger, DeValue};

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A path; empty is unset.
    Path,
    /// `10s`, `1h30m`, `250ms`; a bare `0`.
    Duration,
    /// `64MiB`, `1GiB`, or a bare number of bytes. K, M, G and T are powers of 1024 with or without `iB`.
    Bytes,
    /// A whole number from `min` to `max`.
    Integer {
        /// Lowest.
        min: i64,
        /// Highest.
        max: i64,
    },
    /// `true` or `false`.
    Boolean,
    /// Texts: an array, or separated by commas.
    List,
    /// Text by name: a section, or `a=b,c=d`.
    Table,
}

/// A value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Text`] and [`Kind::Choice`].
    Text(String),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Duration`].
    Duration(Duration),
    /// Of [`Kind::Bytes`].
    Bytes(u64),
    /// Of [`Kind::Integer`].
    Integer(i64),
    /// Of [`Kind::Boolean`].
    Boolean(bool),
    /// Of [`Kind::List`].
    List(Vec<String>),
    /// Of [`Kind::Table`].
    Table(BTreeMap<String, String>),
}

impl Kind {
    /// Reads a flag's, a variable's or a default's text.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text => Ok(Value::Text(text.to_owned())),
            Self::Choice(names) if names.contains(&text) => Ok(Value::Text(text.to_owned())),
            Self::Choice(names) => Err(format!("`{text}` is none of {}", names.join(", "))),
            Self::Path => Ok(Value::Path(text.into())),
            Self::Duration => duration(text).map(Value::Duration),
            Self::Bytes => bytes(text).map(Value::Bytes),
            Self::Integer { min, max } => {
                let number = text
                    .parse()
                    .map_err(|_| format!("`{text}` is no whole number"))?;
                in_range(number, min, max)
            }
            Self::Boolean => match text {
                "true" => Ok(Value::Boolean(true)),
                "false" => Ok(Value::Boolean(false)),
                _ => Err(format!("`{text}` is neither true nor false")),
            },
            Self::List => Ok(Value::List(split(text).map(str::to_owned).collect())),
            Self::Table => split(text)
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
                    None => Err(format!("`{pair}` is no name=value")),
                })
                .collect::<Result<_, _>>()
                .map(Value::Table),
        }
    }

    /// Reads a file's value. A table is read entry by entry, elsewhere.
    pub(super) fn read(self, value: &DeValue<'_>) -> Result<Value, String> {
        match (self, value) {
            (Self::Integer { min, max }, DeValue::Integer(number)) => {
                in_range(integer(number)?, min, max)
            }
            (Self::Bytes, DeValue::Integer(number)) => u64::try_from(integer(number)?)
                .map(Value::Bytes)
                .map_err(|_| format!("{number} is negative")),
            (Self::Boolean, DeValue::Boolean(truth)) => Ok(Value::Boolean(*truth)),
            (Self::List, DeValue::Array(items)) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    other => Err(format!("the list holds {}, not only text", article(other))),
                })
                .collect::<Result<_, _>>()
                .map(Value::List),
            (
                Self::Text | Self::Choice(_) | Self::Path | Self::Duration | Self::Bytes,
                DeValue::String(text),
            ) => self.parse(text),
            (_, other) => Err(format!("{} instead of {}", article(other), self.noun())),
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "a text in quotes",
            Self::Path => "a path in quotes",
            Self::Duration => "a duration such as \"10s\"",
            Self::Bytes => "a size such as \"64MiB\"",
            Self::Integer { .. } => "a whole number",
            Self::Boolean => "true or false",
            Self::List => "a list of texts",
            Self::Table => "a section of name = \"value\"",
        }
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn in_range(number: i64, min: i64, max: i64) -> Result<Value, String> {
    if (min..=max).contains(&number) {
        Ok(Value::Integer(number))
    } else {
        Err(format!("{number} is not within {min} to {max}"))
    }
}

fn integer(number: &DeInteger<'_>) -> Result<i64, String> {
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{number} is out of range"))
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is no duration such as 10s or 1h30m"))
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text.strip_prefix(digits).unwrap_or_default().trim();
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("`{text}` is no size such as 64MiB")),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is no size such as 64MiB"))?;
    count
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is out of range"))
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// As TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quoted(text).fmt(f),
            Self::Path(path) => quoted(&path.to_string_lossy()).fmt(f),
            Self::Duration(span) => write!(f, "\"{}\"", compact(*span)),
            Self::Bytes(size) => {
                let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
                let whole = |shift: u32| *size > 0 && size.trailing_zeros() >= shift;
                match units.into_iter().find(|(shift, _)| whole(*shift)) {
                    Some((shift, unit)) => write!(f, "\"{}{unit}\"", size >> shift),
                    None => size.fmt(f),
                }
            }
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(truth) => truth.fmt(f),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Table(entries) if entries.is_empty() => f.write_str("{}"),
            Self::Table(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)))
                    .collect();
                write!(f, "{{ {} }}", entries.join(", "))
            }
        }
    }
}

/// `1h 30m` without the space, as it is usually written.
fn compact(span: Duration) -> String {
    humantime::format_duration(span)
        .to_string()
        .replace(' ', "")
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
