//! `nexusctl demo`: the whole product on this machine, in one folder.
//!
//! Starts the real collector and real agents, waits on what they really report, and goes through the
//! commands a newcomer would type. Nothing outside the folder is touched; what an earlier demo left
//! there is used again.

use std::{path::PathBuf, time::Duration};

use crate::{
    cli::DemoArgs,
    fault::{Context as _, Exit, Fault, Outcome},
    login, output,
    profile::Profile,
    run::follow::Interrupt,
    session::Session,
    signers::Voucher,
    terminal,
};

mod enrol;
mod folder;
mod http;
mod programs;
mod progress;
mod tour;
mod wait;

use folder::{Endpoints, Folder};
use programs::{Binaries, Programs};
use progress::Progress;

/// How often running programs are looked after.
const LOOK: Duration = Duration::from_millis(250);
/// Time for each answer of a login.
const LOGIN: Duration = Duration::from_secs(30);

pub(crate) async fn demo(session: &Session, args: &DemoArgs) -> Outcome<Exit> {
    let folder = Folder::open(args.dir.clone().map_or_else(default_dir, Ok)?)?;
    let binaries = Binaries::find()?;
    terminal::say(&format!("demo in {}", folder.dir.display()));
    programs::stop_leftovers(&folder).await;
    let mut interrupt = Interrupt::new()?;
    let mut programs = Programs::new(folder.pids_file());
    let outcome = tokio::select! {
        outcome = show(session, args, &folder, &binaries, &mut programs) => outcome,
        () = interrupt.wait() => Ok(Exit::Interrupted),
    };
    let outcome = match outcome {
        Ok(Exit::Success) if !args.once => {
            stay(&mut programs, &mut interrupt).await;
            Ok(Exit::Success)
        }
        other => other,
    };
    terminal::say("stopping …");
    programs.stop(interrupt.wait()).await;
    outcome
}

/// Everything up to the end of the tour.
async fn show(
    session: &Session,
    args: &DemoArgs,
    folder: &Folder,
    binaries: &Binaries,
    programs: &mut Programs,
) -> Outcome<Exit> {
    let progress = Progress::new();
    let code = initialize(folder, binaries, &progress).await?;
    progress.step("starting the collector");
    let endpoints = start_collector(folder, binaries, programs).await?;
    folder.write_endpoints(&endpoints)?;
    let session = session.with_client(folder.client_toml());
    log_in(&session, folder, binaries, &endpoints, code, &progress).await?;

    let names = folder::node_names(args.agents);
    let mut collector = session.connect().await?;
    enrol::enrol(
        &session,
        &mut collector,
        folder,
        binaries,
        &endpoints,
        &names,
        &progress,
    )
    .await?;
    progress.step(&format!(
        "starting {}",
        terminal::counted(u64::try_from(names.len()).unwrap_or(u64::MAX), "agent")
    ));
    for (number, _) in (1..).zip(&names) {
        programs.start(
            &format!("agent-{number}"),
            binaries.agent_command(folder, number).arg("run"),
            &folder.agent_log(number),
        )?;
    }
    wait::for_data(&mut collector, &endpoints, programs, &names, &progress).await?;
    progress.done();

    tour::tour(&session, &endpoints, &names).await?;
    programs.check()?;
    output::line(&format!(
        "\nagents     {}\noperators  {}\nmetrics    {}\n\nexport NEXUSCTL_CONFIG={}",
        endpoints.agents,
        endpoints.operators,
        endpoints.metrics,
        folder.client_toml().display()
    ))?;
    Ok(Exit::Success)
}

/// Makes the collector's state if there is none, and gives the operator code that came with it.
async fn initialize(
    folder: &Folder,
    binaries: &Binaries,
    progress: &Progress,
) -> Outcome<Option<String>> {
    folder.write_collector_config()?;
    if folder.collector_dir().join("pki").exists() {
        return Ok(None);
    }
    progress.step("making the fleet's keys");
    let text = programs::output_of(binaries.collector_command(folder).arg("init")).await?;
    Ok(text.lines().last().map(str::to_owned))
}

async fn start_collector(
    folder: &Folder,
    binaries: &Binaries,
    programs: &mut Programs,
) -> Outcome<Endpoints> {
    let written = folder.collector_dir().join("endpoints.json");
    match std::fs::remove_file(&written) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Fault::because(
                format!("remove {}", written.display()),
                &error,
            ));
        }
        _ => {}
    }
    programs.start(
        "collector",
        binaries.collector_command(folder).arg("serve"),
        &folder.collector_log(),
    )?;
    let endpoints = wait::for_collector(&written, programs).await?;
    // From now on the same command line comes back on the same ports.
    folder.keep_ports(&endpoints)?;
    Ok(endpoints)
}

/// An identity that is still good is used again, with the collector's present address.
async fn log_in(
    session: &Session,
    folder: &Folder,
    binaries: &Binaries,
    endpoints: &Endpoints,
    code: Option<String>,
    progress: &Progress,
) -> Outcome {
    let address = endpoints.operators_address().to_owned();
    if code.is_none()
        && let Ok(mut profile) = Profile::load(&folder.client_toml())
        && profile.check_certificate(session.now()).is_ok()
    {
        profile.addresses = vec![address];
        return profile.write_client_toml();
    }
    progress.step("logging in");
    let code = match code {
        Some(code) => code,
        None => {
            let text =
                programs::output_of(binaries.collector_command(folder).arg("login-code")).await?;
            text.lines().last().unwrap_or_default().to_owned()
        }
    };
    // It runs in a folder of ours, from a program of ours.
    let voucher = Voucher::Collector;
    login::with_code(session, &code, vec![address], voucher, LOGIN)
        .await
        .map(drop)
}

/// Until the user has seen enough. A program that dies stays down.
async fn stay(programs: &mut Programs, interrupt: &mut Interrupt) {
    terminal::say("running until Ctrl-C");
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = interrupt.wait() => return,
            _ = look.tick() => programs.say_who_died(),
        }
    }
}

/// `$XDG_STATE_HOME/nexus-demo`
fn default_dir() -> Outcome<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("nexus-demo"))
        .ok_or_else(|| Fault::new("demo", "HOME is not set").hint("give --dir D"))
}

/// Makes a path absolute without asking that it exist.
fn absolute(path: PathBuf) -> Outcome<PathBuf> {
    std::path::absolute(&path).doing(format!("find {}", path.display()))
}
