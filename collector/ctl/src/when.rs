//! Times and spans as users write and read them.
//!
//! A TIME is RFC 3339, `now`, or an age such as `-10m` or `7d`; a span is `90s`, `10m`, `1h30m`, `7d`, or a bare `0`. Other
//! numbers need a unit: what is four hours to one is four seconds to another.

use std::time::Duration;

use nexus_proto::time::Timestamp;

/// Reads a span.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(0) => return Ok(Duration::ZERO),
        Ok(_) => {
            return Err(format!(
                "`{text}` has no unit: write {text}s, {text}m, {text}h or {text}d"
            ));
        }
        Err(_) => {}
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is no span of time such as 90s, 10m or 1h30m"))
}

/// Reads a TIME relative to `now`.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if text == "now" {
        return Ok(now);
    }
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let age = text.strip_prefix('-').unwrap_or(text);
    match humantime::parse_duration(age) {
        Ok(age) => Ok(now.before(age)),
        Err(_) => Err(format!(
            "`{text}` is no time: give RFC 3339 such as 2026-01-31T23:59:59Z, now, or an age such as -10m or 7d"
        )),
    }
}

/// An age as kubectl shows it: two units at most, coarser as it grows.
#[must_use]
pub fn age(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if hours < 3 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        pair(days, "d", hours % 24, "h")
    } else if days < 730 {
        format!("{days}d")
    } else {
        pair(days / 365, "y", days % 365, "d")
    }
}

/// The age of `time`; a time ahead of us says so.
#[must_use]
pub fn age_of(time: Timestamp, now: Timestamp) -> String {
    if time > now.after(Duration::from_secs(1)) {
        format!("in {}", age(time.since(now)))
    } else {
        age(now.since(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        let now = Timestamp(1_700_000_000_000);
        assert_eq!(parse_time("now", now), Ok(now));
        assert_eq!(parse_time("-10m", now), Ok(Timestamp(1_699_999_400_000)));
        assert_eq!(
            parse_time("7d", now),
            Ok(now.before(Duration::from_secs(7 * 86_400)))
        );
        assert_eq!(parse_time("2023-11-14T22:13:20Z", now), Ok(now));
        assert!(
            parse_time("yesterday", now)
                .unwrap_err()
                .contains("`yesterday` is no time")
        );
    }

    #[test]
    fn reads_spans() {
        assert_eq!(parse_span("0"), Ok(Duration::ZERO));
        assert_eq!(parse_span("4m"), Ok(Duration::from_secs(240)));
        let why = "`4` has no unit: write 4s, 4m, 4h or 4d";
        assert_eq!(parse_span("4"), Err(why.to_owned()));
        assert_eq!(parse_span("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_span("-5s").is_err());
        assert!(parse_span("soon").is_err());
    }

    #[test]
    fn shows_ages() {
        for (seconds, shown) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3599, "59m"),
            (4 * 3600 + 60, "4h1m"),
            (47 * 3600, "47h"),
            (3 * 86_400, "3d"),
            (3 * 86_400 + 7200, "3d2h"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), shown);
        }
        assert_eq!(age_of(Timestamp(60_000), Timestamp(0)), "in 60s");
    }
}
