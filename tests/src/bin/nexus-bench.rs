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
        Bench::List => print("soak   nothing but the programs\n"),
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
