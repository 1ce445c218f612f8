//! A collector with an operator and agents of this host, in one folder that goes with it.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    agent::Agent,
    collector::{Collector, Place},
    ctl::{Ctl, Said},
    fault::{Fault, Outcome},
    poll, scrape,
};

/// What takes longer on this host is a failure.
pub const SOON: Duration = Duration::from_secs(60);

/// The whole product, small.
#[derive(Debug)]
pub struct Fleet {
    /// The collector.
    pub collector: Collector,
    /// The operator.
    pub ctl: Ctl,
    /// Agents in order of enrolment.
    pub agents: Vec<Agent>,
    dir: TempDir,
}

impl Fleet {
    /// A collector and an operator.
    pub async fn new(settings: &[&str]) -> Outcome<Self> {
        Self::new_at(Place::default(), settings).await
    }

    /// The same with a collector that listens there.
    pub async fn new_at(place: Place, settings: &[&str]) -> Outcome<Self> {
        let dir = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
        Self::make(place, dir, settings).await
    }

    /// The same in a folder that was prepared.
    pub async fn new_in(dir: TempDir, settings: &[&str]) -> Outcome<Self> {
        Self::make(Place::default(), dir, settings).await
    }

    /// Both.
    pub async fn make(place: Place, dir: TempDir, settings: &[&str]) -> Outcome<Self> {
        let collector = Collector::create_at(place, dir.path(), settings).await?;
        let ctl = Ctl::logged_in(dir.path(), &collector).await?;
        Ok(Self {
            collector,
            ctl,
            agents: Vec::new(),
            dir,
        })
    }

    /// The same with running agents of these names, all connected.
    pub async fn with_agents(names: &[&str]) -> Outcome<Self> {
        let mut fleet = Self::new(&[]).await?;
        for name in names {
            fleet.add(name, &["interval=1s"]).await?;
        }
        for name in names {
            fleet.connected(name).await?;
        }
        Ok(fleet)
    }

    /// The folder everything is in.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A join token for one node.
    pub async fn token(&self, more: &[&str]) -> Outcome<String> {
        let agents = self.collector.endpoints().agents.clone();
        let mut args = vec!["token", "create", "--address", &agents];
        args.extend(more);
        let printed = self.ctl.ok(&args).await?;
        let token = printed
            .split_whitespace()
            .find(|word| word.starts_with("nxt_"));
        token
            .map(str::to_owned)
            .ok_or_else(|| Fault::new(format!("no token in {printed}")))
    }

    /// Enrols and starts an agent.
    pub async fn add(&mut self, name: &str, settings: &[&str]) -> Outcome<&mut Agent> {
        let agent = Agent::new(self.dir.path(), name, settings);
        self.join(agent).await
    }

    /// Enrols and starts this agent.
    pub async fn join(&mut self, mut agent: Agent) -> Outcome<&mut Agent> {
        let token = self.token(&[]).await?;
        agent.enroll(&token).await?;
        agent.start().await?;
        self.agents.push(agent);
        self.agents.last_mut().ok_or_else(|| Fault::new("no agent"))
    }

    /// A node as `get nodes -o json` shows it.
    pub async fn node(&self, name: &str) -> Outcome<Value> {
        let nodes = self.ctl.json(&["get", "nodes"]).await?;
        let mut found = nodes.as_array().into_iter().flatten();
        let node = found
            .find(|node| node.get("name").is_some_and(|its| its == name))
            .cloned();
        node.ok_or_else(|| Fault::new(format!("no node {name} in {nodes}")))
    }

    /// Waits until the node is in that state.
    pub async fn in_state(&self, name: &str, state: &str) -> Outcome<Value> {
        let what = format!("{name} {state}");
        let wait = poll::until_ok(&what, SOON, || async {
            let node = self.node(name).await.map_err(|fault| fault.to_string())?;
            if node.get("state").is_some_and(|now| now == state) {
                Ok(node)
            } else {
                Err(node.to_string())
            }
        });
        let result = wait.await;
        result.map_err(|fault| {
            let agent = self.agents.iter().find(|agent| agent.name() == name);
            let log = agent.map(Agent::log_text).unwrap_or_default();
            Fault::new(format!(
                "{fault}\n--- agent\n{log}\n--- collector\n{}",
                self.collector.log_text()
            ))
        })
    }

    /// Waits until the node is connected.
    pub async fn connected(&self, name: &str) -> Outcome<Value> {
        self.in_state(name, "connected").await
    }

    /// The rows of a query.
    pub async fn query(&self, sql: &str) -> Outcome<Vec<Value>> {
        let value = self.ctl.json(&["query", sql]).await?;
        value
            .as_array()
            .cloned()
            .ok_or_else(|| Fault::new(format!("{value}")))
    }

    /// Waits until a query's rows satisfy `holds`.
    pub async fn eventually(
        &self,
        sql: &str,
        holds: impl Fn(&[Value]) -> bool,
    ) -> Outcome<Vec<Value>> {
        poll::until_ok(sql, SOON, || async {
            let rows = self.query(sql).await.map_err(|fault| fault.to_string())?;
            if holds(&rows) {
                Ok(rows)
            } else {
                Err(format!("{rows:?}"))
            }
        })
        .await
    }

    /// `nexusctl run … -o json`: its end and its document.
    pub async fn job(&self, flags: &[&str], command: &[&str]) -> Outcome<(Said, Value)> {
        let mut args = vec!["run", "--yes", "-o", "json"];
        args.extend(flags);
        args.push("--");
        args.extend(command);
        let said = self.ctl.run(&args).await?;
        let document = serde_json::from_str(&said.out).unwrap_or(Value::Null);
        Ok((said, document))
    }

    /// A page of the metrics port.
    pub async fn page(&self, path: &str) -> Outcome<String> {
        scrape::get(&self.collector.endpoints().metrics, path).await
    }
}
