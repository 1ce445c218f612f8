//! A job on every node at once, as its operator waits for it at the shell.

use std::time::Duration;

use tokio::time::Instant;

use super::{Load, Stage, each, figure};
use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    swarm::tally::quantile,
    usage,
};

/// Runs `true` so often on all nodes.
pub async fn run(load: Load, times: usize, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    stage.connect().await?;
    stage.all_told(say).await?;
    let before = stage.usage();
    let (swarm, all) = (stage.swarm.cpu_time(), all_cpu());
    let mut took: Vec<Duration> = Vec::new();
    for time in 1..=times {
        let begun = Instant::now();
        let said = stage
            .fleet
            .ctl
            .run(&["run", "--yes", "--all", "--", "true"])
            .await?;
        took.push(begun.elapsed());
        let expected = format!("{0} targets: {0} succeeded", load.agents);
        if !said.err.contains(&expected) {
            return Err(Fault::new(format!("not every run succeeded: {}", said.err)));
        }
        say(&format!("{time}: {:.2} s", begun.elapsed().as_secs_f64()));
    }
    let after = stage.usage();
    took.sort_unstable();
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let swarm = stage.swarm.cpu_time().saturating_sub(swarm).as_secs_f64();
    let all = all_cpu().saturating_sub(all).as_secs_f64();
    let mut params = load.params();
    params.insert("times".to_owned(), times.into());
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let runs = each(&load) * times.max(1) as f64;
    let ms = |seconds: f64| seconds * 1000.0 / runs;
    say(&format!(
        "processor time a target: collector {:.3} ms, swarm {:.3} ms, nexusctl {:.3} ms",
        ms(cpu),
        ms(swarm),
        ms((all - cpu - swarm).max(0.0)),
    ));
    let figures = vec![
        figure(
            "fanout",
            "wall_seconds",
            quantile(&took, 50).as_secs_f64(),
            "seconds",
            &params,
        ),
        figure(
            "fanout",
            "cpu_seconds_per_target",
            cpu / runs,
            "seconds",
            &params,
        ),
    ];
    stage.end().await?;
    Ok(figures)
}

/// Of this process and all it started.
fn all_cpu() -> Duration {
    usage::cpu_time(std::process::id()) + usage::cpu_time_of_descendants()
}
