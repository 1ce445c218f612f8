//! `nexus-bench`: every benchmark, one JSON line a figure on standard output, words on standard error.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use nexus_tests::{
    fault::{Fault, Outcome},
    figure::Figure,
    soak::{self, Victims},
    strangers,
};

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
    /// Kills programs again and again under agents that report and run jobs, and counts what is there in the end
    Soak(SoakArgs),
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

fn victims(text: &str) -> Result<Victims, String> {
    Victims::parse(text).ok_or_else(|| "expected collector, agents or both".to_owned())
}

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
        Bench::List => print(
            "soak       nothing but the programs\nstrangers  nothing but the programs, and two descriptors a stranger\n",
        ),
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
