//! The Nexus admin command line.
//!
//! Data goes to standard output, everything else to standard error; a failure is one line
//! `error: what failed: why` and, where one helps, a `hint:`. [`cli`] says what can be asked, each command
//! has a module of its own, [`connection`] reaches the collector as the operator whose keys [`profile`]
//! keeps, [`output`] prints rows in every format.

#![forbid(unsafe_code)]

pub mod cli;
pub mod fault;
#[doc(hidden)]
pub mod inside;
pub mod output;
pub mod terminal;
pub mod thing;
pub mod when;

mod audit;
mod completion;
mod config;
mod connection;
mod demo;
mod describe;
mod dial;
mod get;
mod job;
mod label;
mod login;
mod metrics;
mod names;
mod nodes;
mod profile;
mod query;
mod run;
mod session;
mod signers;
mod skew;
mod token;
mod usage;
mod visible;

use std::ffi::OsString;

use clap::Parser as _;
use cli::{AuditCommand, Cli, Command, TokenCommand};
use fault::{Context as _, Exit, Outcome};
use session::Session;

/// Runs one command line to its end and gives the exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let outcome = match Cli::try_parse_from(&args) {
        Ok(cli) => start(cli),
        Err(error) => usage::explain(&error, &args),
    };
    match outcome {
        Ok(exit) => exit.code(),
        Err(fault) => {
            terminal::report(&fault);
            if fault.quiet {
                Exit::Success.code()
            } else {
                fault.exit.code()
            }
        }
    }
}

fn start(cli: Cli) -> Outcome<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing("start the program")?;
    let outcome = runtime.block_on(command(cli));
    // A read of standard input cannot be interrupted; nothing else is left by now.
    runtime.shutdown_background();
    outcome
}

async fn command(cli: Cli) -> Outcome<Exit> {
    let session = Session::new(&cli)?;
    let done = |()| Exit::Success;
    match cli.command {
        Command::Demo(args) => demo::demo(&session, &args).await,
        Command::Login(args) => login::login(&session, &args).await.map(done),
        Command::Get(args) => get::get(&session, &args).await.map(done),
        Command::Describe(args) => describe::describe(&session, &args).await.map(done),
        Command::Query(args) => query::query(&session, &args).await.map(done),
        Command::Metrics(args) => metrics::metrics(&session, &args).await.map(done),
        Command::Run(args) => run::run(&session, &args).await,
        Command::Logs(args) => job::logs(&session, &args).await,
        Command::Wait(args) => job::wait(&session, &args).await,
        Command::Cancel(args) => job::cancel(&session, &args).await.map(done),
        Command::Token(TokenCommand::Create(args)) => {
            token::create(&session, &args).await.map(done)
        }
        Command::Token(TokenCommand::Revoke { id }) => token::revoke(&session, &id).await.map(done),
        Command::Label(args) => label::label(&session, &args).await.map(done),
        Command::Audit(AuditCommand::Verify { output }) => {
            audit::verify(&session, &output).await.map(done)
        }
        Command::Config(args) => config::config(&session, &args.output).map(done),
        Command::Completion { shell } => completion::completion(shell).map(done),
        Command::Version(args) => config::version(&args.output).map(done),
    }
}
