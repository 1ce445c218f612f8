//! What to do next about a job: a pure function of its rows, of who is connected, and of the time.
//!
//! Nothing is remembered between two decisions but which session a run was last sent to; after a restart
//! the rows alone lead to the same end. Deciding twice on the same state asks for the same actions, and each
//! action is safe to repeat: a node's ledger knows a run it was given before.

use std::time::Duration;

use nexus_proto::{
    ids::{NodeId, SessionId},
    time::Timestamp,
};

/// Where a run stands, as far as scheduling goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not sent to its node yet.
    Pending,
    /// Sent; the node has not reported that it began.
    Dispatched,
    /// The node reported that it began.
    Running,
    /// In its one final state.
    Final,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its target.
    pub(crate) node: NodeId,
    /// Where it stands.
    pub(crate) phase: Phase,
    /// The session it was sent to, if this process sent it.
    pub(crate) sent_to: Option<SessionId>,
    /// The session its cancellation was sent to.
    pub(crate) cancel_sent_to: Option<SessionId>,
}

/// What of a job matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// No execution starts before this.
    pub(crate) not_before: Timestamp,
    /// No execution starts at or after this.
    pub(crate) expires: Timestamp,
    /// The longest an execution can take: its timeout and the time it is given to end on TERM.
    pub(crate) longest: Duration,
    /// How long after that a report is waited for.
    pub(crate) grace: Duration,
    /// Whether an operator cancelled it.
    pub(crate) cancelled: bool,
}

impl Terms {
    /// From then on a run without a final report is lost.
    pub(crate) fn lost_at(&self) -> Timestamp {
        self.expires.after(self.longest).after(self.grace)
    }
}

/// A node's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Which.
    pub(crate) session: SessionId,
    /// Whether the agent takes a further dispatch now.
    pub(crate) takes: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Record the dispatch, then send it.
    Dispatch(NodeId, SessionId),
    /// Send a dispatch again that is recorded already: the node came back and has reported nothing.
    Resend(NodeId, SessionId),
    /// Tell the node to stop.
    Stop(NodeId, SessionId),
    /// End a run that its node was never told of: cancelled.
    Cancel(NodeId),
    /// End a run that its node was never told of: out of time.
    Expire(NodeId),
    /// End a run whose node was told and never reported.
    Lose(NodeId),
    /// Every run is final.
    End,
}

/// Actions, and when time alone will ask for more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// What to do now.
    pub(crate) actions: Vec<Action>,
    /// When to decide again at the latest; `None` once the job has ended.
    pub(crate) wake: Option<Timestamp>,
    /// Whether a node is there that would be sent something if it took more.
    pub(crate) starved: bool,
}

/// Decides.
pub(crate) fn decide(
    terms: &Terms,
    runs: &[Run],
    link: impl Fn(NodeId) -> Option<Link>,
    now: Timestamp,
) -> Decision {
    let mut decision = Decision::default();
    let mut open = false;
    for run in runs {
        let link = link(run.node);
        let Some(step) = step(terms, run, link, now) else {
            open |= run.phase != Phase::Final;
            decision.starved |= link.is_some_and(|link| !link.takes && is_owed(run, link));
            continue;
        };
        open = true;
        decision.actions.push(step);
    }
    if open {
        decision.wake = [terms.not_before, terms.expires, terms.lost_at()]
            .into_iter()
            .filter(|at| *at > now)
            .min();
    } else {
        decision.actions.push(Action::End);
    }
    decision
}

fn step(terms: &Terms, run: &Run, link: Option<Link>, now: Timestamp) -> Option<Action> {
    let node = run.node;
    match run.phase {
        Phase::Final => None,
        Phase::Pending if terms.cancelled => Some(Action::Cancel(node)),
        Phase::Pending if now >= terms.expires => Some(Action::Expire(node)),
        Phase::Pending if now < terms.not_before => None,
        Phase::Pending => link
            .filter(|link| link.takes)
            .map(|link| Action::Dispatch(node, link.session)),
        Phase::Dispatched | Phase::Running if now >= terms.lost_at() => Some(Action::Lose(node)),
        Phase::Dispatched | Phase::Running if terms.cancelled => link
            .filter(|link| run.cancel_sent_to != Some(link.session))
            .map(|link| Action::Stop(node, link.session)),
        // With credit, as the first time: what was under way when a connection broke is in no agent's count.
        Phase::Dispatched => link
            .filter(|link| link.takes && run.sent_to != Some(link.session) && now < terms.expires)
            .map(|link| Action::Resend(node, link.session)),
        Phase::Running => None,
    }
}

