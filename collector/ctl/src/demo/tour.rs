//! What a newcomer would type first, with the real answers.

use std::time::Duration;

use super::{folder::Endpoints, http};
use crate::{
    cli::{GetArgs, OutputArgs, QueryArgs, RunArgs},
    fault::{Exit, Fault, Outcome},
    get, output,
    output::Format,
    query, run,
    session::Session,
};

/// Lines of the metrics page that are shown.
const EXCERPT: usize = 6;
/// Series worth a first look.
const SHOWN: [&str; 6] = [
    "node_load1{",
    "node_memory_MemAvailable_bytes{",
    "node_boot_time_seconds{",
    "node_filefd_allocated{",
    "node_procs_running{",
    "node_up{",
];
/// One row of what is known of each node.
const SQL: &str = "SELECT o.node, o.name AS os, o.kernel, h.cpu_threads, h.memory_bytes, \
    (SELECT count(*) FROM packages p WHERE p.node_id = o.node_id) AS packages \
    FROM os o JOIN hardware h ON h.node_id = o.node_id ORDER BY o.node LIMIT 10";

pub(super) async fn tour(session: &Session, endpoints: &Endpoints, names: &[String]) -> Outcome {
    title("nexusctl get nodes")?;
    get::get(session, &nodes()).await?;

    title("nexusctl run --nodes … -- uname -srm")?;
    let exit = run::run(session, &job(names)).await?;
    if exit != Exit::Success {
        return Err(Fault::new("the demo's job", "not every node succeeded").exits(exit));
    }

    title(&format!("nexusctl query \"{SQL}\""))?;
    query::query(session, &statement()).await?;

    title(&format!("curl {}/metrics/nodes", endpoints.metrics))?;
    scrape(endpoints, names).await
}

fn title(command: &str) -> Outcome {
    output::line(&format!("\n$ {command}"))
}

fn plain() -> OutputArgs {
    OutputArgs {
        output: Format::Table,
        no_headers: false,
    }
}

fn nodes() -> GetArgs {
    GetArgs {
        thing: "nodes".to_owned(),
        names: Vec::new(),
        selector: None,
        field_selector: None,
        limit: None,
        as_of: None,
        timeout: Duration::from_secs(30),
        output: plain(),
    }
}

fn job(names: &[String]) -> RunArgs {
    RunArgs {
        selector: None,
        nodes: names.to_vec(),
        all: false,
        script: None,
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(60),
        wait: Some(Duration::from_secs(120)),
        user: None,
        env: Vec::new(),
        cwd: None,
        dry_run: false,
        yes: true,
        raw: false,
        output: plain(),
        command: ["uname", "-srm"].map(str::to_owned).to_vec(),
    }
}

fn statement() -> QueryArgs {
    QueryArgs {
        sql: Some(SQL.to_owned()),
        schema: false,
        as_of: None,
        limit: None,
        timeout: None,
        output: plain(),
    }
}

/// Some of this host's samples, as Prometheus would read them.
async fn scrape(endpoints: &Endpoints, names: &[String]) -> Outcome {
    let what = "scrape /metrics/nodes";
    let (status, page) = http::get(endpoints.metrics_address(), "/metrics/nodes").await?;
    if !status.is_success() {
        return Err(Fault::new(what, format!("the collector answered {status}")));
    }
    let host = names
        .first()
        .map(|name| format!("instance=\"{name}\""))
        .unwrap_or_default();
    let mine: Vec<_> = page.lines().filter(|line| line.contains(&host)).collect();
    let shown: Vec<_> = mine
        .iter()
        .filter(|line| SHOWN.iter().any(|series| line.starts_with(series)))
        .take(EXCERPT)
        .collect();
    if shown.is_empty() {
        return Err(Fault::new(what, "it has no samples of this host"));
    }
    for line in &shown {
        output::line(line)?;
    }
    output::line(&format!("… {} series of this host", mine.len()))
}
