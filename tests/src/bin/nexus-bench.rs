//! `nexus-bench`: every benchmark, one JSON line a figure on standard output, words on standard error.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use nexus_runtime::shutdown::Signals;
use nexus_tests::{
    bench::{
        Load, all, compress, connect, fanout, footprint, growth, ingest, machine, peers, query,
        recover, shell,
    },
    fault::{Fault, Outcome},
    figure::Figure,
    report,
    soak::{self, Victims},
    strangers,
    swarm::memory,
};
use nexus_transport::Mode;

/// Measures Nexus, beside other programs where they do a part of its work. Prints one JSON object a figure; words go to
/// standard error. Programs are found beside this one. Everything that is started listens on loopback and ends with it.
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
    /// Runs every benchmark, keeps what each prints, and makes the page of it
    All(AllArgs),
    /// Makes a page with tables and charts from what benchmarks printed
    Report(ReportArgs),
    /// What this machine is, for those who read the figures
    Machine,
    /// Kills programs again and again under agents that report and run jobs, and counts what is there in the end
    Soak(SoakArgs),
    /// What an agent costs its host, beside node_exporter and collectd
    Footprint(FootprintArgs),
    /// How long until all agents of a swarm report, at first and after the collector was killed
    Connect(LoadArgs),
    /// What a steady stream of metrics costs the collector, and what it costs Prometheus
    Ingest(IngestArgs),
    /// How long a collector is away that was killed under load, and what making its projections anew takes
    Recover(SpanArgs),
    /// `true` on every agent of a swarm at once, and on agents of this host beside Salt and Ansible
    Fanout(FanoutArgs),
    /// What an operator waits for answers while a swarm reports
    Query(RepeatArgs),
    /// What a sample takes on disk once it is compacted, beside Prometheus' blocks, and what that costs
    Compress(CompressArgs),
    /// The same figures for ever larger fleets, from which a report reckons what 100,000 agents need
    Growth(GrowthArgs),
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
    /// Files of JSON lines, or folders of *.jsonl [default: OUT/performance]
    files: Vec<PathBuf>,
    /// Folder for performance.md, with the charts in performance/ beside it
    #[arg(long, default_value = "docs")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct AllArgs {
    /// A few minutes instead of about fifty: shows that all of it works
    #[arg(long)]
    quick: bool,
    /// Folder for performance.md; raw lines and charts go to performance/ beside it
    #[arg(long, default_value = "docs")]
    out: PathBuf,
    #[command(flatten)]
    peers: PeersArgs,
    /// Only benchmarks of these names
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
}

/// Other programs.
#[derive(Debug, Args)]
struct PeersArgs {
    /// Ours alone
    #[arg(long)]
    no_peers: bool,
    /// Where Salt and Ansible are installed and kept, some 300 MB [default: nexus-bench in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl PeersArgs {
    fn cache(&self) -> Option<PathBuf> {
        if self.no_peers {
            return None;
        }
        self.cache.clone().or_else(peers::cache_folder)
    }

    fn words(&self) -> Vec<String> {
        let cache = self.cache.iter();
        let mut words: Vec<String> = cache
            .map(|dir| format!("--cache={}", dir.display()))
            .collect();
        words.extend(self.no_peers.then(|| "--no-peers".to_owned()));
        words
    }
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
    /// How long is measured; with more than 600, how much the agent's memory grew from the tenth minute on
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Jobs, reconnects and inventory that changes meanwhile
    #[arg(long)]
    churn: bool,
}

#[derive(Debug, Args)]
struct IngestArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// How long is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Targets of Prometheus, at most as many as agents: it needs some 6 KB of memory a series
    #[arg(long, default_value_t = 1000)]
    peer_agents: usize,
    /// How long Prometheus is measured
    #[arg(long, default_value_t = 60)]
    peer_seconds: u64,
    #[command(flatten)]
    peers: PeersArgs,
}

#[derive(Debug, Args)]
struct SpanArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// How long there is load before the kill
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct FanoutArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// How often
    #[arg(long, default_value_t = 5)]
    times: usize,
    /// How many nexus-agent processes of this host, each a node of its own
    #[arg(long, default_value_t = 50)]
    processes: usize,
    /// Minions of Salt, and hosts of Ansible
    #[arg(long, default_value_t = 10)]
    hosts: u8,
    #[command(flatten)]
    peers: PeersArgs,
}

#[derive(Debug, Args)]
struct CompressArgs {
    /// How many hosts are made up
    #[arg(long, default_value_t = 50)]
    nodes: usize,
    /// Series of each
    #[arg(long, default_value_t = 200)]
    series: usize,
    /// How long they report, by their clocks
    #[arg(long, default_value_t = 2)]
    hours: u32,
    /// Seconds from one reading to the next
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// The same seed makes the same hosts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    peers: PeersArgs,
}

