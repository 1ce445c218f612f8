//! The two axes of a chart: round numbers, and times of day.

use nexus_proto::time::Timestamp;

/// How a metric's values are written, by the unit its name ends with, as Prometheus names metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// In multiples of 1024.
    Bytes,
    /// In multiples of 1000.
    Plain,
    /// In bytes per second.
    ByteRate,
    /// Per second.
    Rate,
}

impl Unit {
    pub(super) fn of(metric: &str, rate: bool) -> Self {
        let name = metric.strip_suffix("_total").unwrap_or(metric);
        match (name.ends_with("_bytes"), rate) {
            (true, false) => Self::Bytes,
            (true, true) => Self::ByteRate,
            (false, false) => Self::Plain,
            (false, true) => Self::Rate,
        }
    }

    pub(super) fn is_rate(self) -> bool {
        matches!(self, Self::ByteRate | Self::Rate)
    }

    /// What numbers as large as this are divided by, and what then stands behind them.
    fn prefix(self, largest: f64) -> (f64, &'static str) {
        let (base, prefixes): (f64, [&str; 6]) = match self {
            Self::Bytes | Self::ByteRate => (1024.0, ["", "Ki", "Mi", "Gi", "Ti", "Pi"]),
            Self::Plain | Self::Rate => (1000.0, ["", "k", "M", "G", "T", "P"]),
        };
        let mut divisor = 1.0;
        let mut chosen = "";
        for prefix in prefixes {
            chosen = prefix;
            if largest < divisor * base {
                break;
            }
            divisor *= base;
        }
        // The last prefix is for whatever is larger.
        let beyond = base.powi(5);
        (divisor.min(beyond), chosen)
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Bytes => "B",
            Self::ByteRate => "B/s",
            Self::Plain => "",
            Self::Rate => "/s",
        }
    }

    /// A value by itself.
    pub(super) fn write(self, value: f64) -> String {
        if !value.is_finite() {
            return "-".to_owned();
        }
        let (divisor, prefix) = self.prefix(value.abs());
        let scaled = value / divisor;
        let decimals = match scaled.abs() {
            0.0 => 0,
            small if small < 0.001 => return format!("{scaled:.2e}{prefix}{}", self.suffix()),
            small if small < 1.0 => 4,
            small if small < 100.0 => 2,
            _ => 1,
        };
        let digits = format!("{scaled:.decimals$}");
        let digits = match digits.contains('.') {
            true => digits.trim_end_matches('0').trim_end_matches('.'),
            false => &digits,
        };
        format!("{digits}{prefix}{}", self.suffix())
    }
}

