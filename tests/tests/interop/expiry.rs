//! What has expired by one clock and not by another.

use std::{path::Path, time::Duration};

use nexus_agent::identity::Member;
use nexus_pki::{
    job,
    merkle::{Target, Tree},
    signing::SigningKey,
    token::Token,
};
use nexus_proto::{
    agent::v1::{self as wire, collector_frame::Kind},
    ids::JobId,
    job::{Action, Context, Job},
    record::{Finished, RunOutcome},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_tests::{
    collector::Place,
    fleet::{Fleet, SOON},
    page, poll,
    thief::Thief,
};

use super::{clock::going_by, fake_clock::FakeClock};

const TRUST_DOMAIN: &str = "nexus.internal";
const MINUTE: Duration = Duration::from_secs(60);

/// A fleet whose collector goes by a clock of its own.
async fn with_collectors_clock() -> (Fleet, FakeClock) {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::in_folder(dir.path());
    let place = Place {
        env: clock.env(),
        ..Place::default()
    };
    (Fleet::make(place, dir, &[]).await.unwrap(), clock)
}

/// Reports the collector has committed, from the page that is there without TLS.
async fn reports(fleet: &Fleet) -> f64 {
    let page = fleet.page("/metrics").await.unwrap();
    page::value(&page, "nexus_records_acked_total", &[("lane", "metrics")]).unwrap_or(0.0)
}

#[tokio::test]
async fn a_session_survives_a_collectors_clock_that_jumps() {
    let (mut fleet, clock) = with_collectors_clock().await;
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.add("beta", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet.connected("beta").await.unwrap();
    fleet.agents[1].stop().await.unwrap();
    for jump in ["+25h", "-25h"] {
        clock.set(jump);
        let before = reports(&fleet).await;
        poll::until("reports go on", SOON, || async {
            (reports(&fleet).await > before + 3.0).then_some(())
        })
        .await
        .unwrap();
        // A new handshake fails for it, and whoever looks for the reason is told both times.
        let told = fleet.agents[1].log_text().len();
        fleet.agents[1].start().await.unwrap();
        poll::until_ok("word of the clocks", SOON, || {
            let log = fleet.agents[1].log_text();
            let log = log.get(told..).unwrap_or_default().to_owned();
            let mut lines = log.lines();
            let said = lines.any(|line| line.contains("no session") && line.contains("clock"));
            std::future::ready(if said { Ok(()) } else { Err(log) })
        })
        .await
        .unwrap();
        fleet.agents[1].stop().await.unwrap();
    }
    clock.set("+0");
    fleet.agents[1].start().await.unwrap();
    fleet.connected("beta").await.unwrap();
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn an_expired_token_is_refused_by_whoever_sees_it() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let clock = FakeClock::in_folder(fleet.dir());
    let refused = async |name: &str, token: &str| {
        let agent = going_by(&fleet, &clock, name);
        agent.enroll(token).await.unwrap_err().to_string()
    };
    // The agent itself, which then sends nothing.
    let token = fleet.token(&["--ttl", "1h"]).await.unwrap();
    clock.set("+2h");
    let error = refused("alpha", &token).await;
    assert!(
        error.starts_with("error: enroll: the join token expired at "),
        "{error}"
    );
    assert!(error.contains("this machine's clock says "), "{error}");
    assert!(error.contains("hint: check the clock"), "{error}");

    // The collector, when the agent's clock is a little behind.
    let token = fleet.token(&["--ttl", "1s"]).await.unwrap();
    let expires = Token::parse(&token).unwrap().claims().expires;
    let now = Clock::system();
    poll::until("its end", SOON, || {
        std::future::ready((now.now() > expires).then_some(()))
    })
    .await
    .unwrap();
    clock.set("-2m");
    let error = refused("beta", &token).await;
    assert!(error.contains("expired"), "{error}");
    let rows = "SELECT detail FROM audit WHERE action = 'enrol' AND decision = 'refused'";
    let rows = fleet
        .eventually(rows, |rows| !rows.is_empty())
        .await
        .unwrap();
    assert!(
        rows[0]["detail"].to_string().contains("expired"),
        "{rows:?}"
    );
    let nodes = fleet.query("SELECT * FROM nodes").await.unwrap();
    assert!(nodes.is_empty(), "{nodes:?}");
}

/// An agent whose clock is a day behind, with a collector that would like it to run what has expired.
struct Late {
    fleet: Fleet,
    thief: Thief,
    operator: SigningKey,
    targets: Tree,
    own: Target,
}

impl Late {
    async fn offer(&self, name: &str, expires: Timestamp) -> Finished {
        let now = Clock::system().now();
        let job = Job {
            id: JobId::random(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            targets_root: self.targets.root(),
            target_count: self.targets.count(),
            action: Action::Command {
                argv: vec!["touch".to_owned(), self.mark(name)],
                context: Context::default(),
                stdin: Vec::new().into(),
            },
            timeout: MINUTE,
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1 << 20,
            created: now,
            not_before: now,
            expires,
            policy_version: 1,
            request_id: name.to_owned(),
            operator: "admin".to_owned(),
            idempotent: false,
        };
        let dispatch = wire::Dispatch {
            job: Some(job::sign(&self.operator, &job).unwrap()),
            proof: self.targets.proof_of(self.own.node),
            ..wire::Dispatch::default()
        };
        self.thief
            .say(Kind::Dispatch(Box::new(dispatch)))
            .await
            .unwrap();
        let report = self.thief.report(job.id).await;
        report
            .map_err(|fault| format!("{name}: {fault}\n{}", self.fleet.agents[0].log_text()))
            .unwrap()
    }

    fn mark(&self, name: &str) -> String {
        self.fleet.dir().join(name).display().to_string()
    }
}

#[tokio::test]
async fn a_job_expires_by_the_newest_time_that_was_signed() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let clock = FakeClock::in_folder(fleet.dir());
    let agent = going_by(&fleet, &clock, "alpha");
    fleet.join(agent).await.unwrap();
    let node = fleet.connected("alpha").await.unwrap();
    let text = |key: &str| node[key].as_str().unwrap().to_owned();
    let own = Target {
        node: text("id").parse().unwrap(),
        name: "alpha".to_owned(),
        incarnation: text("incarnation").parse().unwrap(),
    };
    let operator = SigningKey::load(&fleet.dir().join("operator")).unwrap();
    fleet.collector.kill().await.unwrap();
    let listen = fleet.collector.endpoints().agents.parse().unwrap();
    let thief = Thief::take_over(fleet.collector.dir(), TRUST_DOMAIN, listen);
    let thief = thief.await.unwrap();

    // The last the agent hears from an operator, by a clock that is two minutes ahead.
    let now = Clock::system().now();
    let signed = now.after(2 * MINUTE);
    let member = Member::load(fleet.agents[0].dir()).unwrap();
    let statement = member
        .trust
        .with(now, |policy, _, _| policy.sign_freshness(&operator, signed));
    let update = wire::TrustUpdate {
        policy: None,
        freshness: Some(statement),
    };
    let before = fleet.agents[0].log_text().len();
    thief.say(Kind::Trust(Box::new(update))).await.unwrap();
    poll::until_ok("the statement at the agent", SOON, || {
        let log = fleet.agents[0].log_text();
        let log = log.get(before..).unwrap_or_default().to_owned();
        let taken = log.contains("the signer policy is up to date");
        std::future::ready(if taken { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    clock.set("-25h");
    let late = Late {
        targets: Tree::sorted(vec![own.clone()]).unwrap(),
        fleet,
        thief,
        operator,
        own,
    };
    let report = late.offer("expired", now.after(MINUTE)).await;
    assert_eq!(report.outcome, RunOutcome::Rejected, "{report:?}");
    assert!(report.reason.contains("expired"), "{report:?}");
    assert!(!Path::new(&late.mark("expired")).exists());
    // Begun at once, too: `not_before` is judged by the same time.
    let report = late.offer("in-time", now.after(30 * MINUTE)).await;
    assert_eq!(report.exit_code, Some(0), "{report:?}");
    assert!(Path::new(&late.mark("in-time")).exists());
}
