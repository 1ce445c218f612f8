//! `nexus-bench`: every benchmark, one JSON line a figure on standard output, words on standard error.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use nexus_tests::{
    bench::{Load, connect, fanout, footprint, ingest, query},
    fault::{Fault, Outcome},
    figure::Figure,
    report,
    soak::{self, Victims},
    strangers,
};
use nexus_transport::Mode;

/// Measures Nexus. Programs are found beside this one.
#[derive(Debug, Parser)]
#[command(name = "nexus-bench", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Names every benchmark with what it needs
    List,
    /// Makes a page with tables and charts from what benchmarks printed
    Report(ReportArgs),
    /// Kills programs again and again under agents that report and run jobs, and counts what is there in the end
    Soak(SoakArgs),
    /// What an agent costs its host, beside node_exporter and collectd
    Footprint(FootprintArgs),
    /// How long until all agents of a swarm report, at first and after the collector was killed
    Connect(LoadArgs),
    /// What a steady stream of metrics costs the collector
    Ingest(IngestArgs),
    /// A job on every agent of a swarm at once
    Fanout(RepeatArgs),
    /// What an operator waits for answers while a swarm reports
    Query(RepeatArgs),
    /// Asks for the nodes while strangers hold connections to both ports, silent or a byte a second
    Strangers(StrangersArgs),
}

#[derive(Debug, Args)]
struct SoakArgs {
    /// How long there is killing
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Seconds from one kill to the next
    #[arg(long, default_value_t = 5)]
    every: u64,
    /// How many agents
    #[arg(long, default_value_t = 5)]
    agents: usize,
    /// Who is killed: collector, agents or both
    #[arg(long, default_value = "collector", value_parser = victims)]
    kill: Victims,
    /// The same seed kills in the same order
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct StrangersArgs {
    /// How many strangers, at both ports together
    #[arg(long, default_value_t = 2000)]
    strangers: usize,
    /// How many addresses they come from, in 127.1.0.0/16
    #[arg(long, default_value_t = 250)]
    addresses: u16,
    /// How many calls are timed, before they come and while they are there
    #[arg(long, default_value_t = 100)]
    calls: usize,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Files of JSON lines
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Folder for performance.md and its charts
    #[arg(long, default_value = "docs")]
    out: PathBuf,
}

/// A swarm.
#[derive(Debug, Args)]
struct LoadArgs {
    /// How many agents
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Series of each
    #[arg(long, default_value_t = 200)]
    series: usize,
    /// Packages of each
    #[arg(long, default_value_t = 500)]
    packages: usize,
    /// Seconds from one reading to the next
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// What carries sessions: auto, quic or tcp
    #[arg(long, default_value = "quic", value_parser = transport)]
    transport: Mode,
    /// The same seed makes the same hosts
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl LoadArgs {
    fn load(&self) -> Load {
        Load {
            agents: self.agents.max(1),
            series: self.series,
            packages: self.packages,
            interval: Duration::from_secs(self.interval.max(1)),
            transport: self.transport,
            seed: self.seed,
        }
    }
}

#[derive(Debug, Args)]
struct FootprintArgs {
    /// How long is measured
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct IngestArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// How long is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct RepeatArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// How often
    #[arg(long, default_value_t = 5)]
    times: usize,
}

fn transport(text: &str) -> Result<Mode, String> {
    Mode::parse(text).ok_or_else(|| "expected auto, quic or tcp".to_owned())
}

fn victims(text: &str) -> Result<Victims, String> {
    Victims::parse(text).ok_or_else(|| "expected collector, agents or both".to_owned())
}

/// Every benchmark with what it needs.
const LIST: &str = "\
footprint  node_exporter and collectd (Debian: prometheus-node-exporter, collectd-core); without one, it is left out
connect    nothing but the programs, and eight descriptors an agent
ingest     the same
fanout     the same
query      the same
soak       nothing but the programs
strangers  nothing but the programs, and two descriptors a stranger
";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("start: {error}")),
    };
    match runtime.block_on(run(cli.bench)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => failed(&fault.to_string()),
    }
}

fn failed(what: &str) -> ExitCode {
    say(&format!("error: {what}"));
    ExitCode::FAILURE
}

async fn run(bench: Bench) -> Outcome {
    match bench {
        Bench::List => print(LIST),
        Bench::Report(args) => report::write(&args.files, &args.out),
        Bench::Soak(args) => {
            let params = soak::Params {
                span: Duration::from_secs(args.seconds),
                every: Duration::from_secs(args.every.max(1)),
                agents: args.agents.max(1),
                victims: args.kill,
                seed: args.seed,
            };
            let report = soak::run(&params, &say).await?;
            for fault in &report.faults {
                say(&format!("fault: {fault}"));
            }
            figures(&report.figures(&params))?;
            if report.faults.is_empty() {
                Ok(())
            } else {
                Err(Fault::new("soak: not everything is as it should be"))
            }
        }
        Bench::Footprint(args) => {
            let span = Duration::from_secs(args.seconds.max(1));
            figures(&footprint::run(span, &say).await?)
        }
        Bench::Connect(args) => figures(&connect::run(args.load(), &say).await?),
        Bench::Ingest(args) => {
            let span = Duration::from_secs(args.seconds.max(1));
            figures(&ingest::run(args.load.load(), span, &say).await?)
        }
        Bench::Fanout(args) => figures(&fanout::run(args.load.load(), args.times, &say).await?),
        Bench::Query(args) => figures(&query::run(args.load.load(), args.times, &say).await?),
        Bench::Strangers(args) => {
            let params = strangers::Params {
                strangers: args.strangers,
                addresses: args.addresses,
                calls: args.calls.max(1),
            };
            figures(&strangers::run(&params, &say).await?.figures(&params))
        }
    }
}

fn figures(figures: &[Figure]) -> Outcome {
    for figure in figures {
        print(&format!("{}\n", figure.to_line()))?;
    }
    Ok(())
}

fn print(text: &str) -> Outcome {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Fault::new(format!("write to standard output: {error}")))
}

/// For people.
fn say(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}
