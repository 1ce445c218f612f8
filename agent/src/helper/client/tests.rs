//! An agent whose helper is this test.

use std::{sync::Arc, time::Duration};

use nexus_proto::{
    helper::v1::{self as wire, from_helper, to_helper::Kind},
    ids::{JobId, RunKey},
    job::{Action, Context},
    record::{Finished, RunOutcome},
    time::Timestamp,
};
use nexus_runtime::tasks::Tasks;
use tokio::{net::UnixListener, sync::Notify, time::timeout};

use super::*;
use crate::exec::{End, Piece};

/// A test that gets nowhere fails.
const LONG: Duration = Duration::from_secs(20);

struct Scene {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("helper.sock")).unwrap();
        Self { dir, listener }
    }

    fn agent(&self) -> Delegate {
        let socket = self.dir.path().join("helper.sock");
        Delegate::new(Use::Auto, &socket, &Tasks::new())
    }

    /// Greets an agent; what it asks.
    async fn asked(&self) -> (Frames, Kind) {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut frames = Frames::new(stream);
        assert!(matches!(hear(&mut frames).await, Kind::Hello(_)));
        say(
            &mut frames,
            from_helper::Kind::Welcome(wire::Welcome::default()),
        )
        .await;
        let asked = hear(&mut frames).await;
        (frames, asked)
    }
}

async fn hear(frames: &mut Frames) -> Kind {
    let said = timeout(LONG, frames.next::<wire::ToHelper>()).await;
    said.unwrap().unwrap().unwrap().kind.unwrap()
}

async fn say(frames: &mut Frames, kind: from_helper::Kind) {
    let message = wire::FromHelper { kind: Some(kind) };
    frames.send(&message).await.unwrap();
}

fn order(run: RunKey) -> (Order, Plan) {
    let order = Order {
        run,
        dispatch: bytes::Bytes::new(),
        trust: TrustUpdate::default(),
        judged: true,
    };
    let plan = Plan {
        action: Action::Command {
            argv: vec!["false".to_owned()],
            context: Context::default(),
            stdin: bytes::Bytes::new(),
        },
        mark: String::new(),
        job: String::new(),
        timeout: LONG,
        grace: LONG,
        output_limit_bytes: 0,
        scripts: PathBuf::new(),
        stop_grace: LONG,
    };
    (order, plan)
}

fn cancel() -> Stop {
    Stop {
        reason: "told to".to_owned(),
        hurried: false,
    }
}

#[tokio::test]
async fn who_stops_does_not_wait_for_a_helper_that_says_nothing() {
    let scene = Scene::new();
    let agent = scene.agent();
    for hurried in [false, true] {
        let (order, plan) = order(RunKey::once(JobId::random()));
        let why = Stop {
            hurried,
            ..cancel()
        };
        let stop = Box::pin(std::future::ready(why));
        let begun = timeout(LONG, agent.start(order, plan, stop)).await.unwrap();
        match begun.err().unwrap() {
            StartError::Cancelled(reason) if !hurried => assert_eq!(reason, "told to"),
            StartError::Stopped if hurried => {}
            other => panic!("{other}"),
        }
    }
}

/// Then it may run already: it is stopped as soon as the helper says so, and its end is the helper's word.
#[tokio::test]
async fn a_cancel_between_question_and_answer_stops_what_began() {
    let scene = Scene::new();
    let agent = scene.agent();
    let run = RunKey::once(JobId::random());
    let (order, plan) = order(run);
    let asked = Arc::new(Notify::new());
    let cancelled = Arc::new(Notify::new());
    let stop = {
        let (asked, cancelled) = (Arc::clone(&asked), Arc::clone(&cancelled));
        Box::pin(async move {
            asked.notified().await;
            cancelled.notify_one();
            cancel()
        })
    };
    let helper = async {
        let (mut frames, question) = scene.asked().await;
        assert!(matches!(question, Kind::Start(_)), "{question:?}");
        asked.notify_one();
        cancelled.notified().await;
        let identity = wire::Started {
            pid: 7,
            start_ticks: 8,
        };
        say(&mut frames, from_helper::Kind::Started(identity)).await;
        match hear(&mut frames).await {
            Kind::Stop(stop) => {
                assert_eq!((stop.reason.as_str(), stop.hurried), ("told to", false))
            }
            other => panic!("{other:?}"),
        }
        let ended = crate::runs::report::ended(
            run,
            RunOutcome::Cancelled,
            "told to".to_owned(),
            Timestamp(1),
            Timestamp(2),
        );
        say(
            &mut frames,
            from_helper::Kind::Ended(Finished::to_wire(&ended)),
        )
        .await;
        frames
    };
    let follow = async {
        let execution = agent.start(order, plan, stop).await;
        let execution = execution.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(execution.identity().pid, 7);
        let stop = Box::pin(std::future::ready(cancel()));
        execution.finish(Box::new(|_: Piece| true), stop).await
    };
    let (_frames, end) = timeout(LONG, async { tokio::join!(helper, follow) })
        .await
        .unwrap();
    match end.unwrap() {
        End::Over(ending) => assert_eq!(ending.outcome, RunOutcome::Cancelled),
        End::GoesOn => panic!("it goes on"),
    }
}
