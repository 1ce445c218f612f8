//! Whether a run begins: all that can refuse a job, in one place, up to the moment from which it may have run.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use nexus_proto::{agent::v1 as wire, ids::RunKey, job::Job, limits, record::RunOutcome};
use nexus_runtime::errors::chain;
use prost::Message as _;

use super::{Around, Shared, Work};
use crate::{
    admit::{self, View},
    helper::pin::Pin,
    identity::IdentityError,
    local_policy,
};

/// Whom a job is run as that names nobody.
const ROOT: &str = "root";

/// Why nothing was executed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::helper) struct Refused {
    pub(in crate::helper) outcome: RunOutcome,
    pub(in crate::helper) reason: String,
}

impl Shared {
    /// All that can refuse a job; after it, the run is in the ledger as started.
    pub(super) fn begin(&self, dispatch: Bytes) -> Result<(Arc<Work>, Job, Arc<Pin>), Refused> {
        let around = &self.around;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(failed("the helper is stopping"));
        }
        let pin = around
            .pins
            .current()
            .map_err(|error| no_pin(&error, around))?;
        let dispatch = wire::Dispatch::decode(dispatch)
            .map_err(|error| rejected(format!("the dispatch is no valid message: {error}")))?;
        let now = around.clock.now();
        let mut works = self.works();
        let mut ledger = self.ledger();
        let settled = self.settled();
        let running = works.values().filter(|work| work.shelf.ended().is_none());
        let active = running.count();
        let (judged, verified_now) = pin.trust.with(now, |policy, freshness, now| {
            let view = View {
                own: &pin.own,
                policy,
                freshness,
                now,
                horizon: ledger.horizon(),
                since: ledger.since().max(pin.since),
                active,
                most: usize::try_from(limits::CONCURRENT_RUNS).unwrap_or(usize::MAX),
                room: true,
            };
            let taken = |key: &RunKey| {
                works.contains_key(key)
                    || ledger.get(key).is_some()
                    || settled.iter().any(|(_, settled)| settled == key)
            };
            (admit::admit(&dispatch, &view, taken), now)
        });
        let admitted = judged.map_err(|refused| rejected(chain(&refused.refusal).to_string()))?;
        let (key, job) = (admitted.key, admitted.job);
        if verified_now < job.not_before {
            return Err(rejected(format!(
                "the job may not begin before {}",
                job.not_before
            )));
        }
        let user = job.action.context().user.as_deref().unwrap_or(ROOT);
        local_policy::load(&around.policy, around.policy_owner)
            .map_err(|error| rejected(chain(&error).to_string()))?
            .judge(&job, user)
            .map_err(rejected)?;
        // The dispatch is not needed again: a run that was received and not started is not started later.
        let promised = ledger
            .receive(key, job.expires, Bytes::new())
            .and_then(|()| ledger.start(key, now, pin.own.node));
        promised.map_err(|error| {
            failed(format!(
                "it cannot be promised to run once: {}",
                chain(&error)
            ))
        })?;
        let work = Work::new(key, job.expires);
        works.insert(key, Arc::clone(&work));
        drop((settled, ledger, works));
        Ok((work, job, pin))
    }
}

fn no_pin(error: &IdentityError, around: &Around) -> Refused {
    rejected(match error {
        IdentityError::NotEnrolled(_) => format!(
            "{} does not say whom the helper may believe: run `nexus-agent enroll TOKEN` as root, or \
             `nexus-agent pin TOKEN` where the agent is enrolled already",
            around.pins.folder().display()
        ),
        error => format!("the helper does not know whom to believe: {}", chain(error)),
    })
}

fn rejected(reason: String) -> Refused {
    Refused {
        outcome: RunOutcome::Rejected,
        reason,
    }
}

fn failed(reason: impl Into<String>) -> Refused {
    Refused {
        outcome: RunOutcome::FailedToStart,
        reason: reason.into(),
    }
}
