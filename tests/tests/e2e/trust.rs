//! What a hand-made client gets: the ports judge certificates and signatures, whatever program brings them.

use std::{sync::Arc, time::Duration};

use nexus_pki::{
    admission::Admission,
    authority::Authority,
    csr,
    job::{self},
    leaf::Leaf,
    merkle::{Target, Tree},
    signing::SigningKey,
    tls::{self, KeyExchange, LiveLeaf},
    token::{self, JoinToken, Token},
};
use nexus_proto::{
    agent::v1::{self as wire, agent_client::AgentClient, enrolment_client::EnrolmentClient},
    ids::{Incarnation, JobId, NodeId, TokenId},
    job::{Action, Context, Job},
    operator::v1::{ListNodesRequest, SubmitJobRequest, operator_client::OperatorClient},
};
use nexus_runtime::clock::Clock;
use nexus_tests::{agent::Agent, fleet::Fleet};
use nexus_transport::{Connection, enrol_connect, operator_connect};
use tonic::{Code, Status};

const TRUST_DOMAIN: &str = "nexus.internal";

fn signing_key(fleet: &Fleet) -> SigningKey {
    SigningKey::load(&fleet.dir().join("operator")).unwrap()
}

fn authority(fleet: &Fleet) -> Authority {
    let ca = fleet.collector.dir().join("pki").join("ca");
    Authority::open(&ca, TRUST_DOMAIN, Clock::system().now()).unwrap()
}

/// What a real token of this fleet says, under a number of its own.
async fn claims(fleet: &Fleet) -> JoinToken {
    let token = Token::parse(&fleet.token(&[]).await.unwrap()).unwrap();
    let mut claims = token.claims().clone();
    claims.id = TokenId::random();
    claims
}

/// Brings a token to the collector without an agent that would look at it first.
async fn bring(fleet: &Fleet, token: &Token) -> Result<wire::Identity, Status> {
    let root = authority(fleet).root().sha256();
    let pinned = tls::enrol_client(root, TRUST_DOMAIN, KeyExchange::Auto).unwrap();
    let address = &fleet.collector.endpoints().agents;
    let connection = enrol_connect(address, pinned).await.unwrap();
    let (_key, csr) = csr::new_csr().unwrap();
    let request = wire::EnrolRequest {
        token: token.to_bytes(),
        csr_der: csr.into(),
        incarnation: Incarnation::random().to_wire(),
        name: "mallory".to_owned(),
        facts: None,
    };
    let answer = EnrolmentClient::new(connection.channel.clone())
        .enrol(request)
        .await;
    answer.map(tonic::Response::into_inner)
}

async fn as_operator(fleet: &Fleet, leaf: Leaf) -> Result<Connection, String> {
    let authority = authority(fleet);
    let live = LiveLeaf::new(leaf, authority.root()).unwrap();
    let admission = Admission::new(authority.root(), TRUST_DOMAIN);
    let tls = tls::operator_client(&live, &admission, KeyExchange::Auto).unwrap();
    operator_connect(&fleet.collector.endpoints().operators, tls, None)
        .await
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_token_holds_until_its_end_and_in_its_trust_domain() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let key = signing_key(&fleet);
    let good = claims(&fleet).await;
    let hour = Duration::from_secs(3600);
    let now = Clock::system().now();
    let over = JoinToken {
        created: now.before(2 * hour),
        expires: now.before(hour),
        ..good.clone()
    };
    let elsewhere = JoinToken {
        trust_domain: "elsewhere.example".to_owned(),
        ..good.clone()
    };
    for (name, claims, because) in [
        ("over", over, "expired"),
        ("elsewhere", elsewhere, "elsewhere.example"),
    ] {
        // Signed by a real operator: there is but the one thing wrong with it.
        let token = token::create(&key, &claims).unwrap();
        let agent = Agent::new(fleet.dir(), name, &[]);
        let said = agent.enroll(&token.to_string()).await.unwrap_err();
        let said = said.to_string();
        let errors: Vec<_> = said.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{name}: {said}");
        assert!(errors[0].contains(because), "{name}: {said}");

        let status = bring(&fleet, &token).await.unwrap_err();
        assert!(status.message().contains(because), "{name}: {status:?}");
        let rows = "SELECT detail FROM audit WHERE action = 'enrol' AND decision = 'refused'";
        let audited = |rows: &[serde_json::Value]| {
            rows.iter()
                .any(|row| row["detail"].to_string().contains(because))
        };
        fleet.eventually(rows, audited).await.unwrap();
    }
    let nodes = fleet.ctl.json(&["get", "nodes"]).await.unwrap();
    assert_eq!(nodes, serde_json::json!([]));
}

#[tokio::test]
async fn an_agent_sends_nothing_to_a_collector_of_another_root() {
    let (ours, theirs) = (
        Fleet::new(&[]).await.unwrap(),
        Fleet::new(&[]).await.unwrap(),
    );
    let mut claims = claims(&ours).await;
    claims.addresses = vec![theirs.collector.endpoints().agents.clone()];
    let token = token::create(&signing_key(&ours), &claims).unwrap();
    let agent = Agent::new(ours.dir(), "lured", &[]);
    let said = agent.enroll(&token.to_string()).await.unwrap_err();
    assert!(said.to_string().contains("root"), "{said}");

    // What comes later is written down, so what came before would be.
    let damaged = token::create(&SigningKey::generate().unwrap(), &claims).unwrap();
    bring(&theirs, &damaged).await.unwrap_err();
    let rows = "SELECT detail FROM audit WHERE action = 'enrol'";
    let rows = theirs.eventually(rows, |rows| !rows.is_empty()).await;
    assert_eq!(rows.unwrap().len(), 1);
    assert!(!agent.dir().join("identity").join("identity.pem").exists());
}

