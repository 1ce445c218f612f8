//! What benchmarks printed, as a page for people: a table a benchmark, a chart where figures can be compared.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde_json::{Map, Value};

use crate::fault::{Fault, Outcome};

/// Characters of a bar's name.
const NAME: usize = 44;
/// Height of a bar with its gap, pixels.
const ROW: usize = 26;
/// Width of the longest bar, pixels.
const BAR: f64 = 420.0;
/// Parameters that tell figures of one kind apart, in this order.
const TELLING: [&str; 7] = [
    "agents",
    "transport",
    "question",
    "strangers",
    "killed",
    "series",
    "seconds",
];

/// A line of a benchmark's output.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    bench: String,
    figure: String,
    subject: String,
    value: f64,
    unit: String,
    params: Map<String, Value>,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
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
    fn circumstances(&self) -> String {
        let told = TELLING.iter().filter_map(|name| {
            let value = self.params.get(*name)?;
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            Some(format!("{name} {value}"))
        });
        told.collect::<Vec<_>>().join(", ")
    }

    fn is_ours(&self) -> bool {
        self.subject.starts_with("nexus")
    }
}

/// Reads files of JSON lines and writes `performance.md` with its charts into `out`.
pub fn write(files: &[impl AsRef<Path>], out: &Path) -> Outcome {
    let mut lines = Vec::new();
    for file in files {
        let file = file.as_ref();
        let text = fs::read_to_string(file).map_err(Fault::io(file.display()))?;
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let parsed = Line::parse(line).ok_or_else(|| {
                Fault::new(format!(
                    "{}:{number}: no figure of a benchmark",
                    file.display()
                ))
            })?;
            lines.push(parsed);
        }
    }
    fs::create_dir_all(out).map_err(Fault::io(out.display()))?;
    let (page, charts) = page(&lines);
    for (name, chart) in charts {
        let path = out.join(name);
        fs::write(&path, chart).map_err(Fault::io(path.display()))?;
    }
    let path = out.join("performance.md");
    fs::write(&path, page).map_err(Fault::io(path.display()))
}

/// The page, and charts by file name.
fn page(lines: &[Line]) -> (String, BTreeMap<String, String>) {
    let mut by_bench: BTreeMap<&str, BTreeMap<(&str, &str), Vec<&Line>>> = BTreeMap::new();
    for line in lines {
        let figures = by_bench.entry(&line.bench).or_default();
        figures
            .entry((&line.figure, &line.unit))
            .or_default()
            .push(line);
    }
    let mut page = String::from(
        "# Performance\n\nMade by `nexus-bench report` from what the benchmarks printed. Shared machines are noisy: compare \
         processor seconds\nand ratios within one run rather than seconds between runs.\n",
    );
    let mut charts = BTreeMap::new();
    for (bench, figures) in by_bench {
        push(
            &mut page,
            &format!(
                "\n## {bench}\n\n| figure | of | under | value |\n| --- | --- | --- | ---: |\n"
            ),
        );
        for ((figure, unit), lines) in &figures {
            for line in lines {
                push(
                    &mut page,
                    &format!(
                        "| {figure} | {} | {} | {} |\n",
                        line.subject,
                        line.circumstances(),
                        human(line.value, unit)
                    ),
                );
            }
        }
        for ((figure, unit), lines) in figures.iter().filter(|(_, lines)| lines.len() > 1) {
            let name = format!("{bench}-{figure}.svg");
            push(&mut page, &format!("\n![{bench}: {figure}]({name})\n"));
            charts.insert(
                name,
                chart(&format!("{bench}: {figure} ({unit})"), unit, lines),
            );
        }
    }
    (page, charts)
}

/// Horizontal bars, one a line.
fn chart(title: &str, unit: &str, lines: &[&Line]) -> String {
    let most = lines
        .iter()
        .map(|line| line.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = 40 + lines.len() * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"900\" height=\"{height}\" fill=\"white\"/>\n<text x=\"8\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for (place, line) in lines.iter().enumerate() {
        let y = 34 + place * ROW;
        let under = line.circumstances();
        let name: String = format!("{} {under}", line.subject)
            .chars()
            .take(NAME)
            .collect();
        let width = (line.value / most * BAR).max(1.0);
        let colour = if line.is_ours() { "#2563eb" } else { "#9ca3af" };
        push(
            &mut svg,
            &format!(
                "<text x=\"8\" y=\"{}\">{}</text>\n<rect x=\"330\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
                y + 13,
                escaped(&name),
                336.0 + width,
                y + 13,
                escaped(&human(line.value, unit)),
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A value as people write it.
fn human(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let fits = steps.iter().find(|(step, _)| value.abs() >= *step);
        fits.or(steps.last()).map_or_else(
            || value.to_string(),
            |(step, name)| format!("{} {name}", digits(value / step)),
        )
    };
    match unit {
        "bytes" => scaled(&[
            (1_073_741_824.0, "GiB"),
            (1_048_576.0, "MiB"),
            (1024.0, "KiB"),
            (1.0, "B"),
        ]),
        "seconds" => scaled(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]),
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

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn push(page: &mut String, text: &str) {
    // Writing into a string cannot fail.
    let _written = page.write_str(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_tables_and_charts() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw.jsonl");
        let line = |subject: &str, value: f64, agents: u32| {
            format!(
                "{{\"bench\":\"connect\",\"figure\":\"rss_per_agent\",\"subject\":\"{subject}\",\"value\":{value},\
                 \"unit\":\"bytes\",\"params\":{{\"agents\":{agents}}}}}\n"
            )
        };
        let text = line("nexus", 81_920.0, 1000) + &line("peer <1>", 163_840.0, 1000);
        fs::write(&raw, &text).unwrap();
        let out = dir.path().join("out");
        write(&[&raw], &out).unwrap();
        let page = fs::read_to_string(out.join("performance.md")).unwrap();
        assert!(
            page.contains("| rss_per_agent | nexus | agents 1000 | 80 KiB |"),
            "{page}"
        );
        assert!(
            page.contains("![connect: rss_per_agent](connect-rss_per_agent.svg)"),
            "{page}"
        );
        let chart = fs::read_to_string(out.join("connect-rss_per_agent.svg")).unwrap();
        assert!(
            chart.contains("width=\"210.0\"") && chart.contains("width=\"420.0\""),
            "{chart}"
        );
        assert!(chart.contains("peer &lt;1&gt;"), "{chart}");

        fs::write(&raw, text + "no figure\n").unwrap();
        let said = write(&[&raw], &out).unwrap_err().to_string();
        assert!(said.contains("raw.jsonl:3: no figure"), "{said}");
    }

    #[test]
    fn values_are_written_as_people_do() {
        for (value, unit, expected) in [
            (0.0003, "seconds", "300 µs"),
            (0.0123, "seconds", "12.3 ms"),
            (61.0, "seconds", "61 s"),
            (5_452_595.2, "bytes", "5.20 MiB"),
            (1.29, "bytes", "1.29 B"),
            (0.0, "seconds", "0 µs"),
            (199_876.4, "samples/second", "199876 samples/second"),
        ] {
            assert_eq!(human(value, unit), expected);
        }
    }
}
