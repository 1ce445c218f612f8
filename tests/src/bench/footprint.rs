//! What an agent costs its host, over all its processes, beside what others cost that do a part of its work.

mod churn;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};

use self::churn::{Happened, churn};
use super::float;
use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::Fleet,
    helper::Helper,
    port,
    process::Process,
    programs::Programs,
    relay::Relay,
    usage,
};

/// What a start leaves behind is not measured.
const WARM_UP: Duration = Duration::from_secs(30);
/// Memory that grows after this is memory that leaks.
const SETTLED: Duration = Duration::from_secs(600);
/// From one scrape or reading to the next, for all.
const INTERVAL: Duration = Duration::from_secs(10);
/// What collectd reads: what the agent reads, as far as it has it.
const COLLECTD: &str = "\
Interval 10
LoadPlugin cpu
LoadPlugin memory
LoadPlugin vmem
LoadPlugin load
LoadPlugin df
LoadPlugin disk
LoadPlugin interface
LoadPlugin swap
LoadPlugin uptime
LoadPlugin csv
";

/// A program that is measured.
struct Subject {
    name: &'static str,
    program: std::path::PathBuf,
    ids: Vec<u32>,
    before: Duration,
    wire_before: u64,
}

impl Subject {
    fn cpu_time(&self) -> Duration {
        self.family().map(usage::cpu_time).sum()
    }

    fn resident_bytes(&self) -> u64 {
        self.family().map(usage::resident_bytes).sum()
    }

    fn proportional_bytes(&self) -> u64 {
        self.family().map(usage::proportional_bytes).sum()
    }

    fn family(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied().flat_map(usage::family)
    }
}

/// Measures for `span`. With `churn` the agent has jobs to run, its collector is killed now and then, and
/// sockets come and go; it is measured alone then.
pub async fn run(span: Duration, churn: bool, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut fleet = Fleet::new(&[]).await?;
    let target: SocketAddr = parse(&fleet.collector.endpoints().agents)?;
    let relay = Relay::to(target).await?;
    let helper = add_agent(&mut fleet, &format!("addresses={}", relay.address())).await?;
    let agent = fleet.agents.first().and_then(|agent| agent.id());
    let agent = agent.ok_or_else(|| Fault::new("the agent ended"))?;
    let helper = helper.as_ref().and_then(Helper::id);
    if helper.is_none() {
        say("without the agent's helper, which only root can start");
    }
    let own = Programs::built().await?.folder().join("nexus-agent");
    let mut subjects = vec![subject("nexus-agent", own, agent)];
    if let Some(subject) = subjects.first_mut() {
        subject.ids.extend(helper);
    }

    let mut scraped = None;
    // What happens to the agent here does not happen to others.
    let exporter = (!churn).then(|| Exporter::start(fleet.dir()));
    match &exporter {
        None => {}
        Some(Ok(exporter)) => {
            subjects.push(subject("node_exporter", exporter.program(), exporter.id()?));
            scraped = Some(exporter.address);
        }
        Some(Err(fault)) => say(&format!("without node_exporter: {fault}")),
    }
    let collectd = (!churn).then(|| start_collectd(fleet.dir()));
    match &collectd {
        None => {}
        Some(Ok(process)) => subjects.push(subject(
            "collectd",
            "/usr/sbin/collectd".into(),
            alive(process)?,
        )),
        Some(Err(fault)) => say(&format!("without collectd: {fault}")),
    }

    say(&format!(
        "measuring for {} s, after {} s",
        span.as_secs(),
        WARM_UP.as_secs()
    ));
    scrape_for(scraped, WARM_UP).await;
    for subject in &mut subjects {
        subject.before = subject.cpu_time();
        subject.wire_before = match subject.name {
            "nexus-agent" => relay.bytes(),
            _ => 0,
        };
    }
    let until = Instant::now() + span;
    let settled = async {
        sleep(SETTLED).await;
        subjects.first().map_or(0, Subject::resident_bytes)
    };
    let happened = async {
        if churn {
            self::churn(&mut fleet, until).await.map(Some)
        } else {
            sleep_until(until).await;
            Ok(None)
        }
    };
    let settled = async { timeout(span, settled).await.ok() };
    let (scraped_bytes, settled, happened) =
        tokio::join!(scrape_for(scraped, span), settled, happened);
    let params = params(span, happened?, subjects.first());
    let minutes = span.as_secs_f64() / 60.0;
    let mut figures = Vec::new();
    for subject in &subjects {
        let cpu = subject.cpu_time().saturating_sub(subject.before);
        let wire = match subject.name {
            "nexus-agent" => Some(relay.bytes().saturating_sub(subject.wire_before)),
            "node_exporter" => Some(scraped_bytes),
            _ => None,
        };
        let figure = |figure, value, unit| Figure {
            bench: "footprint",
            figure,
            subject: subject.name,
            value,
            unit,
            params: params.clone(),
        };
        figures.push(figure("pss", float(subject.proportional_bytes()), "bytes"));
        figures.push(figure("rss", float(subject.resident_bytes()), "bytes"));
        figures.push(figure(
            "cpu_seconds_per_minute",
            cpu.as_secs_f64() / minutes,
            "seconds",
        ));
        if let (Some(helper), "nexus-agent") = (helper, subject.name) {
            let bytes = float(usage::proportional_bytes(helper));
            figures.push(figure("helper_pss", bytes, "bytes"));
        }
        if let (Some(settled), "nexus-agent") = (settled, subject.name) {
            let grown = float(subject.resident_bytes()) / float(settled.max(1)) - 1.0;
            figures.push(figure("rss_growth", grown, "ratio"));
        }
        if let Some(wire) = wire {
            figures.push(figure(
                "wire_bytes_per_minute",
                float(wire) / minutes,
                "bytes",
            ));
        }
        if let Ok(found) = std::fs::metadata(&subject.program) {
            figures.push(figure("binary_size", float(found.len()), "bytes"));
        }
    }
    Ok(figures)
}

