//! What a Hello is judged by: a pure function of the message and of what is known of the node.
//!
//! An incarnation is one life of an agent's state folder and its session counter only rises, on disk before
//! it is sent. A counter that did not rise, or another incarnation than the bound one, means that two
//! machines hold the same identity: a clone, or a snapshot that was restored. Both are then quarantined,
//! since nothing tells which of them is the node. Only a Hello on a connection older than that of the newest
//! session says nothing of the kind: it may have been under way for long.

use std::collections::BTreeMap;

use nexus_proto::{
    PROTOCOL,
    agent::v1 as wire,
    ids::{Incarnation, Lane, is_node_name},
    limits,
};

/// Marks the quarantine of a node that renewed with an expired certificate; its next consistent Hello ends
/// it. Any other quarantine stays until an operator acts.
pub(crate) const LATE_RENEWAL: &str = "late renewal";

/// A Hello with its limits checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hello {
    /// The protocol version both sides speak.
    pub(crate) protocol: u32,
    /// The agent's.
    pub(crate) incarnation: Incarnation,
    /// Rises with every session.
    pub(crate) counter: u64,
    /// The name the node goes by.
    pub(crate) name: String,
    /// What its node row shows.
    pub(crate) facts: wire::NodeFacts,
    /// The lowest seq it still holds, by lane.
    pub(crate) lowest: BTreeMap<Lane, u64>,
    /// Its inventory, by kind.
    pub(crate) sections: BTreeMap<String, [u8; 32]>,
    /// The signer policy it holds.
    pub(crate) policy_version: u64,
    /// Its clock.
    pub(crate) clock_ms: i64,
    /// Jobs it takes at once.
    pub(crate) dispatch_credit: u32,
    /// The kernel's boot id.
    pub(crate) boot_id: String,
}

/// A Hello that cannot be talked to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HelloError {
    /// The first frame is something else.
    #[error("the first frame of a session is no Hello")]
    Missing,
    /// No version in common.
    #[error(
        "the agent speaks protocol {min} to {max}, this collector {ours_min} to {ours_max}: upgrade the older one",
        ours_min = PROTOCOL.0, ours_max = PROTOCOL.1
    )]
    Protocol { min: u32, max: u32 },
    /// An incarnation or lane that is none.
    #[error("a field of the Hello")]
    Id(#[from] nexus_proto::ids::IdError),
    /// A field beyond its limit.
    #[error("the Hello's {0} is beyond its limit")]
    Limit(&'static str),
}

impl Hello {
    /// Reads the first frame.
    pub(crate) fn from_wire(frame: wire::AgentFrame) -> Result<Self, HelloError> {
        let Some(wire::agent_frame::Kind::Hello(hello)) = frame.kind else {
            return Err(HelloError::Missing);
        };
        let protocol = hello.protocol_max.min(PROTOCOL.1);
        if protocol < hello.protocol_min || protocol < PROTOCOL.0 {
            return Err(HelloError::Protocol {
                min: hello.protocol_min,
                max: hello.protocol_max,
            });
        }
        check_name(&hello.name)?;
        let facts = hello.facts.unwrap_or_default();
        check_facts(&facts)?;
        if hello.boot_id.len() > limits::NAME_BYTES {
            return Err(HelloError::Limit("boot id"));
        }
        if hello.sections.len() > 256 || hello.lanes.len() > 16 {
            return Err(HelloError::Limit("list of sections or lanes"));
        }
        let mut lowest = BTreeMap::new();
        for state in &hello.lanes {
            lowest.insert(Lane::from_wire(state.lane)?, state.seq);
        }
        let mut sections = BTreeMap::new();
        for state in hello.sections {
            let hash: [u8; 32] = state
                .hash
                .as_ref()
                .try_into()
                .map_err(|_| HelloError::Limit("section hash"))?;
            sections.insert(state.kind, hash);
        }
        Ok(Self {
            protocol,
            incarnation: Incarnation::from_wire(&hello.incarnation)?,
            counter: hello.session_counter,
            name: hello.name,
            facts,
            lowest,
            sections,
            policy_version: hello.policy_version,
            clock_ms: hello.clock_ms,
            dispatch_credit: hello.dispatch_credit.min(limits::CONCURRENT_RUNS),
            boot_id: hello.boot_id,
        })
    }

    /// Sections the agent has and the store does not have in the same state.
    pub(crate) fn sections_to_resend(&self, stored: &BTreeMap<String, [u8; 32]>) -> Vec<String> {
        self.sections
            .iter()
            .filter(|(kind, hash)| stored.get(*kind) != Some(hash))
            .map(|(kind, _)| kind.clone())
            .collect()
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), HelloError> {
    if is_node_name(name) {
        Ok(())
    } else {
        Err(HelloError::Limit("name"))
    }
}

/// Facts short enough for a table.
pub(crate) fn check_facts(facts: &wire::NodeFacts) -> Result<(), HelloError> {
    let texts = [&facts.agent_version, &facts.os, &facts.kernel, &facts.arch];
    if texts.iter().any(|text| text.len() > limits::NAME_BYTES) {
        return Err(HelloError::Limit("facts"));
    }
    Ok(())
}

/// Whether a node's state keeps it from having sessions.
pub(crate) fn is_held(state: &str) -> bool {
    matches!(state, "quarantined" | "revoked")
}

/// What is known of a node before its Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Bound at enrolment.
    pub(crate) incarnation: Incarnation,
    /// The highest ever seen.
    pub(crate) counter: u64,
    /// Why it is quarantined.
    pub(crate) quarantined: Option<String>,
    /// Whether it was revoked.
    pub(crate) revoked: bool,
    /// Whether its newest session came by a connection that was taken in after the one this Hello came by.
    pub(crate) newer_connection: bool,
}

/// What to do with a Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A session.
    Welcome {
        /// Also ends the quarantine of a late renewal.
        release: bool,
    },
    /// No session, and whoever else holds the identity loses theirs.
    Quarantine(String),
    /// No session; it was quarantined before.
    Quarantined(String),
    /// No session; the node has had a newer one already.
    Late,
    /// No session, ever.
    Revoked,
}

