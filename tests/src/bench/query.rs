//! What an operator waits for answers while the fleet reports.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Load, Stage, figure};
use crate::{fault::Outcome, figure::Figure, swarm::tally::quantile};

/// Name, arguments.
const QUESTIONS: [(&str, &[&str]); 4] = [
    ("get nodes", &["get", "nodes", "-o", "csv"]),
    (
        "one node",
        &[
            "query",
            "SELECT state FROM nodes WHERE name = 'swarm-00001'",
        ],
    ),
    (
        "one series of one node",
        &[
            "query",
            "SELECT value FROM metrics WHERE node = 'swarm-00001' AND name = 'node_load1'",
        ],
    ),
    (
        "packages by version",
        &[
            "query",
            "SELECT name, version, count(*) AS nodes FROM packages GROUP BY name, version
             ORDER BY nodes DESC LIMIT 10",
        ],
    ),
];

/// Asks each question so often.
pub async fn run(load: Load, times: usize, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    stage.connect().await?;
    let mut figures = Vec::new();
    for (question, args) in QUESTIONS {
        let mut took: Vec<Duration> = Vec::new();
        for _ in 0..times.max(1) {
            let begun = Instant::now();
            stage.fleet.ctl.ok(args).await?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        let mut params = load.params();
        params.insert("question".to_owned(), question.into());
        params.insert("times".to_owned(), times.into());
        params.insert(
            "includes".to_owned(),
            Value::from("nexusctl's own start and handshake"),
        );
        for (name, percent) in [("p50", 50), ("p95", 95)] {
            let value = quantile(&took, percent).as_secs_f64();
            figures.push(figure("query", name, value, "seconds", &params));
        }
        say(&format!(
            "{question}: p95 {:.3} s",
            quantile(&took, 95).as_secs_f64()
        ));
    }
    stage.end().await?;
    Ok(figures)
}
