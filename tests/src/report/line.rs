//! A line of a benchmark's output, and how people write its value.

use serde_json::{Map, Value};

/// Parameters that tell figures of one kind apart, in this order.
const TELLING: [&str; 13] = [
    "agents",
    "targets",
    "transport",
    "question",
    "over",
    "part",
    "strangers",
    "killed",
    "series",
    "seconds",
    "seconds_of_load",
    "samples_per_series",
    "program",
];

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) bench: String,
    pub(super) figure: String,
    pub(super) subject: String,
    pub(super) value: f64,
    pub(super) unit: String,
    pub(super) params: Map<String, Value>,
}

impl Line {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        Some(Self {
            bench: text("bench")?,
            figure: text("figure")?,
            subject: text("subject")?,
            unit: text("unit")?,
            value: value.get("value")?.as_f64()?,
            params: value.get("params")?.as_object()?.clone(),
        })
    }

    /// What tells it from others of its kind.
    pub(super) fn circumstances(&self) -> String {
        let told = TELLING.iter().filter_map(|name| {
            let value = self.params.get(*name)?;
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            Some(format!("{name} {value}"))
        });
        told.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn is_ours(&self) -> bool {
        self.subject.starts_with("nexus")
    }
}

/// A value as people write it.
pub(super) fn human(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let fits = steps.iter().find(|(step, _)| value.abs() >= *step);
        fits.or(steps.last()).map_or_else(
            || value.to_string(),
            |(step, name)| format!("{} {name}", digits(value / step)),
        )
    };
    match unit {
        "bytes" => scaled(&[
            (1_099_511_627_776.0, "TiB"),
            (1_073_741_824.0, "GiB"),
            (1_048_576.0, "MiB"),
            (1024.0, "KiB"),
            (1.0, "B"),
        ]),
        "bytes/second" => format!("{}/s", human(value, "bytes")),
        "seconds" => scaled(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]),
        "ratio" => format!("{} %", digits(value * 100.0)),
        _ => format!("{} {unit}", digits(value)),
    }
}

/// Three digits that count, and all of a whole number.
fn digits(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_people_do() {
        for (value, unit, expected) in [
            (0.0003, "seconds", "300 µs"),
            (0.0123, "seconds", "12.3 ms"),
            (61.0, "seconds", "61 s"),
            (5_452_595.2, "bytes", "5.20 MiB"),
            (1.29, "bytes", "1.29 B"),
            (2048.0, "bytes/second", "2 KiB/s"),
            (0.052, "ratio", "5.20 %"),
            (0.0, "seconds", "0 µs"),
            (199_876.4, "samples/second", "199876 samples/second"),
        ] {
            assert_eq!(human(value, unit), expected);
        }
    }
}