/// Judges.
pub(crate) fn judge(hello: &Hello, known: &Known) -> Verdict {
    if known.revoked {
        return Verdict::Revoked;
    }
    if hello.incarnation != known.incarnation {
        return Verdict::Quarantine(format!(
            "incarnation {} presented, {} is bound to this identity: the identity was copied, or the machine reinstalled",
            hello.incarnation, known.incarnation
        ));
    }
    // What an agent gave up on may arrive after what it sent next, if the network holds it up for long.
    if hello.counter < known.counter && known.newer_connection {
        return Verdict::Late;
    }
    if hello.counter <= known.counter {
        return Verdict::Quarantine(format!(
            "session counter {} presented after {}: a clone, or a restored snapshot",
            hello.counter, known.counter
        ));
    }
    match &known.quarantined {
        None => Verdict::Welcome { release: false },
        Some(reason) if reason.starts_with(LATE_RENEWAL) => Verdict::Welcome { release: true },
        Some(reason) => Verdict::Quarantined(reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(incarnation: Incarnation, counter: u64) -> wire::Hello {
        wire::Hello {
            protocol_min: 1,
            protocol_max: 9,
            incarnation: incarnation.to_wire(),
            session_counter: counter,
            name: "web-1".to_owned(),
            sections: vec![wire::SectionState {
                kind: "os".to_owned(),
                hash: vec![1; 32].into(),
            }],
            ..wire::Hello::default()
        }
    }

    fn read(hello: wire::Hello) -> Result<Hello, HelloError> {
        Hello::from_wire(wire::AgentFrame {
            kind: Some(wire::agent_frame::Kind::Hello(Box::new(hello))),
        })
    }

    #[test]
    fn agrees_on_the_highest_common_version() {
        let incarnation = Incarnation::random();
        assert_eq!(read(frame(incarnation, 1)).unwrap().protocol, PROTOCOL.1);
        let mut future = frame(incarnation, 1);
        future.protocol_min = PROTOCOL.1 + 1;
        assert!(matches!(read(future), Err(HelloError::Protocol { .. })));
    }

    #[test]
    fn refuses_names_that_would_break_tables() {
        for name in ["", "a b", "a\nb", &"a".repeat(254)] {
            let mut hello = frame(Incarnation::random(), 1);
            hello.name = name.to_owned();
            assert_eq!(read(hello), Err(HelloError::Limit("name")), "{name}");
        }
    }

    #[test]
    fn asks_for_changed_sections_only() {
        let hello = read(frame(Incarnation::random(), 1)).unwrap();
        let mut stored = BTreeMap::from([("os".to_owned(), [1; 32])]);
        assert!(hello.sections_to_resend(&stored).is_empty());
        stored.insert("os".to_owned(), [2; 32]);
        assert_eq!(hello.sections_to_resend(&stored), ["os"]);
    }

    #[test]
    fn a_clone_and_a_restored_snapshot_are_quarantined() {
        let incarnation = Incarnation::random();
        let mut known = Known {
            incarnation,
            counter: 7,
            quarantined: None,
            revoked: false,
            newer_connection: false,
        };
        let hello = read(frame(incarnation, 8)).unwrap();
        assert_eq!(judge(&hello, &known), Verdict::Welcome { release: false });
        let repeated = read(frame(incarnation, 7)).unwrap();
        assert!(matches!(judge(&repeated, &known), Verdict::Quarantine(_)));
        known.newer_connection = true;
        assert!(matches!(judge(&repeated, &known), Verdict::Quarantine(_)));
        let held_up = read(frame(incarnation, 6)).unwrap();
        assert_eq!(judge(&held_up, &known), Verdict::Late);
        let other = read(frame(Incarnation::random(), 6)).unwrap();
        assert!(matches!(judge(&other, &known), Verdict::Quarantine(_)));

        known.quarantined = Some(format!("{LATE_RENEWAL}: away for 3 days"));
        assert_eq!(judge(&hello, &known), Verdict::Welcome { release: true });
        known.quarantined = Some("session counter".to_owned());
        assert!(matches!(judge(&hello, &known), Verdict::Quarantined(_)));
        known.revoked = true;
        assert_eq!(judge(&hello, &known), Verdict::Revoked);
    }
}
