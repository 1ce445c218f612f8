//! `nexus-swarm`: thousands of agents in one process or a few against a collector. Figures as JSON lines on
//! standard output, words on standard error. With the one word `part` it is a further process of another one, or
//! of `nexus-bench`, which talks to it over its standard input and output.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::atomic::Ordering,
    time::Duration,
};

use clap::Parser;
use nexus_agent::identity;
use nexus_runtime::{shutdown::Signals, tasks::Tasks};
use nexus_tests::{
    fault::{Fault, Outcome},
    figure::Figure,
    swarm::{AGENTS_MAX, PART, Params, Swarm, answers::Answers, memory, serve, tally::Waits},
};
use nexus_transport::Mode;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// From one line of progress to the next.
const PROGRESS: Duration = Duration::from_secs(1);

/// Puts the load of many agents on a collector: each one enrols, keeps its own mutual TLS session, reports and
/// takes signed jobs through admission and ledger as nexus-agent does. Readings are made up after those of this
/// host, and no job is executed. Where the limit of open files (ulimit -Hn) is not enough for all agents in one
/// process, some 13 each, it starts more processes of itself, with one thread each; they end with it.
#[derive(Debug, Parser)]
#[command(name = "nexus-swarm", version, max_term_width = 100)]
struct Cli {
    /// Join token: itself, @FILE, or - for standard input (nexusctl token create --uses N)
    #[arg(long)]
    token: String,
    /// How many agents
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    agents: u32,
    /// In how many processes, with as many agents each [default: no more than the limit of open files asks for]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    processes: Option<u8>,
    /// Folder of their state, best on a tmpfs; agents that joined before keep their identity [default: a new one in /dev/shm, removed at the end]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Names begin with this
    #[arg(long, default_value = "swarm")]
    name: String,
    /// What carries sessions: auto, quic or tcp
    #[arg(long, default_value = "auto", value_parser = transport)]
    transport: Mode,
    /// Seconds from one reading of an agent to its next
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Series of each agent
    #[arg(long, default_value_t = 200)]
    series: usize,
    /// Packages of each agent
    #[arg(long, default_value_t = 500)]
    packages: usize,
    /// Bytes every job seems to write
    #[arg(long, default_value_t = 0)]
    output: usize,
    /// Milliseconds every job seems to take
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Seconds from the first agent's start to the last one's
    #[arg(long, default_value_t = 0)]
    ramp: u64,
    /// Seconds to run after all were started [default: until INT or TERM]
    #[arg(long)]
    seconds: Option<u64>,
    /// The same seed makes the same hosts
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn transport(text: &str) -> Result<Mode, String> {
    Mode::parse(text).ok_or_else(|| "expected auto, quic or tcp".to_owned())
}

fn main() -> ExitCode {
    memory::keep_large_things_apart();
    let part = std::env::args_os().skip(1).eq([PART]);
    let cli = (!part).then(Cli::parse);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if part {
        // It is one of several anyway: with threads that wake each other it would be switched more than twice as often.
        runtime.worker_threads(1);
    }
    let runtime = runtime.enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = match cli {
                None => runtime.block_on(serve()),
                Some(cli) => runtime.block_on(run(cli)),
            };
            // What is left of agents must not keep a process whose first one is gone.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(Fault::new(format!("start: {error}"))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say(&format!("error: {fault}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Outcome {
    let token = identity::read_token(&cli.token);
    let token = token.map_err(|error| Fault::new(format!("read the token: {error}")))?;
    let agents = usize::try_from(cli.agents).unwrap_or(AGENTS_MAX);
    let made = match &cli.dir {
        Some(_) => None,
        None => Some(made_folder().map_err(Fault::io("make a folder"))?),
    };
    let dir = made.as_ref().map(|made| made.path().to_owned());
    let params = Params {
        agents,
        processes: cli.processes.map(usize::from),
        token,
        dir: cli.dir.clone().or(dir).unwrap_or_default(),
        name: cli.name.clone(),
        transport: cli.transport,
        interval: Duration::from_secs(cli.interval),
        series: cli.series,
        packages: cli.packages,
        answers: Answers {
            delay: Duration::from_millis(cli.delay),
            output: cli.output,
        },
        ramp: Duration::from_secs(cli.ramp),
        seed: cli.seed,
    };
    std::fs::create_dir_all(&params.dir).map_err(Fault::io(params.dir.display()))?;
    let told = Tasks::new();
    let signals = Signals::catch().map_err(Fault::io("catch signals"))?;
    signals.govern(&told);

    let mut swarm = Swarm::new(params).await?;
    let processes = swarm.processes().len();
    say(&format!(
        "{agents} agents of {} series and {} rows of inventory each, in {}",
        swarm.shape().series(),
        swarm.shape().rows(),
        if processes == 1 {
            "one process".to_owned()
        } else {
            format!("{processes} processes")
        }
    ));
    let begun = Instant::now();
    let enrolling = swarm.tally().clone();
    let progress = async {
        let mut ticks = interval(PROGRESS);
        loop {
            ticks.tick().await;
            let enrolled = enrolling.enrolled.load(Ordering::Relaxed);
            say(&format!("{enrolled} of {agents} have joined"));
        }
    };
    tokio::select! {
        enrolled = swarm.enrol() => enrolled?,
        () = progress => {}
        () = told.shutdown_begun() => return Err(Fault::new("stopped while agents joined")),
    }
    let enrolled = begun.elapsed();

    let begun = Instant::now();
    let cpu = swarm.cpu_time();
    let mut waits = Waits::default();
    let mut all_connected = None;
    let mut all_reported = None;
    swarm.start().await?;
    let until = cli
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = told.shutdown_begun() => break,
            _ = ticks.tick() => {}
        }
        swarm.check()?;
        let tally = swarm.tally();
        let count = |what: &std::sync::atomic::AtomicU64| what.load(Ordering::Relaxed);
        let connected = tally.connected.load(Ordering::Relaxed);
        let new = tally.take_waits();
        if connected == agents {
            all_connected.get_or_insert_with(|| begun.elapsed());
        }
        if tally.reporting() == agents {
            all_reported.get_or_insert_with(|| begun.elapsed());
        }
        let why = if connected < agents {
            tally.why_away()
        } else {
            String::new()
        };
        say(&format!(
            "{connected} of {agents} connected, {} reports, {} acked (p99 {:.2} s), {} failed{}{why}",
            count(&tally.reports),
            count(&tally.acked),
            new.quantile(99).as_secs_f64(),
            count(&tally.failed),
            if why.is_empty() { "" } else { "; " },
        ));
        waits.add(&new);
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
    let ran = begun.elapsed();
    let cpu = swarm.cpu_time().saturating_sub(cpu);
    waits.add(&swarm.tally().take_waits());
    let tally = swarm.tally().clone();
    let given = json!({
        "agents": agents, "processes": processes, "series": swarm.shape().series(), "interval_seconds": cli.interval,
        "transport": format!("{:?}", cli.transport).to_lowercase(), "seed": cli.seed,
        "ran_seconds": ran.as_secs_f64(),
    });
    swarm.stop().await?;
    let counted = |what: &std::sync::atomic::AtomicU64| {
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
        let value = what.load(Ordering::Relaxed) as f64;
        value
    };
    let seconds = |span: Option<Duration>| span.map(|span| span.as_secs_f64());
    let given: Map<String, Value> = given.as_object().cloned().unwrap_or_default();
    for (figure, value, unit) in [
        ("enrol_seconds", Some(enrolled.as_secs_f64()), "seconds"),
        ("connect_seconds", seconds(all_connected), "seconds"),
        ("reporting_seconds", seconds(all_reported), "seconds"),
        ("sessions", Some(counted(&tally.sessions)), "sessions"),
        ("reports", Some(counted(&tally.reports)), "reports"),
        ("samples", Some(counted(&tally.samples)), "samples"),
        ("acked", Some(counted(&tally.acked)), "reports"),
        ("failed", Some(counted(&tally.failed)), "reports"),
        ("ack_p50", Some(waits.quantile(50).as_secs_f64()), "seconds"),
        ("ack_p99", Some(waits.quantile(99).as_secs_f64()), "seconds"),
        ("cpu_seconds", Some(cpu.as_secs_f64()), "seconds"),
    ] {
        // What did not happen has no figure.
        let Some(value) = value else { continue };
        let figure = Figure {
            bench: "swarm",
            figure,
            subject: "nexus-swarm",
            value,
            unit,
            params: given.clone(),
        };
        let mut out = io::stdout();
        writeln!(out, "{}", figure.to_line()).map_err(Fault::io("write to standard output"))?;
    }
    Ok(())
}

/// In memory where that is possible, so that fsyncs of thousands do not wait for one disk.
fn made_folder() -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("nexus-swarm-");
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
}

/// For people.
fn say(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}
