//! Every benchmark, one after the other, each in a process of its own, so that none inherits what another left and
//! one that fails or hangs costs the others nothing. What they print is kept, and made a page of in the end.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    report,
};

/// To end everything it started.
const ENDING: Duration = Duration::from_secs(60);
/// What a benchmark beside others runs.
const COPIED: [&str; 4] = ["nexus-agent", "nexus-bench", "nexus-collector", "nexusctl"];

/// One benchmark.
#[derive(Debug)]
pub struct Step {
    /// As on the command line; the first word names it.
    pub line: &'static str,
    /// About how long it takes on two cores, seconds.
    pub seconds: u64,
    /// Whether it goes on beside the others, in a network of its own: it is long and needs next to nothing.
    pub beside: bool,
}

const fn step(line: &'static str, seconds: u64) -> Step {
    Step {
        line,
        seconds,
        beside: false,
    }
}

const fn beside(line: &'static str, seconds: u64) -> Step {
    Step {
        line,
        seconds,
        beside: true,
    }
}

/// What is run with the parameters of the budgets.
pub const WHOLE: [Step; 12] = [
    beside("footprint --seconds 3600 --churn", 3640),
    step("connect --agents 5000", 80),
    step("connect --agents 10000", 150),
    step(
        "ingest --agents 10000 --packages 50 --seconds 600 --peer-agents 1000 --peer-seconds 60",
        830,
    ),
    step(
        "fanout --agents 10000 --packages 50 --processes 50 --hosts 10 --times 5",
        180,
    ),
    step("query --agents 10000 --times 20", 330),
    step("compress --nodes 100 --hours 4", 50),
    step("recover --agents 10000 --packages 50 --seconds 30", 160),
    step("footprint --seconds 600", 640),
    step("growth --agents 100,1000,5000,10000 --seconds 20", 380),
    step("soak --seconds 60", 90),
    step("strangers", 45),
];

/// What shows in minutes that all of it works, with figures that say little.
pub const QUICK: [Step; 11] = [
    beside("footprint --seconds 60 --churn", 90),
    step("footprint --seconds 20", 60),
    step("connect --agents 200", 20),
    step(
        "ingest --agents 200 --interval 2 --seconds 10 --peer-agents 100 --peer-seconds 10",
        60,
    ),
    step("recover --agents 200 --interval 2 --seconds 5", 25),
    step("fanout --agents 200 --processes 5 --hosts 3 --times 2", 60),
    step("query --agents 200 --times 5", 25),
    step("compress --nodes 5 --hours 2", 10),
    step("growth --agents 50,100,200 --interval 2 --seconds 5", 90),
    step("soak --seconds 10", 40),
    step("strangers --strangers 200 --addresses 25 --calls 20", 20),
];

/// Where raw lines and charts are kept beside the page.
#[must_use]
pub fn folder(out: &Path) -> PathBuf {
    out.join(report::FOLDER)
}

/// Runs the steps, all or those of a name, with these words behind each that takes peers, and writes the page. It fails when a step did.
pub async fn run(
    steps: &[Step],
    only: &[String],
    peers: &[String],
    out: &Path,
    say: &dyn Fn(&str),
) -> Outcome {
    if let Some(name) = only
        .iter()
        .find(|name| !steps.iter().any(|step| step.name() == *name))
    {
        return Err(Fault::new(format!("no benchmark {name}")));
    }
    let steps = steps.iter();
    let chosen =
        steps.filter(|step| only.is_empty() || only.iter().any(|name| name == step.name()));
    let steps: Vec<&Step> = chosen.collect();
    let dir = folder(out);
    fs::create_dir_all(&dir).map_err(Fault::io(dir.display()))?;
    for name in steps
        .iter()
        .map(|step| step.name())
        .chain(["all", "machine"])
    {
        drop(fs::remove_file(dir.join(format!("{name}.jsonl"))));
    }
    let (beside, in_turn): (Vec<&Step>, Vec<&Step>) =
        steps.into_iter().partition(|step| step.beside);
    let planned: u64 = in_turn.iter().map(|step| step.seconds).sum();
    let longest = beside.iter().map(|step| step.seconds).max().unwrap_or(0);
    let count = in_turn.len() + beside.len();
    say(&format!(
        "{count} benchmarks, about {} minutes; raw lines in {}",
        planned.max(longest).div_ceil(60),
        dir.display()
    ));
    let machine = step("machine", 5);
    machine.run(peers, &dir).await?;
    let in_turn = async {
        let mut failed = Vec::new();
        for (number, step) in (1..).zip(&in_turn) {
            say(&format!("\n{number}/{}: {}", in_turn.len(), step.line));
            failed.extend(step.done(peers, &dir, say).await?);
        }
        Ok::<_, Fault>(failed)
    };
    let beside = async {
        let mut failed = Vec::new();
        for step in &beside {
            say(&format!("beside the others: {}", step.line));
            failed.extend(step.done(peers, &dir, say).await?);
        }
        Ok::<_, Fault>(failed)
    };
    let (mut failed, failed_beside) = tokio::try_join!(in_turn, beside)?;
    failed.extend(failed_beside);
    report::write(&[dir], out)?;
    say(&format!("\n{}", out.join(report::PAGE).display()));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Fault::new(format!("failed: {}", failed.join("; "))))
    }
}

