//! How figures grow with the fleet, and what 100,000 agents would need if they go on growing so.
//!
//! Each figure is fitted as `a + b·agents` by least squares over all sizes that were measured. What is reckoned from
//! that is a guide for whoever orders machines: it knows nothing of what only shows beyond the largest fleet that
//! was measured.

use std::collections::BTreeMap;

use super::{
    FOLDER, chart,
    line::{Line, human},
    push,
};

/// The fleet that is reckoned for.
const FLEET: f64 = 100_000.0;
const DAY: f64 = 86_400.0;

/// Values by the number of agents, of one figure.
type Points = Vec<(f64, f64)>;

/// The table, its charts, and what a large fleet needs.
pub(super) fn section(page: &mut String, lines: &[Line], charts: &mut BTreeMap<String, String>) {
    let figures = gathered(lines);
    if figures.is_empty() {
        return;
    }
    let sizes: std::collections::BTreeSet<u64> = figures
        .iter()
        .flat_map(|(_, _, points)| points.iter().map(|(x, _)| whole(*x)))
        .collect();
    push(page, "\n## Growth\n\n| figure |");
    for size in &sizes {
        push(page, &format!(" {size} agents |"));
    }
    push(page, " each more agent |\n| --- |");
    push(page, &" ---: |".repeat(sizes.len() + 1));
    page.push('\n');
    for (figure, unit, points) in &figures {
        push(page, &format!("| {figure} |"));
        for size in &sizes {
            let value = points.iter().find(|(x, _)| whole(*x) == *size);
            let value = value.map_or_else(String::new, |(_, value)| human(*value, unit));
            push(page, &format!(" {value} |"));
        }
        let slope = fit(points).map(|line| small(line.slope, unit));
        push(page, &format!(" {} |\n", slope.unwrap_or_default()));
    }
    for (figure, unit, points) in figures.iter().filter(|(.., points)| points.len() > 1) {
        let name = format!("growth-{figure}.svg");
        push(page, &format!("\n![growth: {figure}]({FOLDER}/{name})\n"));
        charts.insert(
            name,
            chart::curve(&format!("{figure} by agents"), unit, points),
        );
    }
    large(page, lines, &figures);
}

/// What a fleet of 100,000 needs.
fn large(page: &mut String, lines: &[Line], figures: &[(String, String, Points)]) {
    let reckoned = |name: &str| {
        let (.., points) = figures.iter().find(|(figure, ..)| figure == name)?;
        Some(fit(points)?.at(FLEET))
    };
    let needs = [
        ("cores of collectors", reckoned("cores"), "cores", "cores"),
        ("memory of collectors", reckoned("rss"), "bytes", "rss"),
    ];
    if needs.iter().all(|(_, value, ..)| value.is_none()) {
        return;
    }
    push(
        page,
        "\n### What 100,000 agents would need\n\nReckoned as `a + b·100,000`, where `a + b·agents` is the least-squares line through the figures above; agents of \
         the same\nkind, shared among as many collectors as have the cores and the memory.\n\n| need | | from |\n| --- | ---: | --- |\n",
    );
    for (need, value, unit, from) in needs {
        let Some(value) = value else { continue };
        push(
            page,
            &format!("| {need} | {} | {from} |\n", human(value, unit)),
        );
    }
    for (need, bench, figure) in [
        ("disk a day, as it comes", "ingest", "disk_bytes_per_sample"),
        (
            "disk a day, after compaction",
            "compress",
            "bytes_per_sample",
        ),
    ] {
        // Raw samples, without the minutes and hours made of them.
        let of_samples = lines.iter().filter(|line| {
            line.subject == "nexus"
                && (line.bench.as_str(), line.figure.as_str()) == (bench, figure)
        });
        let bytes = of_samples.map(|line| line.value).reduce(f64::max);
        if let (Some(bytes), Some(rate)) = (bytes, reckoned("samples_per_second")) {
            let day = human(bytes * rate * DAY, "bytes");
            push(
                page,
                &format!("| {need} | {day} | samples_per_second × {figure} × 86,400 s |\n"),
            );
        }
    }
    let wire = lines.iter().filter(|line| {
        line.is_ours()
            && line.bench == "footprint"
            && line.figure == "wire_bytes_per_minute"
            && !line.params.contains_key("jobs")
    });
    if let Some(bytes) = wire.map(|line| line.value).reduce(f64::max) {
        let rate = human(bytes * FLEET / 60.0, "bytes/second");
        push(
            page,
            &format!(
                "| network, both directions | {rate} | wire_bytes_per_minute of an agent × 100,000 / 60 s |\n"
            ),
        );
    }
    let machine = lines.iter().find(|line| line.bench == "machine");
    if let (Some(machine), Some(cores)) = (machine, reckoned("cores"))
        && machine.value > 0.0
    {
        let collectors = (cores / machine.value).ceil().max(1.0);
        push(
            page,
            &format!(
                "| machines as this one, at full load | {collectors} | cores / {} |\n",
                machine.value
            ),
        );
    }
}

