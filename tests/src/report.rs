//! What benchmarks printed, as a page for people: the machine, what became of every budget, how ours stands beside others, how figures grow with
//! the fleet, then a table a benchmark and a chart where figures can be compared.

mod budget;
mod chart;
mod growth;
mod line;
mod peers;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use self::line::{Line, human};
use crate::fault::{Fault, Outcome};

/// The page.
pub const PAGE: &str = "performance.md";
/// The folder beside it with its charts, and with the raw lines when they are kept.
pub const FOLDER: &str = "performance";
/// Said of the machine and the run by themselves.
const APART: [&str; 3] = ["machine", "growth", "all"];

/// Reads files of JSON lines, and folders of them, and writes the page with its charts into `out`.
pub fn write(files: &[impl AsRef<Path>], out: &Path) -> Outcome {
    let mut lines = Vec::new();
    for file in files {
        for file in expanded(file.as_ref())? {
            read(&file, &mut lines)?;
        }
    }
    let folder = out.join(FOLDER);
    fs::create_dir_all(&folder).map_err(Fault::io(folder.display()))?;
    let (page, charts) = page(&lines);
    for (name, chart) in charts {
        let path = folder.join(name);
        fs::write(&path, chart).map_err(Fault::io(path.display()))?;
    }
    let path = out.join(PAGE);
    fs::write(&path, page).map_err(Fault::io(path.display()))
}

/// A file, or all `*.jsonl` of a folder in the order of their names.
fn expanded(path: &Path) -> Outcome<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(Fault::io(path.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .collect();
    files.sort();
    Ok(files)
}

fn read(file: &Path, lines: &mut Vec<Line>) -> Outcome {
    let text = fs::read_to_string(file).map_err(Fault::io(file.display()))?;
    let numbered = (1..).zip(text.lines());
    for (number, line) in numbered.filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = Line::parse(line).ok_or_else(|| {
            Fault::new(format!(
                "{}:{number}: no figure of a benchmark",
                file.display()
            ))
        })?;
        lines.push(parsed);
    }
    Ok(())
}

/// The page, and charts by file name.
fn page(lines: &[Line]) -> (String, BTreeMap<String, String>) {
    let mut page = String::from(
        "# Performance\n\nMade by `nexus-bench report` from what the benchmarks printed; every figure stands with its \
         parameters in the raw\nlines. Shared machines are noisy: compare processor seconds and ratios within one run \
         rather than seconds between\nruns.\n",
    );
    let mut charts = BTreeMap::new();
    machine(&mut page, lines);
    budget::section(&mut page, lines);
    peers::section(&mut page, lines);
    growth::section(&mut page, lines, &mut charts);
    let mut by_bench: BTreeMap<&str, BTreeMap<(&str, &str), Vec<&Line>>> = BTreeMap::new();
    for line in lines.iter().filter(|line| !APART.contains(&&*line.bench)) {
        let figures = by_bench.entry(&line.bench).or_default();
        let same = figures.entry((&line.figure, &line.unit)).or_default();
        same.push(line);
    }
    for (bench, figures) in by_bench {
        push(
            &mut page,
            &format!(
                "\n## {bench}\n\n| figure | of | under | value |\n| --- | --- | --- | ---: |\n"
            ),
        );
        for ((figure, unit), lines) in &figures {
            for line in lines {
                let (under, value) = (line.circumstances(), human(line.value, unit));
                let row = format!("| {figure} | {} | {under} | {value} |\n", line.subject);
                push(&mut page, &row);
            }
        }
        for ((figure, unit), lines) in figures.iter().filter(|(_, lines)| lines.len() > 1) {
            let name = format!("{bench}-{figure}.svg");
            push(
                &mut page,
                &format!("\n![{bench}: {figure}]({FOLDER}/{name})\n"),
            );
            let title = format!("{bench}: {figure} ({unit})");
            charts.insert(name, chart::bars(&title, unit, lines));
        }
    }
    run(&mut page, lines);
    (page, charts)
}

/// What it was measured on.
fn machine(page: &mut String, lines: &[Line]) {
    let machines = lines.iter().filter(|line| line.bench == "machine");
    for line in machines {
        let text = |name: &str| line.params.get(name).and_then(Value::as_str).unwrap_or("?");
        let memory = line.params.get("memory_bytes").and_then(Value::as_f64);
        let debug = match text("profile") {
            "release" => "",
            _ => " These are debug builds: their figures say nothing about speed.",
        };
        let row = format!(
            "\nMeasured {} on {} cores of {}, {} of memory, {}, Linux {}; commit {}, {} ({}).{debug}\n",
            text("time"),
            line.value,
            text("cpu"),
            human(memory.unwrap_or(0.0), "bytes"),
            text("os"),
            text("kernel"),
            text("commit"),
            text("rustc"),
            text("profile"),
        );
        push(page, &row);
    }
}

/// How long each benchmark took and how it ended.
fn run(page: &mut String, lines: &[Line]) {
    let steps: Vec<_> = lines.iter().filter(|line| line.bench == "all").collect();
    if steps.is_empty() {
        return;
    }
    push(
        page,
        "\n## The run\n\n| nexus-bench | took | ended |\n| --- | ---: | --- |\n",
    );
    for step in steps {
        let text = |name: &str| step.params.get(name).and_then(Value::as_str).unwrap_or("?");
        let took = human(step.value, "seconds");
        push(
            page,
            &format!("| `{}` | {took} | {} |\n", text("line"), text("ended")),
        );
    }
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
        let page = fs::read_to_string(out.join(PAGE)).unwrap();
        assert!(
            page.contains("| rss_per_agent | nexus | agents 1000 | 80 KiB |"),
            "{page}"
        );
        assert!(
            page.contains("![connect: rss_per_agent](performance/connect-rss_per_agent.svg)"),
            "{page}"
        );
        let chart = out.join("performance/connect-rss_per_agent.svg");
        let chart = fs::read_to_string(chart).unwrap();
        assert!(
            chart.contains("width=\"210.0\"") && chart.contains("width=\"420.0\""),
            "{chart}"
        );
        assert!(chart.contains("peer &lt;1&gt;"), "{chart}");

        fs::write(&raw, text + "no figure\n").unwrap();
        let said = write(&[dir.path()], &out).unwrap_err().to_string();
        assert!(said.contains("raw.jsonl:3: no figure"), "{said}");
    }

    #[test]
    fn a_run_says_where_it_ran_and_how_each_benchmark_ended() {
        let line = |bench: &str, params: &str| {
            let text = format!(
                "{{\"bench\":\"{bench}\",\"figure\":\"x\",\"subject\":\"y\",\"value\":2,\"unit\":\"seconds\",\
                 \"params\":{params}}}"
            );
            Line::parse(&text).unwrap()
        };
        let machine =
            r#"{"cpu": "X 1", "memory_bytes": 1073741824, "profile": "debug", "kernel": "6.1"}"#;
        let step = r#"{"line": "connect --agents 5", "ended": "exit status: 1"}"#;
        let (page, _) = page(&[line("machine", machine), line("all", step)]);
        for expected in [
            "on 2 cores of X 1, 1 GiB of memory",
            "debug builds",
            "| `connect --agents 5` | 2 s | exit status: 1 |",
        ] {
            assert!(page.contains(expected), "{page}");
        }
    }
}