impl Step {
    fn name(&self) -> &'static str {
        self.line.split(' ').next().unwrap_or(self.line)
    }

    fn takes_peers(&self) -> bool {
        ["ingest", "fanout", "compress"].contains(&self.name())
    }

    /// What stops it, three times as long as it is thought to take.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds * 3 + 300)
    }

    /// Runs it and notes how long it took; its line if it failed.
    async fn done(
        &self,
        peers: &[String],
        dir: &Path,
        say: &dyn Fn(&str),
    ) -> Outcome<Option<&'static str>> {
        let begun = Instant::now();
        let ended = self.run(peers, dir).await;
        if let Err(fault) = &ended {
            say(&format!("{} failed: {fault}", self.line));
        }
        let failed = ended.is_err().then_some(self.line);
        let took = self.took(begun.elapsed(), ended.err());
        append(&dir.join("all.jsonl"), &format!("{}\n", took.to_line()))?;
        Ok(failed)
    }

    /// This program, or its copy in `copies` with a network of its own if it runs beside others: what an agent knows of
    /// its host has the host's sockets in it, and a swarm has many; and agents that run from one file share its pages,
    /// so that each seems to take less.
    fn command(&self, copies: &Path) -> Outcome<Command> {
        let own = std::env::current_exe().map_err(Fault::io("find this program"))?;
        if !self.beside {
            return Ok(Command::new(own));
        }
        let folder = own.parent().unwrap_or(&own);
        for name in COPIED {
            let copied = fs::copy(folder.join(name), copies.join(name));
            copied.map_err(Fault::io(name))?;
        }
        let own = copies.join("nexus-bench");
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let begin = "ip link set lo up && exec \"$0\" \"$@\"";
        command.args(["--net", "sh", "-c", begin]).arg(own);
        Ok(command)
    }

    async fn run(&self, peers: &[String], dir: &Path) -> Outcome {
        let path = dir.join(format!("{}.jsonl", self.name()));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(Fault::io(path.display()))?;
        let copies = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
        let mut command = self.command(copies.path())?;
        command.args(self.line.split(' '));
        if self.takes_peers() {
            command.args(peers);
        }
        let child = command.stdin(Stdio::null()).stdout(file).spawn();
        let mut running = Running(child.map_err(Fault::io("start a benchmark"))?);
        let status = match timeout(self.limit(), running.0.wait()).await {
            Ok(status) => status.map_err(Fault::io("wait"))?,
            Err(_) => {
                running.terminate();
                drop(timeout(ENDING, running.0.wait()).await);
                return Err(Fault::new(format!("not done after {:?}", self.limit())));
            }
        };
        if status.success() {
            Ok(())
        } else {
            Err(Fault::new(format!("{status}")))
        }
    }

    fn took(&self, span: Duration, fault: Option<Fault>) -> Figure {
        let given = json!({
            "line": self.line,
            "ended": fault.map_or_else(|| "well".to_owned(), |fault| fault.to_string()),
        });
        let params: Map<String, Value> = given.as_object().cloned().unwrap_or_default();
        Figure {
            bench: "all",
            figure: "seconds",
            subject: "nexus-bench",
            value: span.as_secs_f64(),
            unit: "seconds",
            params,
        }
    }
}

/// A benchmark in its process, which is asked to end when nobody waits for it any more.
struct Running(Child);

impl Running {
    fn terminate(&self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // It may have ended in between.
            let _gone = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.terminate();
    }
}

fn append(path: &Path, text: &str) -> Outcome {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(Fault::io(path.display()))
}
