//! `node/web-1 'node_cpu_seconds_total{mode="idle",cpu!="0"}'`: Prometheus' way to name series, of equality alone.
//!
//! Quotes around a value may be left out, since shells eat them.

use super::series::Series;
use crate::{
    fault::{Fault, Outcome},
    thing::Thing,
};

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Name or id.
    pub(super) node: String,
    pub(super) metric: String,
    pub(super) matchers: Vec<Matcher>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matcher {
    pub(super) label: String,
    pub(super) value: String,
    pub(super) unequal: bool,
}

impl Wanted {
    /// From `node/NAME METRIC` or `node NAME METRIC`.
    pub(super) fn parse(words: &[String]) -> Outcome<Self> {
        let (kind, node, rest) = match words {
            [first, rest @ ..] if first.contains('/') => {
                let (kind, node) = first.split_once('/').unwrap_or((first, ""));
                (kind, node, rest)
            }
            [kind, node, rest @ ..] => (kind.as_str(), node.as_str(), rest),
            [kind, rest @ ..] => (kind.as_str(), "", rest),
            [] => ("", "", words),
        };
        let usage = |why: String| Fault::usage("command line", why);
        if Thing::parse(kind)? != Thing::Nodes {
            return Err(usage(format!("only nodes have metrics, no {kind}")));
        }
        if node.is_empty() {
            return Err(usage(format!("`{}` names no node", words.join(" ")))
                .hint("nexusctl metrics node/NAME METRIC"));
        }
        match rest {
            [series] => {
                let (metric, matchers) = parse_series(series)
                    .map_err(|why| Fault::usage(format!("command line: {series}"), why))?;
                Ok(Self {
                    node: node.to_owned(),
                    metric,
                    matchers,
                })
            }
            [] => Err(usage("which metric is not said".to_owned()).hint(format!(
                "nexusctl query \"SELECT DISTINCT name FROM metrics WHERE node = '{node}'\""
            ))),
            [_, ..] => Err(
                usage("one metric of one node is shown at a time".to_owned())
                    .hint("quote a metric with labels: 'node_cpu_seconds_total{mode=\"idle\"}'"),
            ),
        }
    }

    /// As it was asked for.
    pub(super) fn series(&self) -> String {
        if self.matchers.is_empty() {
            return self.metric.clone();
        }
        let matchers = self.matchers.iter().map(|matcher| {
            let sign = if matcher.unequal { "!=" } else { "=" };
            format!("{}{sign}\"{}\"", matcher.label, matcher.value)
        });
        let matchers: Vec<_> = matchers.collect();
        format!("{}{{{}}}", self.metric, matchers.join(","))
    }
}

/// How one of these series can be asked for alone.
pub(super) fn example(metric: &str, all: &[Series]) -> String {
    let label = all.first().and_then(|series| {
        // A label that tells series apart, if there is one.
        let differs = |name: &str, value: &str| {
            let held = |other: &Series| other.labels.get(name).is_some_and(|held| held == value);
            !all.iter().all(held)
        };
        let mut labels = series.labels.iter();
        labels.find(|(name, value)| differs(name, value))
    });
    label.map_or_else(
        || format!("{metric}{{…}}"),
        |(name, value)| format!("{metric}{{{name}=\"{value}\"}}"),
    )
}

fn parse_series(text: &str) -> Result<(String, Vec<Matcher>), String> {
    let (name, rest) = match text.split_once('{') {
        None => (text, None),
        Some((name, rest)) => (name, Some(rest)),
    };
    let name = name.trim();
    if !is_name(name, true) {
        return Err(format!("`{name}` is no name of a metric"));
    }
    let mut matchers = Vec::new();
    let Some(rest) = rest else {
        return Ok((name.to_owned(), matchers));
    };
    let mut rest = rest.trim();
    while !rest.starts_with('}') {
        let (matcher, after) = parse_matcher(rest)?;
        matchers.push(matcher);
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
        } else if !rest.starts_with('}') {
            return Err("after a label comes `,` or `}`".to_owned());
        }
    }
    match rest.strip_prefix('}').map(str::trim) {
        Some("") => Ok((name.to_owned(), matchers)),
        _ => Err("something stands after `}`".to_owned()),
    }
}

