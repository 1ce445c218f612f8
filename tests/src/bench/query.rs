//! What an operator waits for answers while the fleet reports: at the shell, with all that starting a program and
//! a handshake cost, and over a connection that is there. Also what a page of all nodes' metrics takes.

use std::time::Duration;

use nexus_pki::{
    admission::Admission,
    authority::Authority,
    leaf::Leaf,
    tls::{self, KeyExchange, LiveLeaf},
};
use nexus_proto::operator::v1::{QueryRequest, operator_client::OperatorClient};
use nexus_runtime::clock::Clock;
use nexus_transport::{Connection, operator_connect};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::{Load, Stage, figure, float};
use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::Fleet,
    scrape,
    swarm::tally::quantile,
    usage,
};

/// Of a collector that was told nothing else.
const TRUST_DOMAIN: &str = "nexus.internal";
/// Between looks at memory.
const LOOK: Duration = Duration::from_millis(5);
/// Of one of the swarm's own.
const ONE_NODE: &str = "SELECT state FROM nodes WHERE name = 'swarm-00001'";
/// By what counts them as they come.
const VERSIONS: &str =
    "SELECT name, version, nodes FROM package_versions ORDER BY nodes DESC LIMIT 10";
/// Questions over a connection are asked so many times more often.
const OFTENER: usize = 20;

/// Asks each question so often.
pub async fn run(load: Load, times: usize, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    stage.connect().await?;
    stage.all_told(say).await?;
    let times = times.max(1);
    let mut asked = Asked {
        params: load.params(),
        figures: Vec::new(),
        say,
    };
    let series = one_series(&stage.fleet).await?;
    let points = [
        ("one node", ONE_NODE),
        ("one series of one node", series.as_str()),
    ];
    let mut at_the_shell = vec![("get nodes", vec!["get", "nodes", "-o", "csv"])];
    let questions = points.into_iter();
    let questions = questions.chain([("packages by version", VERSIONS)]);
    at_the_shell.extend(questions.map(|(question, sql)| (question, vec!["query", sql])));
    for (question, args) in &at_the_shell {
        let mut took = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            stage.fleet.ctl.ok(args).await?;
            took.push(begun.elapsed());
        }
        asked.note(question, "nexusctl, with its start and handshake", took);
    }

    let connection = dial(&stage.fleet).await?;
    let mut client = OperatorClient::new(connection.channel.clone());
    let questions = points.map(|(question, sql)| (question, sql, times * OFTENER));
    let questions = questions.into_iter();
    for (question, sql, times) in questions.chain([("packages by version", VERSIONS, times)]) {
        let mut took = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            rows(&mut client, sql).await?;
            took.push(begun.elapsed());
        }
        asked.note(question, "a connection", took);
    }
    page_of_nodes(&stage, times, &mut asked).await?;
    let figures = asked.figures;
    stage.end().await?;
    Ok(figures)
}

/// Figures so far.
struct Asked<'a> {
    params: Map<String, Value>,
    figures: Vec<Figure>,
    say: &'a dyn Fn(&str),
}

impl Asked<'_> {
    fn note(&mut self, question: &str, over: &str, mut took: Vec<Duration>) {
        took.sort_unstable();
        let mut params = self.params.clone();
        params.insert("question".to_owned(), question.into());
        params.insert("over".to_owned(), over.into());
        params.insert("times".to_owned(), took.len().into());
        for (name, percent) in [("p50", 50), ("p95", 95)] {
            let value = quantile(&took, percent).as_secs_f64();
            let of = figure("query", name, value, "seconds", &params);
            self.figures.push(of);
        }
        let p95 = quantile(&took, 95).as_secs_f64() * 1000.0;
        (self.say)(&format!("{question} over {over}: p95 {p95:.2} ms"));
    }
}

/// A question for a series that the first node has.
async fn one_series(fleet: &Fleet) -> Outcome<String> {
    let first = "SELECT name FROM metrics WHERE node = 'swarm-00001' ORDER BY name LIMIT 1";
    let rows = fleet.query(first).await?;
    let name = rows.first().and_then(|row| row.get("name")?.as_str());
    let name = name.ok_or_else(|| Fault::new("swarm-00001 has no metrics"))?;
    Ok(format!(
        "SELECT value FROM metrics WHERE node = 'swarm-00001' AND name = '{name}'"
    ))
}

/// As the operator who is logged in.
async fn dial(fleet: &Fleet) -> Outcome<Connection> {
    fn fault(error: impl std::fmt::Display) -> Fault {
        Fault::new(format!("connect as the operator: {error}"))
    }
    let ca = fleet.collector.dir().join("pki").join("ca");
    let now = Clock::system().now();
    let authority = Authority::open(&ca, TRUST_DOMAIN, now).map_err(fault)?;
    let leaf = Leaf::load(&fleet.dir().join("operator")).map_err(fault)?;
    let live = LiveLeaf::new(leaf, authority.root()).map_err(fault)?;
    let admission = Admission::new(authority.root(), TRUST_DOMAIN);
    let tls = tls::operator_client(&live, &admission, KeyExchange::Auto).map_err(fault)?;
    operator_connect(&fleet.collector.endpoints().operators, tls, None)
        .await
        .map_err(fault)
}

/// How many rows a statement gives.
async fn rows<T>(client: &mut OperatorClient<T>, sql: &str) -> Outcome<usize>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error:
        Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let fault = |status: tonic::Status| Fault::new(format!("{sql}: {}", status.message()));
    let request = QueryRequest {
        sql: sql.to_owned(),
        ..QueryRequest::default()
    };
    let mut answer = client.query(request).await.map_err(fault)?.into_inner();
    let mut rows = 0;
    while let Some(message) = answer.message().await.map_err(fault)? {
        rows += message.rows.len();
    }
    if rows == 0 {
        return Err(Fault::new(format!("{sql}: no rows")));
    }
    Ok(rows)
}

/// `/metrics/nodes`, and how much more memory the collector has while it writes it.
async fn page_of_nodes(stage: &Stage, times: usize, asked: &mut Asked<'_>) -> Outcome {
    let address = &stage.fleet.collector.endpoints().metrics;
    let id = stage.fleet.collector.id().unwrap_or(0);
    let (mut took, mut bytes) = (Vec::new(), 0);
    let before = usage::resident_bytes(id);
    let mut most = before;
    for _ in 0..times {
        let page = scrape::drain(address, "/metrics/nodes");
        tokio::pin!(page);
        let (read, span) = loop {
            tokio::select! {
                page = &mut page => break page?,
                () = sleep(LOOK) => most = most.max(usage::resident_bytes(id)),
            }
        };
        bytes = read;
        took.push(span);
    }
    asked.params.insert("page_bytes".to_owned(), bytes.into());
    let more = float(most.saturating_sub(before));
    let of = figure(
        "query",
        "nodes_page_extra_rss",
        more,
        "bytes",
        &asked.params,
    );
    asked.figures.push(of);
    asked.note("/metrics/nodes", "plain HTTP", took);
    Ok(())
}
