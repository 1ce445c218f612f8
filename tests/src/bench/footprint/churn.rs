//! What happens to an agent in a day, within minutes: jobs, reconnects, things that come and go on its host.

use std::{net::TcpListener, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    fault::{Fault, Outcome},
    fleet::Fleet,
};

/// From one event to the next.
const STEP: Duration = Duration::from_secs(10);
/// A job at every third step.
const JOB: u64 = 3;
/// The collector is killed and started again at every fifteenth.
const RECONNECT: u64 = 15;

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Happened {
    pub(super) sockets: u64,
    pub(super) jobs: u64,
    pub(super) reconnects: u64,
}

/// Goes on until then.
pub(super) async fn churn(fleet: &mut Fleet, until: Instant) -> Outcome<Happened> {
    let mut happened = Happened::default();
    let mut next = Instant::now();
    let mut listener = None;
    for step in 1.. {
        next += STEP;
        if next >= until {
            break;
        }
        sleep_until(next).await;
        // One socket goes, another comes.
        listener = Some(TcpListener::bind("127.0.0.1:0").map_err(Fault::io("listen"))?);
        happened.sockets += 1;
        if step % JOB == 0 {
            let output = ["sh", "-c", "seq 10000"];
            let (said, _) = fleet.job(&["--all"], &output).await?;
            if said.code != 0 {
                return Err(Fault::new(format!("a job failed: {}", said.err)));
            }
            happened.jobs += 1;
        }
        if step % RECONNECT == 0 {
            fleet.collector.kill().await?;
            fleet.collector.start().await?;
            happened.reconnects += 1;
        }
    }
    drop(listener);
    sleep_until(until).await;
    Ok(happened)
}
