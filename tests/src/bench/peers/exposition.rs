//! Pages of made-up hosts, as node_exporter shows them: `/N/metrics` is the host of that number in Prometheus'
//! text format, a new reading at each scrape. The hosts are those of a swarm, so that a peer stores the same.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nexus_proto::metrics::Snapshot;
use nexus_runtime::clock::Clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    bench::Load,
    fault::{Fault, Outcome},
    swarm::host::{Host, Shape},
};

/// Bytes of a request at most.
const REQUEST_BYTES: usize = 8192;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// The pages, served until this is dropped.
#[derive(Debug)]
pub struct Exposition {
    address: SocketAddr,
    pages: Arc<Pages>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Pages {
    hosts: Vec<Mutex<Host>>,
    interval: Duration,
    clock: Clock,
    served: AtomicU64,
}

impl Exposition {
    /// Makes `count` hosts of this load and listens on a free port of loopback.
    pub async fn serve(load: &Load, count: usize) -> Outcome<Self> {
        let shape = Arc::new(Shape::of_this_host(load.series, 0).await);
        let seeds = (0_u64..).map(|place| load.seed.wrapping_mul(1 << 32) + place);
        let hosts = seeds
            .take(count)
            .map(|seed| Mutex::new(Host::new(&shape, seed)));
        let pages = Arc::new(Pages {
            hosts: hosts.collect(),
            interval: load.interval,
            clock: Clock::system(),
            served: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(Fault::io("listen"))?;
        let address = listener.local_addr().map_err(Fault::io("listen"))?;
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&pages), count + 64));
        Ok(Self {
            address,
            pages,
            _serving: serving,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many pages were served.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.pages.served.load(Ordering::Relaxed)
    }
}

/// At most so many connections at a time; they end with the task.
async fn accept(listener: TcpListener, pages: Arc<Pages>, most: usize) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= most || connections.try_join_next().is_some() {
            if connections.len() >= most {
                connections.join_next().await;
            }
        }
        // One that cannot be accepted comes again.
        if let Ok((stream, _)) = listener.accept().await {
            let pages = Arc::clone(&pages);
            connections.spawn(async move {
                // Whoever closes a connection has seen what there was to see.
                drop(serve(stream, &pages).await);
            });
        }
    }
}

async fn serve(mut stream: TcpStream, pages: &Pages) -> std::io::Result<()> {
    let mut request = Vec::new();
    while let Ok(read) = timeout(IDLE, stream.read_buf(&mut request)).await {
        if read? == 0 || request.len() > REQUEST_BYTES {
            break;
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, _)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let path = head.split(' ').nth(1).unwrap_or_default();
        let number = path
            .strip_prefix('/')
            .and_then(|rest| rest.strip_suffix("/metrics"));
        let page = number
            .and_then(|number| pages.page(number.parse().ok()?))
            .unwrap_or_default();
        let status = if page.is_empty() {
            "404 Not Found"
        } else {
            "200 OK"
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n{page}",
            page.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        request.clear();
    }
    Ok(())
}

impl Pages {
    fn page(&self, number: usize) -> Option<String> {
        let host = self.hosts.get(number)?;
        let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
        self.served.fetch_add(1, Ordering::Relaxed);
        Some(text(&host.report(self.clock.now(), self.interval)))
    }
}

/// As node_exporter writes it, without the HELP lines.
fn text(snapshot: &Snapshot) -> String {
    let (mut text, mut family) = (String::new(), "");
    for sample in &snapshot.samples {
        if sample.key.name != family {
            family = &sample.key.name;
            push(
                &mut text,
                format_args!("# TYPE {family} {}\n", sample.kind.name()),
            );
        }
        text.push_str(family);
        for (place, (name, value)) in sample.key.labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            push(&mut text, format_args!("{before}{name}=\"{value}\""));
        }
        let end = if sample.key.labels.is_empty() {
            ""
        } else {
            "}"
        };
        push(&mut text, format_args!("{end} {}\n", sample.value));
    }
    text
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _written = text.write_fmt(more);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nexus_proto::metrics::{Sample, SeriesKey, SeriesType};
    use nexus_transport::Mode;

    use super::*;

    #[test]
    fn a_reading_is_written_as_exporters_do() {
        let sample = |name: &str, labels: &[(&str, &str)], kind, value| Sample {
            key: Arc::new(SeriesKey::new(name, labels)),
            kind,
            value,
        };
        let snapshot = Snapshot {
            interval_ms: 1000,
            samples: vec![
                sample("a_total", &[("b", "x\\\"y")], SeriesType::Counter, 2.5),
                sample(
                    "a_total",
                    &[("b", "z"), ("c", "d")],
                    SeriesType::Counter,
                    1e21,
                ),
                sample("load", &[], SeriesType::Gauge, 0.25),
            ],
        };
        assert_eq!(
            text(&snapshot),
            "# TYPE a_total counter\na_total{b=\"x\\\\\\\"y\"} 2.5\na_total{b=\"z\",c=\"d\"} 1000000000000000000000\n\
             # TYPE load gauge\nload 0.25\n"
        );
    }

    #[tokio::test]
    async fn each_scrape_is_a_new_reading_and_there_are_no_more_hosts() {
        let load = Load {
            agents: 1,
            series: 50,
            packages: 0,
            interval: Duration::from_secs(1),
            transport: Mode::Quic,
            seed: 1,
        };
        let exposition = Exposition::serve(&load, 2).await.unwrap();
        let mut stream = TcpStream::connect(exposition.address()).await.unwrap();
        let mut pages = Vec::new();
        for path in ["/1/metrics", "/1/metrics", "/2/metrics"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let body = loop {
                stream.read_buf(&mut answer).await.unwrap();
                let text = String::from_utf8(answer.clone()).unwrap();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let (_, length) = head.rsplit_once(": ").unwrap();
                if body.len() == length.parse::<usize>().unwrap() {
                    break body.to_owned();
                }
            };
            pages.push(body);
        }
        let series = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(
            pages.iter().map(|page| series(page)).collect::<Vec<_>>(),
            [50, 50, 0]
        );
        assert_ne!(pages[0], pages[1]);
        assert_eq!(exposition.served(), 2);
    }
}
