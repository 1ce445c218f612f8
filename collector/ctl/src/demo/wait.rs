//! Waiting for what has really happened, never for time alone.

use std::{collections::BTreeSet, path::Path, time::Duration};

use nexus_proto::operator::v1::ListNodesRequest;

use super::{folder::Endpoints, http, programs::Programs, progress::Progress};
use crate::{
    connection::Collector,
    fault::{Exit, Fault, Outcome},
    names::quoted,
    output::Cell,
};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Time for the collector to be ready.
const READY: Duration = Duration::from_secs(60);
/// Time for agents to connect and report; a few hundred agents on a small machine need some.
const DATA: Duration = Duration::from_secs(180);

/// Until the collector says where it is reached and that it is ready.
pub(super) async fn for_collector(written: &Path, programs: &mut Programs) -> Outcome<Endpoints> {
    let work = async {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            programs.check()?;
            let text = std::fs::read(written).unwrap_or_default();
            let Some(endpoints) = Endpoints::parse(&text) else {
                continue;
            };
            if let Ok((status, _)) = http::get(endpoints.metrics_address(), "/readyz").await
                && status.is_success()
            {
                return Ok(endpoints);
            }
        }
    };
    limited(READY, "start the collector", work).await
}

/// Until every node is connected, its inventory is stored and its samples can be scraped.
pub(super) async fn for_data(
    collector: &mut Collector,
    endpoints: &Endpoints,
    programs: &mut Programs,
    names: &[String],
    progress: &Progress,
) -> Outcome {
    let work = async {
        let mut look = tokio::time::interval(LOOK);
        let all = names.len();
        let mut stage = Stage::Connected;
        loop {
            look.tick().await;
            programs.check()?;
            let done = match stage {
                Stage::Connected => connected(collector, names).await?,
                Stage::Inventory => inventory(collector, names).await?,
                Stage::Metrics => metrics(endpoints, names).await?,
            };
            progress.step(&format!("{} {done}/{all}", stage.words()));
            if done >= all {
                match stage.next() {
                    Some(next) => stage = next,
                    None => return Ok(()),
                }
            }
        }
    };
    limited(DATA, "wait for the agents", work).await
}

#[derive(Clone, Copy)]
enum Stage {
    Connected,
    Inventory,
    Metrics,
}

impl Stage {
    fn words(self) -> &'static str {
        match self {
            Self::Connected => "agents connected:",
            Self::Inventory => "inventories stored:",
            Self::Metrics => "nodes with metrics:",
        }
    }

    fn next(self) -> Option<Self> {
        match self {
            Self::Connected => Some(Self::Inventory),
            Self::Inventory => Some(Self::Metrics),
            Self::Metrics => None,
        }
    }
}

async fn connected(collector: &mut Collector, names: &[String]) -> Outcome<usize> {
    let nodes = collector.nodes(ListNodesRequest::default()).await?;
    let connected: BTreeSet<_> = nodes
        .iter()
        .filter(|node| node.state == "connected" && names.contains(&node.name))
        .map(|node| node.name.as_str())
        .collect();
    Ok(connected.len())
}

async fn inventory(collector: &mut Collector, names: &[String]) -> Outcome<usize> {
    let list = names
        .iter()
        .map(|name| quoted(name))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = format!(
        "SELECT count(DISTINCT o.node) FROM os o JOIN hardware h ON h.node_id = o.node_id WHERE o.node IN ({list})"
    );
    let rows = collector.rows(&sql).await?.rows;
    match rows.first().and_then(|row| row.first()) {
        Some(Cell::Integer(count)) => Ok(usize::try_from(*count).unwrap_or(0)),
        _ => Ok(0),
    }
}

async fn metrics(endpoints: &Endpoints, names: &[String]) -> Outcome<usize> {
    let (_, page) = http::get(endpoints.metrics_address(), "/metrics/nodes").await?;
    let with_load = names.iter().filter(|name| {
        let instance = format!("instance=\"{name}\"");
        page.lines()
            .any(|line| line.starts_with("node_load1{") && line.contains(&instance))
    });
    Ok(with_load.count())
}

async fn limited<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let why = format!("not done within {}s", limit.as_secs());
            Err(Fault::new(what, why)
                .hint("the logs in the demo's folder say more")
                .exits(Exit::TimedOut))
        }
    }
}
