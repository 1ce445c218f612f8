//! Strangers who connect and say nothing, or next to nothing, many more than a port has places for.

use std::time::Duration;

use nexus_pki::{
    admission::Admission,
    authority::Authority,
    csr,
    leaf::Leaf,
    tls::{self, KeyExchange, LiveLeaf},
};
use nexus_proto::operator::v1::{WhoAmIRequest, operator_client::OperatorClient};
use nexus_runtime::clock::Clock;
use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
};
use nexus_transport::operator_connect;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const TRUST_DOMAIN: &str = "nexus.internal";
/// On each port.
const STRANGERS: usize = 2000;
/// More of them before each call.
const MORE: usize = 20;
/// Calls, each on a connection of its own.
const CALLS: usize = 100;
/// What 95 of 100 calls take at most.
const P95: Duration = Duration::from_millis(200);
/// The beginning of a TLS record that never ends.
const BEGINNING: [u8; 6] = [22, 3, 1, 2, 0, 1];

#[tokio::test]
async fn silence_and_half_a_handshake_hold_up_nobody_and_are_ended() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let endpoints = fleet.collector.endpoints();
    let mut strangers = Vec::new();
    for port in [&endpoints.agents, &endpoints.operators] {
        come(&mut strangers, port, STRANGERS).await;
    }
    let operator = Operator::of(&fleet);
    let mut took = Vec::new();
    for _ in 0..CALLS {
        come(&mut strangers, &endpoints.agents, MORE).await;
        come(&mut strangers, &endpoints.operators, MORE).await;
        let begun = clock().instant();
        operator.call().await;
        took.push(clock().instant() - begun);
    }
    took.sort();
    let p95 = took[CALLS * 95 / 100];
    assert!(p95 < P95, "{p95:?} of {took:?}");
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(fleet.node("alpha").await.unwrap()["state"], "connected");
    poll::until_ok("the strangers' end", SOON, || {
        let open = strangers
            .iter()
            .filter(|stream| {
                let read = stream.try_read(&mut [0; 16]);
                matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            })
            .count();
        std::future::ready(if open == 0 {
            Ok(())
        } else {
            Err(format!("{open} are open"))
        })
    })
    .await
    .unwrap();
}

/// Every other one begins to speak.
async fn come(strangers: &mut Vec<TcpStream>, port: &str, many: usize) {
    for number in 0..many {
        let mut stream = TcpStream::connect(port).await.unwrap();
        if number % 2 == 0 {
            // Whoever came before may be sent away already.
            stream.write_all(&BEGINNING).await.ok();
        }
        strangers.push(stream);
    }
}

fn clock() -> Clock {
    Clock::system()
}

/// An operator in this process, so that starting a program is not part of what a call takes.
struct Operator {
    address: String,
    live: LiveLeaf,
    admission: Admission,
}

impl Operator {
    fn of(fleet: &Fleet) -> Self {
        let ca = fleet.collector.dir().join("pki").join("ca");
        let authority = Authority::open(&ca, TRUST_DOMAIN, clock().now()).unwrap();
        let (key, csr) = csr::new_csr().unwrap();
        let issued = authority.issue_operator(&csr, "admin", clock().now());
        let leaf = Leaf::new(key, issued.unwrap().chain).unwrap();
        Self {
            address: fleet.collector.endpoints().operators.clone(),
            live: LiveLeaf::new(leaf, authority.root()).unwrap(),
            admission: Admission::new(authority.root(), TRUST_DOMAIN),
        }
    }

    async fn call(&self) {
        let tls = tls::operator_client(&self.live, &self.admission, KeyExchange::Auto).unwrap();
        let connection = operator_connect(&self.address, tls, None).await.unwrap();
        let mut client = OperatorClient::new(connection.channel.clone());
        client.who_am_i(WhoAmIRequest {}).await.unwrap();
    }
}
