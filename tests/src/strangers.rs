//! Strangers who hold connections open and say nothing, or next to nothing, while an operator works.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nexus_runtime::clock::Clock;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::{Fleet, SOON},
    poll,
};

/// The beginning of a TLS record that says it is 512 bytes long.
const BEGINNING: [u8; 5] = [22, 3, 1, 2, 0];
/// From one byte of a slow stranger to the next.
const SLOWLY: Duration = Duration::from_secs(1);
/// How soon one who was shown the door is back.
const AGAIN: Duration = Duration::from_millis(500);

/// How it goes.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    /// Strangers, half of them at the agents' port and half at the operators'.
    pub strangers: usize,
    /// How many addresses they come from.
    pub addresses: u16,
    /// How often the operator asks.
    pub calls: usize,
}

/// What it came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// How long `nexusctl get nodes` took, its own start included, shortest first.
    pub took: Vec<Duration>,
    /// The same before anybody came.
    pub took_before: Vec<Duration>,
    /// Connections that were made.
    pub made: u64,
    /// Strangers that were connected at each call, fewest first.
    pub present: Vec<usize>,
}

impl Report {
    /// p50 and p95, with and without strangers.
    #[must_use]
    pub fn figures(&self, params: &Params) -> Vec<Figure> {
        let figure = |figure, took: &[Duration], strangers: usize| {
            let given = json!({
                "call": "nexusctl get nodes",
                "calls": params.calls,
                "strangers": strangers,
                "addresses": params.addresses,
                "connections_made": self.made,
                "present_least": self.present.first(),
            });
            let given: Map<String, Value> = given.as_object().cloned().unwrap_or_default();
            Figure {
                bench: "strangers",
                figure,
                subject: "nexus",
                value: took
                    .get(place(took.len(), figure))
                    .map_or(0.0, Duration::as_secs_f64),
                unit: "seconds",
                params: given,
            }
        };
        vec![
            figure("p50", &self.took_before, 0),
            figure("p95", &self.took_before, 0),
            figure("p50", &self.took, params.strangers),
            figure("p95", &self.took, params.strangers),
        ]
    }
}

/// Where a quantile stands in so many sorted values.
fn place(of: usize, figure: &str) -> usize {
    let percent = if figure == "p95" { 95 } else { 50 };
    (of * percent).div_ceil(100).saturating_sub(1)
}

/// Runs it.
pub async fn run(params: &Params, say: &dyn Fn(&str)) -> Outcome<Report> {
    make_room(params.strangers)?;
    let mut fleet = Fleet::new(&[]).await?;
    fleet.add("alpha", &["interval=1s"]).await?;
    fleet.connected("alpha").await?;
    let (took_before, _) = ask(&fleet, params.calls, &|| 0).await?;

    say(&format!("{} strangers come", params.strangers));
    let present = Arc::new(AtomicUsize::new(0));
    let made = Arc::new(AtomicU64::new(0));
    let endpoints = fleet.collector.endpoints();
    let ports: Vec<SocketAddr> = [&endpoints.agents, &endpoints.operators]
        .iter()
        .map(|address| address.parse())
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::new(format!("an endpoint: {error}")))?;
    let mut strangers = JoinSet::new();
    for (number, port) in (0..params.strangers).zip(ports.iter().cycle()) {
        let stranger = Stranger {
            port: *port,
            address: address(number, params.addresses),
            slow: number / 2 % 2 == 0,
            present: Arc::clone(&present),
            made: Arc::clone(&made),
        };
        strangers.spawn(stranger.haunt());
    }
    poll::until_ok("the strangers", SOON, || {
        let tried = made.load(Ordering::Relaxed);
        let all = u64::try_from(params.strangers).is_ok_and(|all| tried >= all);
        std::future::ready(if all {
            Ok(())
        } else {
            Err(format!("{tried} came"))
        })
    })
    .await?;
    let (took, there) = ask(&fleet, params.calls, &|| present.load(Ordering::Relaxed)).await?;
    strangers.shutdown().await;

    // Nobody lost a session to them.
    let (said, _) = fleet.job(&["--all"], &["true"]).await?;
    if said.code != 0 {
        return Err(Fault::new(format!(
            "a job failed among strangers: {said:?}"
        )));
    }
    Ok(Report {
        took,
        took_before,
        made: made.load(Ordering::Relaxed),
        present: there,
    })
}

/// Each stranger is a descriptor here.
fn make_room(strangers: usize) -> Outcome {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(strangers)
        .unwrap_or(u64::MAX)
        .saturating_add(256);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| wanted.min(most)));
        let raised = setrlimit(Resource::Nofile, limit);
        raised.map_err(|error| Fault::new(format!("raise the limit of open files: {error}")))?;
    }
    Ok(())
}

/// Calls one after the other: how long each took, and what `count` said at each.
async fn ask(
    fleet: &Fleet,
    calls: usize,
    count: &dyn Fn() -> usize,
) -> Outcome<(Vec<Duration>, Vec<usize>)> {
    let clock = Clock::system();
    let (mut took, mut counts) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        counts.push(count());
        let begun = clock.instant();
        let node = fleet.node("alpha").await?;
        took.push(clock.instant().saturating_duration_since(begun));
        if node.get("state").is_none_or(|state| state != "connected") {
            return Err(Fault::new(format!("not connected any more: {node}")));
        }
    }
    took.sort_unstable();
    counts.sort_unstable();
    Ok((took, counts))
}

/// One of many addresses of this host.
fn address(number: usize, addresses: u16) -> Ipv4Addr {
    let number = number % usize::from(addresses.max(1));
    let [_, _, high, low] = u32::try_from(number).unwrap_or(0).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low.max(1))
}

struct Stranger {
    port: SocketAddr,
    address: Ipv4Addr,
    slow: bool,
    present: Arc<AtomicUsize>,
    made: Arc<AtomicU64>,
}

impl Stranger {
    /// Connects, stays as long as it is let, and comes again.
    async fn haunt(self) {
        loop {
            // Whatever ended it, there is a next time.
            drop(self.visit().await);
            sleep(AGAIN).await;
        }
    }

    async fn visit(&self) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((self.address, 0)))?;
        let connected = socket.connect(self.port).await;
        self.made.fetch_add(1, Ordering::Relaxed);
        let mut stream = connected?;
        self.present.fetch_add(1, Ordering::Relaxed);
        let mut rest = BEGINNING.iter().copied().chain(std::iter::repeat(0));
        let mut answer = [0; 16];
        let end = loop {
            let byte = rest.next().filter(|_| self.slow);
            if let Some(byte) = byte
                && let Err(error) = stream.write_all(&[byte]).await
            {
                break Err(error);
            }
            match timeout(SLOWLY, stream.read(&mut answer)).await {
                Err(_) => {}
                Ok(Ok(0)) => break Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => break Err(error),
            }
        };
        self.present.fetch_sub(1, Ordering::Relaxed);
        end
    }
}
