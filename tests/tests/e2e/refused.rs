//! Who does not get in, and that both sides say why in one line.

use std::time::Duration;

use nexus_pki::{
    admission::Admission,
    authority::{Authority, Issued, Lives},
    csr,
    leaf::Leaf,
    signing::SigningKey,
    tls::{self, Alpn, KeyExchange, LiveLeaf},
    token::{self, Token},
};
use nexus_proto::{ids::NodeId, time::Timestamp};
use nexus_runtime::clock::Clock;
use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    poll,
};
use nexus_transport::{DialTls, Dialer, Mode, Windows};

const TRUST_DOMAIN: &str = "nexus.internal";

fn agent(authority: &Authority, node: NodeId, now: Timestamp) -> Leaf {
    let (key, request) = csr::new_csr().unwrap();
    let Issued { chain, .. } = authority.issue_agent(&request, node, now).unwrap();
    Leaf::new(key, chain).unwrap()
}

fn operator(authority: &Authority, now: Timestamp) -> Leaf {
    let (key, request) = csr::new_csr().unwrap();
    let Issued { chain, .. } = authority.issue_operator(&request, "admin", now).unwrap();
    Leaf::new(key, chain).unwrap()
}

#[tokio::test]
async fn certificates_that_are_not_an_agents_of_this_fleet_and_time() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let now = Clock::system().now();
    let day = Duration::from_secs(24 * 3600);
    let ours = fleet.collector.dir().join("pki").join("ca");
    let brief = Lives {
        agent: Duration::from_secs(1),
        ..Lives::default()
    };
    let brief = Authority::open(&ours, TRUST_DOMAIN, now)
        .unwrap()
        .with_lives(brief);
    let ours = Authority::open(&ours, TRUST_DOMAIN, now).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::create(&elsewhere.path().join("ca"), TRUST_DOMAIN, now).unwrap();
    let node = NodeId::random();
    let cases = [
        (
            "expired",
            agent(&brief, node, now.before(Duration::from_secs(60))),
            "expired",
        ),
        (
            "early",
            agent(&ours, node, now.after(2 * day)),
            "is valid from",
        ),
        ("foreign", agent(&foreign, node, now), "root"),
        (
            "collector",
            ours.issue_collector("default", "mallory", now).unwrap(),
            "collector",
        ),
        ("operator", operator(&ours, now), "operator"),
    ];
    // What the server shows is right in every case: it is the client that is not.
    let admission = Admission::new(ours.root(), TRUST_DOMAIN);
    for (name, leaf, because) in cases {
        let live = LiveLeaf::new(leaf, ours.root()).unwrap();
        let config = |alpn| tls::agent_client(&live, &admission, KeyExchange::Auto, alpn).unwrap();
        let tls = DialTls {
            quic: config(Alpn::H3),
            tcp: config(Alpn::H2),
            judge: None,
        };
        let address = fleet.collector.endpoints().agents.clone();
        for mode in [Mode::Quic, Mode::Tcp] {
            let before = fleet.collector.log_text().len();
            let dialer = Dialer::new(vec![address.clone()], tls.clone(), mode, Windows::agent());
            let error = match dialer.connect().await {
                Ok(_) => panic!("{name} got in over {mode:?}"),
                Err(error) => error,
            };
            assert!(error.is_refusal(), "{name} over {mode:?}: {error}");
            assert!(!error.to_string().contains("Other("), "{error}");
            let what = format!("word of {name} over {mode:?}");
            poll::until_ok(&what, SOON, || {
                let log = fleet.collector.log_text();
                let said = log.get(before..).unwrap_or_default().to_owned();
                let told = said.contains("connection refused") && said.contains(because);
                std::future::ready(if told { Ok(()) } else { Err(said) })
            })
            .await
            .unwrap();
        }
    }
    // Of one address only so many a minute: the rest is counted.
    let rows = "SELECT actor, detail FROM audit WHERE action = 'connect' AND decision = 'refused'";
    let rows = fleet
        .eventually(rows, |rows| rows.len() == 6)
        .await
        .unwrap();
    for row in &rows {
        assert_eq!(row["actor"], "anonymous:127.0.0.1", "{rows:?}");
    }
    let said: String = rows.iter().map(|row| row["detail"].to_string()).collect();
    for because in ["expired", "is valid from", "root"] {
        assert!(said.contains(because), "{said}");
    }
}

#[tokio::test]
async fn tokens_that_do_not_hold() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let refused = async |name: &str, token: &str, because: &str| {
        let agent = Agent::new(fleet.dir(), name, &[]);
        let error = agent.enroll(token).await.unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert!(lines[0].starts_with("error: enroll: "), "{name}: {error}");
        assert!(lines[0].contains(because), "{name}: {error}");
        assert!(
            lines[1..].iter().all(|line| line.starts_with("hint: ")),
            "{name}: {error}"
        );
    };
    let once = fleet.token(&["--uses", "1"]).await.unwrap();
    let first = Agent::new(fleet.dir(), "first", &[]);
    first.enroll(&once).await.unwrap();
    refused("second", &once, "used").await;

    let revoked = fleet.token(&[]).await.unwrap();
    for token in fleet
        .ctl
        .json(&["get", "tokens"])
        .await
        .unwrap()
        .as_array()
        .unwrap()
    {
        if token["state"] == "active" {
            let id = token["id"].as_str().unwrap();
            fleet.ctl.ok(&["token", "revoke", id]).await.unwrap();
        }
    }
    refused("third", &revoked, "revoked").await;

    // Signed by nobody this collector knows: a fleet of the same name.
    let other = Fleet::new(&[]).await.unwrap();
    let theirs = other.token(&[]).await.unwrap();
    let theirs = Token::parse(&theirs).unwrap();
    let key = SigningKey::load(&other.dir().join("operator")).unwrap();
    let mut claims = theirs.claims().clone();
    claims.addresses = vec![fleet.collector.endpoints().agents.clone()];
    let forged = token::create(&key, &claims).unwrap();
    // The root is pinned: the agent leaves before it has sent anything.
    refused("fourth", &forged.to_string(), "root").await;
    claims.root_sha256 = Token::parse(&once).unwrap().claims().root_sha256;
    let forged = token::create(&key, &claims).unwrap();
    refused("fifth", &forged.to_string(), "").await;

    let mut damaged = fleet.token(&[]).await.unwrap().into_bytes();
    let middle = damaged.len() / 2;
    damaged[middle] = if damaged[middle] == b'A' { b'B' } else { b'A' };
    refused("sixth", &String::from_utf8(damaged).unwrap(), "").await;

    let nodes = fleet.ctl.json(&["get", "nodes"]).await.unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
    let rows = "SELECT detail FROM audit WHERE action = 'enrol' AND decision = 'refused'";
    let rows = fleet
        .eventually(rows, |rows| rows.len() >= 3)
        .await
        .unwrap();
    let said: String = rows.iter().map(|row| row["detail"].to_string()).collect();
    assert!(
        said.contains("no use left") && said.contains("revoked"),
        "{said}"
    );
    fleet.ctl.ok(&["audit", "verify"]).await.unwrap();
}