#[tokio::test]
async fn the_operators_port_is_not_for_agents() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let list = async |connection: Connection| {
        let mut client = OperatorClient::new(connection.channel.clone());
        client.list_nodes(ListNodesRequest::default()).await
    };
    let own = Leaf::load(&fleet.dir().join("operator")).unwrap();
    let connection = as_operator(&fleet, own).await.unwrap();
    list(connection).await.unwrap();

    let (key, request) = csr::new_csr().unwrap();
    let now = Clock::system().now();
    let issued = authority(&fleet)
        .issue_agent(&request, NodeId::random(), now)
        .unwrap();
    let leaf = Leaf::new(key, issued.chain).unwrap();
    let error = match as_operator(&fleet, leaf).await {
        Ok(connection) => list(connection).await.unwrap_err().to_string(),
        Err(error) => error,
    };
    let rows = "SELECT detail FROM audit WHERE action = 'connect' AND decision = 'refused'";
    let rows = fleet.eventually(rows, |rows| rows.len() == 1).await;
    let rows = rows.unwrap_or_else(|fault| panic!("{fault}\n{error}"));
    assert!(rows[0]["detail"].to_string().contains("agent"), "{rows:?}");
}

#[tokio::test]
async fn without_a_certificate_there_is_enrolment_and_nothing_else() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let address = fleet.collector.endpoints().agents.clone();
    let root = authority(&fleet).root().sha256();
    let session = async |connection: Connection| {
        let mut client = AgentClient::new(connection.channel.clone());
        client.session(tokio_stream::empty()).await.map(drop)
    };
    // The handshake is for enrolment, and so is what answers.
    let enrol = tls::enrol_client(root, TRUST_DOMAIN, KeyExchange::Auto).unwrap();
    let connection = enrol_connect(&address, enrol).await.unwrap();
    let status = session(connection).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");

    // The agents' own protocol, by someone who shows nothing.
    let bare = tls::operator_login_client(root, TRUST_DOMAIN, KeyExchange::Auto).unwrap();
    if let Ok(connection) = operator_connect(&address, Arc::clone(&bare), None).await {
        session(connection).await.unwrap_err();
    }
    let rows = "SELECT detail FROM audit WHERE action = 'connect' AND decision = 'refused'";
    let rows = fleet.eventually(rows, |rows| rows.len() == 1).await;
    let said = rows.unwrap()[0]["detail"].to_string();
    assert!(said.contains("certificate"), "{said}");
}

#[tokio::test]
async fn a_job_is_taken_from_signers_alone_and_refusals_are_audited() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let target = Target {
        node: NodeId::random(),
        name: "nobody".to_owned(),
        incarnation: Incarnation::random(),
    };
    let targets = Tree::sorted(vec![target.clone()]).unwrap();
    let now = Clock::system().now();
    let job = Job {
        id: JobId::random(),
        trust_domain: TRUST_DOMAIN.to_owned(),
        targets_root: targets.root(),
        target_count: targets.count(),
        action: Action::Command {
            argv: vec!["true".to_owned()],
            context: Context::default(),
            stdin: Vec::new().into(),
        },
        timeout: Duration::from_secs(30),
        kill_grace: Duration::from_secs(1),
        output_limit_bytes: 1 << 20,
        created: now,
        not_before: now,
        expires: now.after(Duration::from_secs(60)),
        policy_version: 1,
        request_id: "by-hand".to_owned(),
        operator: "admin".to_owned(),
        idempotent: false,
    };
    let good = job::sign(&signing_key(&fleet), &job).unwrap();
    let mut altered = good.clone();
    let mut payload = altered.payload.to_vec();
    *payload.last_mut().unwrap() ^= 1;
    altered.payload = payload.into();
    let mut unsigned = good.clone();
    unsigned.signatures.clear();
    let stranger = job::sign(&SigningKey::generate().unwrap(), &job).unwrap();

    let own = Leaf::load(&fleet.dir().join("operator")).unwrap();
    let connection = as_operator(&fleet, own).await.unwrap();
    let mut client = OperatorClient::new(connection.channel.clone());
    let mut submit = async |envelope: wire::Envelope| {
        let request = SubmitJobRequest {
            job: Some(envelope),
            targets: vec![target.to_wire()],
            selector: String::new(),
        };
        client.submit_job(request).await.unwrap_err()
    };
    for (name, envelope) in [
        ("altered", altered),
        ("unsigned", unsigned),
        ("stranger", stranger),
    ] {
        let status = submit(envelope).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status:?}");
    }
    // The same with the right signature fails for another reason: there is no such node.
    let status = submit(good).await;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let rows = "SELECT actor, action, detail FROM audit WHERE decision = 'refused'";
    let rows = fleet.eventually(rows, |rows| rows.len() >= 3).await;
    let rows = rows.unwrap();
    for row in &rows {
        let actor = row["actor"].to_string();
        assert!(actor.contains("admin"), "{rows:?}");
    }
    let signature = |row: &&serde_json::Value| row["detail"].to_string().contains("signature");
    assert_eq!(rows.iter().filter(signature).count(), 3, "{rows:?}");
    let jobs = fleet.ctl.json(&["get", "jobs"]).await.unwrap();
    assert_eq!(jobs, serde_json::json!([]));
}