/// Whether the node has yet to be sent the run in this session.
fn is_owed(run: &Run, link: Link) -> bool {
    match run.phase {
        Phase::Pending => true,
        Phase::Dispatched => run.sent_to != Some(link.session),
        Phase::Running | Phase::Final => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn terms() -> Terms {
        Terms {
            not_before: START,
            expires: START.after(MINUTE),
            longest: MINUTE,
            grace: MINUTE,
            cancelled: false,
        }
    }

    fn run(phase: Phase) -> Run {
        Run {
            node: NodeId::random(),
            phase,
            sent_to: None,
            cancel_sent_to: None,
        }
    }

    fn connected(session: SessionId, takes: bool) -> impl Fn(NodeId) -> Option<Link> {
        move |_| Some(Link { session, takes })
    }

    #[test]
    fn dispatches_to_who_is_there_and_takes_more() {
        let session = SessionId::random();
        let runs = [run(Phase::Pending)];
        let decision = decide(&terms(), &runs, connected(session, true), START);
        assert_eq!(decision.actions, [Action::Dispatch(runs[0].node, session)]);
        let full = decide(&terms(), &runs, connected(session, false), START);
        assert_eq!(full.actions, []);
        assert!(full.starved && !decision.starved);
        let absent = decide(&terms(), &runs, |_| None, START);
        assert_eq!(absent.actions, []);
        assert_eq!(absent.wake, Some(terms().expires));
    }

    #[test]
    fn waits_for_its_time() {
        let session = SessionId::random();
        let runs = [run(Phase::Pending)];
        let early = START.before(MINUTE);
        let decision = decide(&terms(), &runs, connected(session, true), early);
        assert_eq!(decision.actions, []);
        assert_eq!(decision.wake, Some(START));
    }

    #[test]
    fn absent_nodes_expire_and_silent_ones_are_lost() {
        let runs = [
            run(Phase::Pending),
            run(Phase::Dispatched),
            run(Phase::Running),
        ];
        let at_expiry = decide(&terms(), &runs, |_| None, terms().expires);
        assert_eq!(at_expiry.actions, [Action::Expire(runs[0].node)]);
        let last = terms().lost_at();
        assert_eq!(at_expiry.wake, Some(last));
        let before = decide(&terms(), &runs[1..], |_| None, Timestamp(last.as_ms() - 1));
        assert_eq!(before.actions, []);
        let after = decide(&terms(), &runs[1..], |_| None, last);
        assert_eq!(
            after.actions,
            [Action::Lose(runs[1].node), Action::Lose(runs[2].node)]
        );
    }

    #[test]
    fn sends_again_only_to_a_new_session() {
        let (old, new) = (SessionId::random(), SessionId::random());
        let mut sent = run(Phase::Dispatched);
        sent.sent_to = Some(old);
        let node = sent.node;
        let runs = [sent];
        assert_eq!(
            decide(&terms(), &runs, connected(old, true), START).actions,
            []
        );
        // The agent counts what it has to take: it may be full of others by now.
        let full = decide(&terms(), &runs, connected(new, false), START);
        assert_eq!(full.actions, []);
        let again = decide(&terms(), &runs, connected(new, true), START);
        assert_eq!(again.actions, [Action::Resend(node, new)]);
        let late = decide(&terms(), &runs, connected(new, true), terms().expires);
        assert_eq!(late.actions, []);
    }

    #[test]
    fn cancels_what_was_not_sent_and_stops_the_rest_once_a_session() {
        let session = SessionId::random();
        let mut stopping = run(Phase::Running);
        stopping.cancel_sent_to = Some(session);
        let runs = [
            run(Phase::Pending),
            run(Phase::Dispatched),
            run(Phase::Running),
            stopping,
        ];
        let terms = Terms {
            cancelled: true,
            ..terms()
        };
        let decision = decide(&terms, &runs, connected(session, true), START);
        assert_eq!(
            decision.actions,
            [
                Action::Cancel(runs[0].node),
                Action::Stop(runs[1].node, session),
                Action::Stop(runs[2].node, session),
            ]
        );
    }

    #[test]
    fn ends_when_all_have_ended_and_not_before() {
        let runs = [run(Phase::Final), run(Phase::Final)];
        let decision = decide(&terms(), &runs, |_| None, START);
        assert_eq!(decision.actions, [Action::End]);
        assert_eq!(decision.wake, None);
        let runs = [run(Phase::Final), run(Phase::Running)];
        assert_eq!(decide(&terms(), &runs, |_| None, START).actions, []);
    }
}