#[derive(Debug, Args)]
struct GrowthArgs {
    /// How many agents, one fleet after the other
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000, 10_000])]
    agents: Vec<usize>,
    /// Series of each
    #[arg(long, default_value_t = 200)]
    series: usize,
    /// Seconds from one reading to the next
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// What carries sessions: auto, quic or tcp
    #[arg(long, default_value = "quic", value_parser = transport)]
    transport: Mode,
    /// How long each is measured
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

impl GrowthArgs {
    fn load(&self, agents: usize) -> Load {
        Load {
            agents: agents.max(1),
            series: self.series,
            packages: 500,
            interval: Duration::from_secs(self.interval.max(1)),
            transport: self.transport,
            seed: 1,
        }
    }
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
connect    nothing but the programs; the swarm starts as many processes as the limit of open files asks for
ingest     the same; beside it Prometheus (Debian: prometheus); without it, it is left out
recover    the same as connect
fanout     the same as connect; beside it Salt and Ansible (PyPI: salt, ansible-core, installed when they are not there, with
           python3-venv) and openssh-server; without one, it is left out
query      the same as connect
compress   nothing; beside it promtool (Debian: prometheus); without it, it is left out
growth     the same as connect
soak       nothing but the programs
strangers  nothing but the programs, and two descriptors a stranger
all        what each of them needs, and unshare and ip (util-linux, iproute2) for the network of the agent's hour
";

fn main() -> ExitCode {
    memory::keep_large_things_apart();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("start: {error}")),
    };
    // What was started ends with its handle, so a signal must not end this before they are dropped.
    let ended = runtime.block_on(async {
        let mut signals = Signals::catch().map_err(Fault::io("catch signals"))?;
        tokio::select! {
            ended = run(cli.bench) => ended.map(|()| ExitCode::SUCCESS),
            signal = signals.next() => Ok(ExitCode::from(signal.exit_code())),
        }
    });
    ended.unwrap_or_else(|fault| failed(&fault.to_string()))
}

fn failed(what: &str) -> ExitCode {
    say(&format!("error: {what}"));
    ExitCode::FAILURE
}

async fn run(bench: Bench) -> Outcome {
    match bench {
        Bench::List => print(LIST),
        Bench::Machine => figures(&machine::describe()),
        Bench::Report(mut args) => {
            if args.files.is_empty() {
                args.files.push(all::folder(&args.out));
            }
            report::write(&args.files, &args.out)
        }
        Bench::All(args) => {
            let steps: &[all::Step] = if args.quick { &all::QUICK } else { &all::WHOLE };
            all::run(steps, &args.only, &args.peers.words(), &args.out, &say).await
        }
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
            figures(&footprint::run(span, args.churn, &say).await?)
        }
        Bench::Connect(args) => figures(&connect::run(args.load(), &say).await?),
        Bench::Ingest(args) => {
            let span = Duration::from_secs(args.seconds.max(1));
            let load = args.load.load();
            figures(&ingest::run(load, span, &say).await?)?;
            let targets = args.peer_agents.min(load.agents);
            if args.peers.no_peers || targets == 0 {
                return Ok(());
            }
            let span = Duration::from_secs(args.peer_seconds.max(1));
            match peers::prometheus::run(&load, targets, span, &say).await {
                Ok(measured) => figures(&measured),
                Err(fault) => {
                    say(&format!("without Prometheus: {fault}"));
                    Ok(())
                }
            }
        }
        Bench::Recover(args) => {
            let span = Duration::from_secs(args.seconds);
            figures(&recover::run(args.load.load(), span, &say).await?)
        }
        Bench::Fanout(args) => {
            figures(&fanout::run(args.load.load(), args.times, &say).await?)?;
            let params = shell::Params {
                times: args.times.max(1),
                agents: args.processes,
                hosts: args.hosts,
                cache: args.peers.cache(),
            };
            figures(&shell::run(&params, &say).await?)
        }
        Bench::Growth(args) => {
            let span = Duration::from_secs(args.seconds.max(1));
            for agents in &args.agents {
                figures(&growth::run(args.load(*agents), span, &say).await?)?;
            }
            Ok(())
        }
        Bench::Compress(args) => {
            let params = compress::Params {
                nodes: args.nodes.max(1),
                series: args.series.max(1),
                hours: args.hours.max(1),
                interval: Duration::from_secs(args.interval.max(1)),
                seed: args.seed,
                peer: !args.peers.no_peers,
            };
            figures(&compress::run(&params, &say).await?)
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_runs_is_understood() {
        for step in all::WHOLE.iter().chain(&all::QUICK) {
            let words = ["nexus-bench"].into_iter().chain(step.line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{}: {error}", step.line);
            }
        }
    }
}
