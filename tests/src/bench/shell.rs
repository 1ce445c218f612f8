//! `true` on programs of this host, as an operator waits for it at the shell: real agents, and beside them what
//! Salt and Ansible do for the same. Everything that each of them started is counted.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::peers::{ansible::Ansible, salt::Salt, venv::Venv};
use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::Fleet,
    swarm::tally::quantile,
    usage,
};

/// What is run.
#[derive(Debug, Clone)]
pub struct Params {
    /// How often, after once that is not measured.
    pub times: usize,
    /// How many `nexus-agent` processes.
    pub agents: usize,
    /// How many minions, and hosts of Ansible.
    pub hosts: u8,
    /// The folder in which Salt and Ansible are kept; without one they are not measured.
    pub cache: Option<PathBuf>,
}

/// Runs it.
pub async fn run(params: &Params, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    usage::adopt_orphans()?;
    let mut figures = ours(params, say).await?;
    let Some(cache) = &params.cache else {
        return Ok(figures);
    };
    match Venv::within(cache, say).await {
        Err(fault) => say(&format!("without Salt and Ansible: {fault}")),
        Ok(venv) => {
            match salt(&venv, params, say).await {
                Ok(measured) => figures.extend(measured),
                Err(fault) => say(&format!("without Salt: {fault}")),
            }
            match ansible(&venv, params, say).await {
                Ok(measured) => figures.extend(measured),
                Err(fault) => say(&format!("without Ansible: {fault}")),
            }
        }
    }
    Ok(figures)
}

async fn ours(params: &Params, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let fleet = agents(params.agents, say).await?;
    let noun = if params.agents == 1 {
        "target"
    } else {
        "targets"
    };
    let expected = format!("{0} {noun}: {0} succeeded", params.agents);
    measure(
        "nexus",
        params,
        params.agents,
        "nexusctl run",
        say,
        async || {
            let said = fleet
                .ctl
                .run(&["run", "--yes", "--all", "--", "true"])
                .await?;
            if said.err.contains(&expected) {
                Ok(())
            } else {
                Err(Fault::new(format!("not every run succeeded: {}", said.err)))
            }
        },
    )
    .await
}

async fn agents(count: usize, say: &dyn Fn(&str)) -> Outcome<Fleet> {
    let mut fleet = Fleet::new(&[]).await?;
    let names: Vec<String> = (1..=count).map(|n| format!("node-{n}")).collect();
    for name in &names {
        fleet.add(name, &[]).await?;
    }
    for name in &names {
        fleet.connected(name).await?;
    }
    say(&format!("{count} agents are connected"));
    Ok(fleet)
}

async fn salt(venv: &Venv, params: &Params, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let dir = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
    let count = usize::from(params.hosts);
    let salt = Salt::start(venv, dir.path(), count).await?;
    let version = venv.version("salt").await?;
    measure("salt", params, count, &version, say, async || {
        salt.run_true().await
    })
    .await
}

async fn ansible(venv: &Venv, params: &Params, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let dir = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
    let ansible = Ansible::start(venv, dir.path(), params.hosts).await?;
    let version = venv.version("ansible").await?;
    measure(
        "ansible",
        params,
        usize::from(params.hosts),
        &version,
        say,
        async || ansible.run_true().await,
    )
    .await
}

async fn measure(
    subject: &'static str,
    params: &Params,
    targets: usize,
    program: &str,
    say: &dyn Fn(&str),
    mut once: impl AsyncFnMut() -> Outcome,
) -> Outcome<Vec<Figure>> {
    once().await?;
    let mut took: Vec<Duration> = Vec::new();
    let before = usage::cpu_time_of_descendants();
    for _ in 0..params.times.max(1) {
        let begun = Instant::now();
        once().await?;
        took.push(begun.elapsed());
    }
    let cpu = usage::cpu_time_of_descendants().saturating_sub(before);
    took.sort_unstable();
    say(&format!(
        "{subject}: {:.2} s on {targets}",
        quantile(&took, 50).as_secs_f64()
    ));
    let given = json!({
        "targets": targets,
        "times": params.times.max(1),
        "program": program,
        "command": "true",
        "processes": "all that were started",
    });
    let given: Map<String, Value> = given.as_object().cloned().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let runs = (targets.max(1) * params.times.max(1)) as f64;
    let figure = |figure, value| Figure {
        bench: "fanout",
        figure,
        subject,
        value,
        unit: "seconds",
        params: given.clone(),
    };
    Ok(vec![
        figure("wall_seconds", quantile(&took, 50).as_secs_f64()),
        figure("cpu_seconds_per_target", cpu.as_secs_f64() / runs),
    ])
}
