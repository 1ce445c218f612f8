//! What was promised, and what became of it.
//!
//! A budget binds the worst of the figures that were measured under its conditions. One that was not measured under
//! them is said to be so: a smaller fleet proves nothing.

use serde_json::Value;

use super::{
    line::{Line, human},
    push,
};

/// The side on which a figure has to be.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// What a parameter has to be.
#[derive(Debug, Clone, Copy)]
enum Under {
    /// This number or more.
    From(&'static str, f64),
    /// This number.
    Number(&'static str, f64),
    /// These words.
    Words(&'static str, &'static str),
}

#[derive(Debug)]
struct Budget {
    what: &'static str,
    bench: &'static str,
    figure: &'static str,
    under: &'static [Under],
    bound: Bound,
    unit: &'static str,
}

const fn budget(
    what: &'static str,
    of: (&'static str, &'static str),
    under: &'static [Under],
    bound: Bound,
    unit: &'static str,
) -> Budget {
    Budget {
        what,
        bench: of.0,
        figure: of.1,
        under,
        bound,
        unit,
    }
}

use Bound::{AtLeast, AtMost};
use Under::{From, Number, Words};

const MIB: f64 = 1_048_576.0;
const TEN_MINUTES: Under = Number("seconds", 600.0);
const FIVE: Under = Number("agents", 5000.0);
const TEN: Under = From("agents", 10_000.0);
const QUIC: Under = Words("transport", "quic");
/// 10,000 agents with 200 series each every 10 s, for 10 minutes.
const STREAM: [Under; 4] = [
    TEN,
    From("series", 200.0),
    Number("interval_seconds", 10.0),
    From("seconds", 600.0),
];
/// Reports of a while vary by their phases.
const WHILE: f64 = 0.99;

const BUDGETS: [Budget; 23] = [
    budget(
        "agent: proportional memory",
        ("footprint", "pss"),
        &[TEN_MINUTES],
        AtMost(6.0 * MIB),
        "bytes",
    ),
    budget(
        "agent: processor time a minute",
        ("footprint", "cpu_seconds_per_minute"),
        &[TEN_MINUTES],
        AtMost(0.03),
        "seconds",
    ),
    budget(
        "agent: bytes on the wire a minute",
        ("footprint", "wire_bytes_per_minute"),
        &[TEN_MINUTES],
        AtMost(10_000.0),
        "bytes",
    ),
    budget(
        "agent: size of the program",
        ("footprint", "binary_size"),
        &[],
        AtMost(6_000_000.0),
        "bytes",
    ),
    budget(
        "agent: growth of memory in an hour with jobs and reconnects, from minute 10",
        ("footprint", "rss_growth"),
        &[From("seconds", 3600.0), From("jobs", 1.0)],
        AtMost(0.05),
        "ratio",
    ),
    budget(
        "connect: 5,000 agents over QUIC report",
        ("connect", "seconds"),
        &[FIVE, QUIC],
        AtMost(15.0),
        "seconds",
    ),
    budget(
        "connect: 10,000 agents report",
        ("connect", "seconds"),
        &[TEN, QUIC],
        AtMost(40.0),
        "seconds",
    ),
    budget(
        "connect: memory of the collector an agent",
        ("connect", "rss_per_agent"),
        &[From("agents", 5000.0)],
        AtMost(80.0 * 1024.0),
        "bytes",
    ),
    budget(
        "recover: 10,000 agents are back after kill -9",
        ("recover", "seconds_until_all_report"),
        &[TEN],
        AtMost(60.0),
        "seconds",
    ),
    budget(
        "recover: acknowledged records that are lost",
        ("recover", "lost"),
        &[TEN],
        AtMost(0.0),
        "records",
    ),
    budget(
        "ingest: samples a second",
        ("ingest", "samples_per_second"),
        &STREAM,
        AtLeast(200_000.0 * WHILE),
        "samples/second",
    ),
    budget(
        "ingest: ack p99",
        ("ingest", "ack_p99"),
        &STREAM,
        AtMost(1.0),
        "seconds",
    ),
    budget(
        "ingest: processor time of 1,000 samples",
        ("ingest", "cpu_seconds_per_1k_samples"),
        &STREAM,
        AtMost(0.0005),
        "seconds",
    ),
    budget(
        "ingest: growth of memory",
        ("ingest", "rss_growth"),
        &STREAM,
        AtMost(0.05),
        "ratio",
    ),
    budget(
        "bytes of a raw sample on disk after compaction",
        ("compress", "bytes_per_sample"),
        // Points of minutes are told beside it.
        &[Words("of", "the file")],
        AtMost(1.3),
        "bytes",
    ),
    budget(
        "fanout: `true` on 50 real agents",
        ("fanout", "wall_seconds"),
        &[Number("targets", 50.0)],
        AtMost(0.3),
        "seconds",
    ),
    budget(
        "fanout: `true` on 10,000 agents",
        ("fanout", "wall_seconds"),
        &[TEN],
        AtMost(2.0),
        "seconds",
    ),
    budget(
        "query: state of one of 10,000 nodes",
        ("query", "p50"),
        &[
            TEN,
            Words("question", "one node"),
            Words("over", "a connection"),
        ],
        AtMost(0.001),
        "seconds",
    ),
    budget(
        "query: one series of one of 10,000 nodes",
        ("query", "p50"),
        &[
            TEN,
            Words("question", "one series of one node"),
            Words("over", "a connection"),
        ],
        AtMost(0.001),
        "seconds",
    ),
    budget(
        "query: `get nodes` of 10,000, p95",
        ("query", "p95"),
        &[TEN, Words("question", "get nodes")],
        AtMost(0.2),
        "seconds",
    ),
    budget(
        "query: packages by version of 5,000,000, p95",
        ("query", "p95"),
        &[
            TEN,
            From("packages", 500.0),
            Words("question", "packages by version"),
            Words("over", "a connection"),
        ],
        AtMost(1.0),
        "seconds",
    ),
    budget(
        "query: memory for `/metrics/nodes` of 10,000",
        ("query", "nodes_page_extra_rss"),
        &[TEN],
        AtMost(32.0 * MIB),
        "bytes",
    ),
    budget(
        "soak: acknowledged records that are lost or there twice",
        ("soak", "lost"),
        &[],
        AtMost(0.0),
        "records",
    ),
];

/// The table.
pub(super) fn section(page: &mut String, lines: &[Line]) {
    push(
        page,
        "\n## Budgets\n\nOf two cores, with what makes the load beside the collector. Each is held against the worst figure that was \
         measured\nunder its conditions.\n\n| budget | bound | measured | |\n| --- | ---: | ---: | --- |\n",
    );
    for budget in &BUDGETS {
        let bound = match budget.bound {
            AtMost(value) => format!("≤ {}", human(value, budget.unit)),
            AtLeast(value) => format!("≥ {}", human(value, budget.unit)),
        };
        let (measured, verdict) = match budget.worst(lines) {
            None => (String::new(), "not measured".to_owned()),
            Some(value) => (human(value, budget.unit), budget.verdict(value)),
        };
        push(
            page,
            &format!("| {} | {bound} | {measured} | {verdict} |\n", budget.what),
        );
    }
}

impl Budget {
    fn worst(&self, lines: &[Line]) -> Option<f64> {
        let binding = lines.iter().filter(|line| self.binds(line));
        let values = binding.map(|line| line.value);
        match self.bound {
            AtMost(_) => values.reduce(f64::max),
            AtLeast(_) => values.reduce(f64::min),
        }
    }

    fn binds(&self, line: &Line) -> bool {
        let given = |name: &str| line.params.get(name);
        let number = |name: &str| given(name).and_then(Value::as_f64);
        line.is_ours()
            && line.bench == self.bench
            && line.figure == self.figure
            && self.under.iter().all(|under| match under {
                From(name, least) => number(name).is_some_and(|is| is >= *least),
                Number(name, value) => number(name) == Some(*value),
                Words(name, words) => given(name).and_then(Value::as_str) == Some(words),
            })
    }

    fn verdict(&self, value: f64) -> String {
        let (met, bound) = match self.bound {
            AtMost(bound) => (value <= bound, bound),
            AtLeast(bound) => (value >= bound, bound),
        };
        match met {
            true => "met".to_owned(),
            false if bound == 0.0 => "**missed**".to_owned(),
            false => format!(
                "**missed** by {}",
                human((value / bound - 1.0).abs(), "ratio")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bench: &str, figure: &str, subject: &str, value: f64, params: &str) -> Line {
        let text = format!(
            "{{\"bench\":\"{bench}\",\"figure\":\"{figure}\",\"subject\":\"{subject}\",\"value\":{value},\
             \"unit\":\"x\",\"params\":{params}}}"
        );
        Line::parse(&text).unwrap()
    }

    #[test]
    fn each_budget_is_met_missed_or_not_measured() {
        let fleet = r#"{"agents": 10000, "transport": "quic"}"#;
        let lines = [
            line(
                "connect",
                "seconds",
                "nexus",
                12.0,
                r#"{"agents": 5000, "transport": "quic"}"#,
            ),
            // The worst of them counts, and a peer's not at all.
            line("connect", "seconds", "nexus", 30.0, fleet),
            line("connect", "seconds", "nexus", 50.0, fleet),
            line("connect", "seconds", "peer", 500.0, fleet),
            line(
                "ingest",
                "samples_per_second",
                "nexus",
                9.0,
                r#"{"agents": 100}"#,
            ),
        ];
        let mut page = String::new();
        section(&mut page, &lines);
        for expected in [
            "| connect: 5,000 agents over QUIC report | ≤ 15 s | 12 s | met |",
            "| connect: 10,000 agents report | ≤ 40 s | 50 s | **missed** by 25 % |",
            "| ingest: samples a second | ≥ 198000 samples/second |  | not measured |",
        ] {
            assert!(page.contains(expected), "{page}");
        }
    }
}