/// The axis of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Values {
    pub(super) low: f64,
    pub(super) high: f64,
    /// Value and its label, lowest first.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Values {
    /// An axis that holds both, with about so many ticks.
    pub(super) fn new(low: f64, high: f64, ticks: usize, unit: Unit) -> Self {
        let (mut low, mut high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // From nothing on, unless that would press the line flat.
        if low > 0.0 && low < high * 0.6 {
            low = 0.0;
        }
        if low >= high {
            let around = (high.abs() * 0.1).max(f64::MIN_POSITIVE.sqrt());
            let around = if high == 0.0 { 1.0 } else { around };
            (low, high) = (if low == 0.0 { 0.0 } else { low - around }, high + around);
        }
        let (divisor, prefix) = unit.prefix(low.abs().max(high.abs()));
        let count = u32::try_from(ticks.max(1)).map_or(1.0, f64::from);
        let step = round((high - low) / divisor / count);
        let (first, last) = (
            (low / divisor / step).floor(),
            (high / divisor / step).ceil(),
        );
        let decimals = decimals(step);
        let mut ticks = Vec::new();
        let mut at = first;
        // Finite, since a step is never far smaller than the span it divides.
        while at <= last && ticks.len() < 64 {
            let value = at * step;
            // No minus before nothing.
            let value = if value == 0.0 { 0.0 } else { value };
            let label = format!("{value:.decimals$}{prefix}{}", unit.suffix());
            ticks.push((value * divisor, label));
            at += 1.0;
        }
        Self {
            low: first * step * divisor,
            high: last * step * divisor,
            ticks,
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0]
        .into_iter()
        .map(|times| times * power)
        .find(|round| *round >= step * 0.999);
    found.unwrap_or(power * 10.0)
}

fn decimals(step: f64) -> usize {
    let mut decimals = 0;
    let mut scaled = step;
    while decimals < 9 && (scaled - scaled.round()).abs() > scaled * 1e-6 {
        scaled *= 10.0;
        decimals += 1;
    }
    decimals
}

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Distances of marks on the axis of time.
const MARKS: [i64; 21] = [
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    7 * DAY,
    30 * DAY,
    90 * DAY,
    365 * DAY,
];

/// Times for about so many marks between two times, each with its label, in UTC.
pub(super) fn times(from: Timestamp, to: Timestamp, marks: usize) -> Vec<(i64, String)> {
    let span = to.as_ms().saturating_sub(from.as_ms());
    let wanted = span / i64::try_from(marks.max(1)).unwrap_or(i64::MAX);
    let distance = MARKS.into_iter().find(|mark| *mark >= wanted);
    let distance = distance.unwrap_or(365 * DAY * (1 + wanted / (365 * DAY)));
    let first = from.as_ms().div_euclid(distance).saturating_mul(distance);
    let mut found = Vec::new();
    let mut at = first;
    while at <= to.as_ms() && found.len() < 64 {
        if at >= from.as_ms() {
            found.push((at, label(Timestamp(at), distance)));
        }
        at = at.saturating_add(distance);
    }
    found
}

/// `15:04:05`, `15:04` or `01-31`, by how far marks are apart.
fn label(time: Timestamp, distance: i64) -> String {
    let text = time.to_string();
    let part = match distance {
        ..MINUTE => text.get(11..19),
        MINUTE..DAY => text.get(11..16),
        _ => text.get(5..10),
    };
    part.unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &Values) -> Vec<&str> {
        values
            .ticks
            .iter()
            .map(|(_, label)| label.as_str())
            .collect()
    }

    #[test]
    fn values_get_round_numbers() {
        let of = |low, high, unit| Values::new(low, high, 4, unit);
        assert_eq!(
            labels(&of(0.1, 1.7, Unit::Plain)),
            ["0.0", "0.5", "1.0", "1.5", "2.0"]
        );
        let flat = of(3.0, 3.0, Unit::Plain);
        assert!(flat.low < 3.0 && flat.high > 3.0, "{flat:?}");
        assert_eq!(labels(&of(0.0, 0.0, Unit::Plain)).first(), Some(&"0.0"));
        let gib = 1024.0 * 1024.0 * 1024.0;
        assert_eq!(
            labels(&of(3.1 * gib, 3.9 * gib, Unit::Bytes)),
            ["3.0GiB", "3.2GiB", "3.4GiB", "3.6GiB", "3.8GiB", "4.0GiB"]
        );
        assert!(labels(&of(-5.0, 5.0, Unit::Rate)).contains(&"0/s"));
        for (low, high) in [(1e-12, 2e-12), (1e300, 2e300), (-1e9, -1e9), (5e15, 5e15)] {
            let values = of(low, high, Unit::Plain);
            assert!(values.low <= low && values.high >= high, "{values:?}");
            assert!((2..64).contains(&values.ticks.len()), "{values:?}");
        }
    }

    #[test]
    fn single_values_are_short() {
        for (unit, value, text) in [
            (Unit::Plain, 0.0, "0"),
            (Unit::Plain, 0.25, "0.25"),
            (Unit::Plain, 1234.0, "1.23k"),
            (Unit::Plain, 100.0, "100"),
            (Unit::Bytes, 1536.0, "1.5KiB"),
            (Unit::ByteRate, 10.0, "10B/s"),
            (Unit::Rate, 0.000_01, "1.00e-5/s"),
            (Unit::Plain, f64::INFINITY, "-"),
        ] {
            assert_eq!(unit.write(value), text);
        }
        assert_eq!(
            Unit::of("node_network_receive_bytes_total", true),
            Unit::ByteRate
        );
    }

    #[test]
    fn times_get_marks_of_the_clock() {
        let day = Timestamp(1_700_006_400_000); // 2023-11-15T00:00:00Z
        let hours = |hours: i64| Timestamp(day.as_ms() + hours * HOUR);
        let texts = |from, to| -> Vec<String> {
            times(from, to, 5)
                .into_iter()
                .map(|(_, label)| label)
                .collect()
        };
        assert_eq!(texts(day, hours(6)), ["00:00", "02:00", "04:00", "06:00"]);
        assert_eq!(texts(day, hours(24 * 5)).first().unwrap(), "11-15");
        assert_eq!(texts(day, Timestamp(day.as_ms() + 20_000)).len(), 5);
        assert!(times(Timestamp(i64::MIN / 4), Timestamp(i64::MAX / 4), 5).len() < 64);
    }
}