/// Figures in the order in which they come, each with its unit; what was measured more than once is its mean.
fn gathered(lines: &[Line]) -> Vec<(String, String, Points)> {
    let mut order: Vec<(String, String)> = Vec::new();
    let mut values: BTreeMap<String, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for line in lines
        .iter()
        .filter(|line| line.bench == "growth" && line.is_ours())
    {
        let Some(agents) = line.params.get("agents").and_then(|value| value.as_u64()) else {
            continue;
        };
        if !values.contains_key(&line.figure) {
            order.push((line.figure.clone(), line.unit.clone()));
        }
        let sizes = values.entry(line.figure.clone()).or_default();
        sizes.entry(agents).or_default().push(line.value);
    }
    let figures = order.into_iter().map(|(figure, unit)| {
        let sizes = values.remove(&figure).unwrap_or_default();
        let points = sizes
            .iter()
            .map(|(agents, all)| (float(*agents), mean(all)));
        (figure, unit, points.collect())
    });
    figures.collect()
}

/// `at_none + slope·x`.
#[derive(Debug, PartialEq)]
struct Straight {
    at_none: f64,
    slope: f64,
}

impl Straight {
    /// No figure is less than none.
    fn at(&self, x: f64) -> f64 {
        (self.at_none + self.slope * x).max(0.0)
    }
}

/// The line with the least squares; none through fewer than two sizes.
fn fit(points: &[(f64, f64)]) -> Option<Straight> {
    let xs: Vec<f64> = points.iter().map(|(x, _)| *x).collect();
    let ys: Vec<f64> = points.iter().map(|(_, y)| *y).collect();
    let (x, y) = (mean(&xs), mean(&ys));
    let both: f64 = points.iter().map(|(px, py)| (px - x) * (py - y)).sum();
    let spread: f64 = xs.iter().map(|px| (px - x).powi(2)).sum();
    if spread == 0.0 {
        return None;
    }
    let slope = both / spread;
    Some(Straight {
        at_none: y - slope * x,
        slope,
    })
}

fn mean(values: &[f64]) -> f64 {
    let count = float(u64::try_from(values.len()).unwrap_or(u64::MAX).max(1));
    values.iter().sum::<f64>() / count
}

/// A slope, which may be far smaller than what is measured in its unit.
fn small(value: f64, unit: &str) -> String {
    match unit {
        "cores" => format!("{:.6} cores", value),
        _ => human(value, unit),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of agents")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it was made from a number of agents"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bench: &str, figure: &str, value: f64, unit: &str, agents: u32) -> Line {
        let text = format!(
            "{{\"bench\":\"{bench}\",\"figure\":\"{figure}\",\"subject\":\"nexus\",\"value\":{value},\
             \"unit\":\"{unit}\",\"params\":{{\"agents\":{agents}}}}}"
        );
        Line::parse(&text).unwrap()
    }

    #[test]
    fn a_straight_line_is_found_again() {
        let found = fit(&[(100.0, 7.0), (1000.0, 25.0), (5000.0, 105.0)]).unwrap();
        assert!((found.slope - 0.02).abs() < 1e-9 && (found.at_none - 5.0).abs() < 1e-9);
        assert_eq!(fit(&[(100.0, 7.0)]), None);
    }

    #[test]
    fn a_large_fleet_is_reckoned_from_small_ones() {
        let mut lines = vec![line("machine", "cores", 2.0, "cores", 0)];
        lines.push(line("compress", "bytes_per_sample", 1.25, "bytes", 0));
        let mut minutes = line("compress", "bytes_per_sample", 5.0, "bytes", 0);
        minutes.subject = "nexus-rollup-1m".to_owned();
        lines.push(minutes);
        lines.push(line("ingest", "disk_bytes_per_sample", 2.5, "bytes", 0));
        lines.push(line(
            "footprint",
            "wire_bytes_per_minute",
            6144.0,
            "bytes",
            0,
        ));
        for agents in [100, 1000, 10_000] {
            let many = f64::from(agents);
            lines.push(line(
                "growth",
                "cores",
                0.1 + many * 0.0001,
                "cores",
                agents,
            ));
            lines.push(line(
                "growth",
                "rss",
                1e6 + many * 65_536.0,
                "bytes",
                agents,
            ));
            lines.push(line(
                "growth",
                "samples_per_second",
                many * 20.0,
                "samples/second",
                agents,
            ));
        }
        let (mut page, mut charts) = (String::new(), BTreeMap::new());
        section(&mut page, &lines, &mut charts);
        for expected in [
            "| figure | 100 agents | 1000 agents | 10000 agents | each more agent |",
            "| cores | 0.11 cores | 0.20 cores | 1.10 cores | 0.000100 cores |",
            "| cores of collectors | 10.1 cores | cores |",
            "| memory of collectors | 6.10 GiB | rss |",
            "| network, both directions | 9.77 MiB/s |",
            // 2,000,000 a second.
            "| disk a day, as it comes | 402 GiB |",
            "| disk a day, after compaction | 201 GiB |",
            "| machines as this one, at full load | 6 | cores / 2 |",
            "![growth: rss](performance/growth-rss.svg)",
        ] {
            assert!(page.contains(expected), "{expected} in {page}");
        }
        assert_eq!(charts.len(), 3);
    }
}