/// A matcher and what stands after it.
fn parse_matcher(text: &str) -> Result<(Matcher, &str), String> {
    let end = text.find(['=', '!', ',', '}']).unwrap_or(text.len());
    let (label, rest) = text.split_at(end);
    let label = label.trim();
    if !is_name(label, false) {
        return Err(format!(
            "`{label}` is no name of a label, which comes before = or !="
        ));
    }
    if rest.starts_with("=~") || rest.starts_with("!~") {
        return Err("labels are compared with = and !=, not with patterns".to_owned());
    }
    let (unequal, rest) = match (rest.strip_prefix("!="), rest.strip_prefix('=')) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(format!("after `{label}` comes = or !=")),
    };
    let rest = rest.trim_start();
    let (value, rest) = match rest.strip_prefix('"') {
        Some(rest) => parse_quoted(rest)?,
        None => {
            let end = rest.find([',', '}']).unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            (value.trim().to_owned(), rest)
        }
    };
    let matcher = Matcher {
        label: label.to_owned(),
        value,
        unequal,
    };
    Ok((matcher, rest))
}

/// A text up to its closing quote, with `\\`, `\"` and `\n` read.
fn parse_quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            Some('"') => return Ok((value, chars.as_str())),
            Some('\\') => match chars.next() {
                Some('n') => value.push('\n'),
                Some(c @ ('\\' | '"')) => value.push(c),
                _ => return Err("after \\ comes n, \" or \\".to_owned()),
            },
            Some(c) => value.push(c),
            None => return Err("a quote is not closed".to_owned()),
        }
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    text.chars().all(good) && !text.starts_with(|c: char| c.is_ascii_digit()) && !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Exit;

    fn parse(words: &[&str]) -> Outcome<Wanted> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Wanted::parse(&words)
    }

    #[test]
    fn reads_nodes_metrics_and_labels() {
        let plain = parse(&["node/a", "node_load1"]).unwrap();
        assert_eq!(parse(&["nodes", "a", "node_load1"]).unwrap(), plain);
        assert_eq!((plain.node.as_str(), plain.matchers.len()), ("a", 0));
        let text = r#"m{mode="idle",path!="C:\\\"x\"",}"#;
        let wanted = parse(&["node/a", text]).unwrap();
        let matchers: Vec<_> = wanted
            .matchers
            .iter()
            .map(|m| (m.label.as_str(), m.value.as_str(), m.unequal))
            .collect();
        assert_eq!(
            matchers,
            [("mode", "idle", false), ("path", r#"C:\"x""#, true)]
        );
        // As a shell leaves it.
        let bare = parse(&["node/a", "m{ mode = idle , cpu!=0 }"]).unwrap();
        assert_eq!(bare.series(), "m{mode=\"idle\",cpu!=\"0\"}");
        assert!(parse(&["node/a", "m{}"]).unwrap().matchers.is_empty());
    }

    #[test]
    fn says_what_is_wrong() {
        for (words, said) in [
            (&["node/a"][..], "which metric"),
            (&["node"], "names no node"),
            (&["node/", "m"], "names no node"),
            (&["job/a", "m"], "only nodes"),
            (&["node/a", "m", "n"], "one metric"),
            (&["node/a", "1m"], "no name of a metric"),
            (&["node/a", "m{mode}"], "comes = or !="),
            (&["node/a", "m{mode=\"x}"], "not closed"),
            (&["node/a", "m{mode=~\"x\"}"], "patterns"),
            (&["node/a", "m{mode=x"], "comes `,` or `}`"),
            (&["node/a", "m{mode=x}y"], "after `}`"),
        ] {
            let fault = parse(words).unwrap_err();
            assert_eq!(fault.exit, Exit::Usage, "{words:?}");
            assert!(fault.to_string().contains(said), "{words:?}: {fault}");
        }
    }
}