/// Enrols and starts what the packages start on a host: an agent with a user of its own and, which only root can start,
/// its helper. Of the two the helper is started at a job and ends soon after; here it stays, and has run one.
async fn add_agent(fleet: &mut Fleet, address: &str) -> Outcome<Option<Helper>> {
    const NAME: &str = "host";
    if !rustix::process::geteuid().is_root() {
        fleet.add(NAME, &[address]).await?;
        fleet.connected(NAME).await?;
        return Ok(None);
    }
    let mut helper = Helper::new(fleet.dir())?;
    let mut agent = helper.agent(NAME, &[address])?;
    let token = fleet.token(&[]).await?;
    agent.enroll(&token).await?;
    helper.start().await?;
    Helper::start_agent(&mut agent).await?;
    fleet.agents.push(agent);
    fleet.connected(NAME).await?;
    let (said, _) = fleet.job(&["--all"], &["true"]).await?;
    if said.code != 0 {
        return Err(Fault::new(format!("a job failed: {}", said.err)));
    }
    Ok(Some(helper))
}

fn params(
    span: Duration,
    happened: Option<Happened>,
    agent: Option<&Subject>,
) -> Map<String, Value> {
    let mut params = json!({
        "seconds": span.as_secs_f64(),
        "interval_seconds": INTERVAL.as_secs_f64(),
        "agent_processes": agent.map_or(0, |subject| subject.ids.len()),
    });
    if let (Some(happened), Some(params)) = (happened, params.as_object_mut()) {
        params.insert("sockets".to_owned(), happened.sockets.into());
        params.insert("jobs".to_owned(), happened.jobs.into());
        params.insert("reconnects".to_owned(), happened.reconnects.into());
    }
    params.as_object().cloned().unwrap_or_default()
}

fn subject(name: &'static str, program: std::path::PathBuf, id: u32) -> Subject {
    Subject {
        name,
        program,
        ids: vec![id],
        before: Duration::ZERO,
        wire_before: 0,
    }
}

fn parse(address: &str) -> Outcome<SocketAddr> {
    address
        .parse()
        .map_err(|error| Fault::new(format!("{address}: {error}")))
}

fn alive(process: &Process) -> Outcome<u32> {
    process.id().ok_or_else(|| Fault::new("it ended at once"))
}

/// Debian's node_exporter as it comes.
struct Exporter {
    process: Process,
    address: SocketAddr,
}

impl Exporter {
    fn start(dir: &Path) -> Outcome<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={address}"));
        let process = Process::start(&mut command, &dir.join("node_exporter.log"))?;
        Ok(Self { process, address })
    }

    fn id(&self) -> Outcome<u32> {
        alive(&self.process)
    }

    fn program(&self) -> std::path::PathBuf {
        "/usr/bin/prometheus-node-exporter".into()
    }
}

fn start_collectd(dir: &Path) -> Outcome<Process> {
    let data = dir.join("collectd");
    let config = dir.join("collectd.conf");
    let text = format!(
        "BaseDir \"{0}\"\nPIDFile \"{0}/pid\"\n{COLLECTD}<Plugin csv>\n  DataDir \"{0}\"\n</Plugin>\n",
        data.display()
    );
    std::fs::create_dir_all(&data).map_err(Fault::io(data.display()))?;
    std::fs::write(&config, text).map_err(Fault::io(config.display()))?;
    let mut command = Command::new("/usr/sbin/collectd");
    command.arg("-f").arg("-C").arg(&config);
    Process::start(&mut command, &dir.join("collectd.log"))
}

/// Scrapes as Prometheus does, for so long; the bytes that took, headers and all.
async fn scrape_for(address: Option<SocketAddr>, span: Duration) -> u64 {
    let Some(address) = address else {
        sleep(span).await;
        return 0;
    };
    let until = Instant::now() + span;
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    let mut bytes = 0;
    loop {
        tokio::select! {
            () = sleep_until(until) => return bytes,
            _ = ticks.tick() => bytes += scrape(address).await.unwrap_or(0),
        }
    }
}

/// With compression, as Prometheus asks for it.
async fn scrape(address: SocketAddr) -> std::io::Result<u64> {
    let request = format!(
        "GET /metrics HTTP/1.0\r\nHost: {address}\r\nAccept-Encoding: gzip\r\nAccept: text/plain;version=0.0.4\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(u64::try_from(answer.len() + request.len()).unwrap_or(u64::MAX))
}
