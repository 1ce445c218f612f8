//! The two text formats of Prometheus: OpenMetrics 1.0.0, and 0.0.4 for those who do not ask for it.
//!
//! A family is its HELP and TYPE lines and then all of its samples, never interleaved with another's.
//! The formats differ in a counter's family name (without `_total` in OpenMetrics), in the word for an
//! untyped family, and in the closing `# EOF`.

use std::fmt::Write as _;

use nexus_proto::metrics::SeriesType;

/// Which text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Plain,
}

impl Format {
    /// What the `Accept` header asks for: the one of ours with the higher weight, 0.0.4 when in doubt.
    pub(crate) fn negotiate(accept: Option<&str>) -> Self {
        let mut open = 0.0;
        let mut plain = 0.0;
        for part in accept.unwrap_or_default().split(',') {
            let mut words = part.split(';').map(str::trim);
            let kind = words.next().unwrap_or_default();
            let mut weight = 1.0;
            let mut version = None;
            for word in words {
                if let Some(text) = word.strip_prefix("q=") {
                    weight = text.parse::<f64>().unwrap_or(0.0);
                } else if let Some(text) = word.strip_prefix("version=") {
                    version = Some(text.trim_matches('"'));
                }
            }
            match kind {
                "application/openmetrics-text" if version.is_none_or(|v| v == "1.0.0") => {
                    open = f64::max(open, weight);
                }
                "text/plain" | "text/*" | "*/*" => plain = f64::max(plain, weight),
                _ => {}
            }
        }
        if open > 0.0 && open >= plain {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    /// For the `Content-Type` header.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What ends a page.
    pub(crate) fn end(self) -> &'static str {
        match self {
            Self::OpenMetrics => "# EOF\n",
            Self::Plain => "",
        }
    }

    /// Writes a family's head.
    pub(crate) fn write_head(self, out: &mut String, name: &str, kind: SeriesType, help: &str) {
        let (family, word) = match (self, kind) {
            (Self::OpenMetrics, SeriesType::Counter) => match name.strip_suffix("_total") {
                Some(family) => (family, "counter"),
                // OpenMetrics knows no counter without the suffix.
                None => (name, "unknown"),
            },
            (Self::Plain, SeriesType::Counter) => (name, "counter"),
            (_, SeriesType::Gauge) => (name, "gauge"),
            (Self::OpenMetrics, SeriesType::Untyped) => (name, "unknown"),
            (Self::Plain, SeriesType::Untyped) => (name, "untyped"),
        };
        out.push_str("# HELP ");
        out.push_str(family);
        out.push(' ');
        match self {
            Self::OpenMetrics => escape(out, help, true),
            Self::Plain => escape(out, help, false),
        }
        out.push_str("\n# TYPE ");
        out.push_str(family);
        out.push(' ');
        out.push_str(word);
        out.push('\n');
    }
}

/// Writes one sample without a timestamp.
pub(crate) fn write_sample<'a>(
    out: &mut String,
    name: &str,
    labels: impl Iterator<Item = (impl AsRef<str>, &'a str)>,
    value: f64,
) {
    out.push_str(name);
    let mut separator = '{';
    for (key, text) in labels {
        out.push(separator);
        separator = ',';
        out.push_str(key.as_ref());
        out.push_str("=\"");
        escape(out, text, true);
        out.push('"');
    }
    if separator == ',' {
        out.push('}');
    }
    out.push(' ');
    write_value(out, value);
    out.push('\n');
}

/// Numbers as Go and so Prometheus reads them; the shortest form that reads back as the same number.
fn write_value(out: &mut String, value: f64) {
    let _infallible = if value.is_nan() {
        write!(out, "NaN")
    } else if value.is_infinite() {
        write!(out, "{}Inf", if value > 0.0 { '+' } else { '-' })
    } else if value != 0.0 && !(1e-5..1e17).contains(&value.abs()) {
        write!(out, "{value:e}")
    } else {
        write!(out, "{value}")
    };
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    // Most texts need nothing.
    if !text.contains(['\\', '\n', '"']) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

/// A page of OpenMetrics as 0.0.4: `_total` joins the family name of counters, `_info` that of infos,
/// `unknown` is `untyped`, UNIT and EOF go.
pub(crate) fn downgrade(page: &str) -> String {
    let kinds: std::collections::HashMap<&str, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut out = String::with_capacity(page.len());
    for line in page.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(what), Some(family), Some(rest)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if !matches!(what, "HELP" | "TYPE") {
            continue;
        }
        let (suffix, word) = match kinds.get(family).copied() {
            Some("counter") => ("_total", "counter"),
            Some("info") => ("_info", "gauge"),
            Some("unknown") => ("", "untyped"),
            Some(other) => ("", other),
            None => ("", "untyped"),
        };
        let rest = if what == "TYPE" { word } else { rest };
        let _infallible = writeln!(out, "# {what} {family}{suffix} {rest}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiates_as_prometheus_asks() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::negotiate(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::negotiate(None), Format::Plain);
        assert_eq!(Format::negotiate(Some("*/*")), Format::Plain);
        assert_eq!(
            Format::negotiate(Some("text/plain;q=0.9,application/openmetrics-text;q=0.1")),
            Format::Plain
        );
        assert_eq!(
            Format::negotiate(Some("application/openmetrics-text; version=9.0")),
            Format::Plain
        );
    }

    #[test]
    fn heads_follow_the_format() {
        let mut out = String::new();
        Format::OpenMetrics.write_head(&mut out, "a_total", SeriesType::Counter, "x \"y\"");
        assert_eq!(out, "# HELP a x \\\"y\\\"\n# TYPE a counter\n");
        out.clear();
        Format::Plain.write_head(&mut out, "a_total", SeriesType::Counter, "x \"y\"");
        assert_eq!(out, "# HELP a_total x \"y\"\n# TYPE a_total counter\n");
        out.clear();
        Format::OpenMetrics.write_head(&mut out, "a", SeriesType::Counter, "x");
        assert_eq!(out, "# HELP a x\n# TYPE a unknown\n");
    }

    #[test]
    fn samples_escape_labels_and_keep_numbers() {
        let mut out = String::new();
        let labels = [("a", "x\"\\\n")];
        write_sample(&mut out, "m", labels.into_iter(), 0.1 + 0.2);
        write_sample(
            &mut out,
            "m",
            std::iter::empty::<(&str, _)>(),
            f64::INFINITY,
        );
        write_sample(&mut out, "m", std::iter::empty::<(&str, _)>(), 1e300);
        write_sample(
            &mut out,
            "m",
            std::iter::empty::<(&str, _)>(),
            9_007_199_254_740_993.0,
        );
        assert_eq!(
            out,
            "m{a=\"x\\\"\\\\\\n\"} 0.30000000000000004\nm +Inf\nm 1e300\nm 9007199254740992\n"
        );
    }

    #[test]
    fn downgrades_a_page() {
        let page = "# HELP a Things.\n# TYPE a counter\na_total 1\n# HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c_seconds C.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\nc_seconds 2\n# EOF\n";
        assert_eq!(
            downgrade(page),
            "# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n# HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c_seconds C.\n# TYPE c_seconds gauge\nc_seconds 2\n"
        );
    }
}
