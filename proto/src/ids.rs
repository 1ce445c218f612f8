//! Names of things: nodes, incarnations, jobs, sessions, lanes, slots. All ids are UUIDs, 16 bytes on the wire.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{agent::v1 as wire, limits};

/// A wire field that should have held an id did not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not 16 bytes.
    #[error("{what} has {len} bytes instead of 16")]
    Length {
        /// Which id.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// Not the text form of a UUID.
    #[error("{what} `{text}` is no UUID")]
    Text {
        /// Which id.
        what: &'static str,
        /// What was given.
        text: String,
    },
    /// A lane number outside the enum.
    #[error("lane {0} does not exist")]
    Lane(i32),
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id (UUID v4).
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// From the wire's 16 bytes.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| IdError::Length { what: $what, len: bytes.len() })
            }

            /// The 16 bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// As a wire field.
            #[must_use]
            pub fn to_wire(self) -> prost::bytes::Bytes {
                prost::bytes::Bytes::copy_from_slice(self.0.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", $what, self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| IdError::Text { what: $what, text: text.to_owned() })
            }
        }
    };
}

uuid_id!(
    /// A node, for as long as it is enrolled. Taken from its certificate, never from a message.
    NodeId,
    "node id"
);
uuid_id!(
    /// One life of an agent's state folder; a reinstalled node has a new one.
    Incarnation,
    "incarnation"
);
uuid_id!(
    /// A job, chosen by whoever signs it.
    JobId,
    "job id"
);
uuid_id!(
    /// One session of an agent with a collector.
    SessionId,
    "session id"
);
uuid_id!(
    /// A join token.
    TokenId,
    "token id"
);

/// Whether a node can be called so: a name stands in tables, labels and signed targets.
#[must_use]
pub fn is_node_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=limits::NAME_BYTES).contains(&text.len()) && text.chars().all(fits)
}

impl NodeId {
    /// `blake3(uuid) mod 4096`: where the node lives, for ever.
    #[must_use]
    pub fn slot(&self) -> Slot {
        let hash = blake3::hash(self.as_bytes());
        let [a, b, ..] = *hash.as_bytes();
        Slot(u16::from_be_bytes([a, b]) % Slot::COUNT)
    }
}

/// One of 4,096 equal parts of a region's nodes. Slots, not nodes, are placed on shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

impl Slot {
    /// How many there are.
    pub const COUNT: u16 = 4096;
}

/// Where records queue, in order of sending: results before inventory before metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Job starts, outputs and ends, and events: never dropped.
    Results,
    /// Inventory sections: coalesced when full.
    Inventory,
    /// Metric reports: the oldest are dropped when full, with a gap record.
    Metrics,
}

impl Lane {
    /// All of them, in order of sending.
    pub const ALL: [Self; 3] = [Self::Results, Self::Inventory, Self::Metrics];

    /// From a wire enum.
    pub fn from_wire(number: i32) -> Result<Self, IdError> {
        match wire::Lane::try_from(number) {
            Ok(wire::Lane::Results) => Ok(Self::Results),
            Ok(wire::Lane::Inventory) => Ok(Self::Inventory),
            Ok(wire::Lane::Metrics) => Ok(Self::Metrics),
            Ok(wire::Lane::Unspecified) | Err(_) => Err(IdError::Lane(number)),
        }
    }

    /// As a wire enum.
    #[must_use]
    pub fn to_wire(self) -> wire::Lane {
        match self {
            Self::Results => wire::Lane::Results,
            Self::Inventory => wire::Lane::Inventory,
            Self::Metrics => wire::Lane::Metrics,
        }
    }

    /// For folders, metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Inventory => "inventory",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which execution of which job: the ledger's key on a node, and with the node's id the run's key in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunKey {
    /// The job.
    pub job: JobId,
    /// Which time of a schedule; 0 for a job that runs once.
    pub occurrence: u32,
    /// Which step.
    pub step: u32,
    /// Which attempt, from 0.
    pub attempt: u32,
}

impl RunKey {
    /// The only execution of a job that runs once, in one step, without retries.
    #[must_use]
    pub fn once(job: JobId) -> Self {
        Self {
            job,
            occurrence: 0,
            step: 0,
            attempt: 0,
        }
    }

    /// From the wire.
    pub fn from_wire(key: &wire::RunKey) -> Result<Self, IdError> {
        Ok(Self {
            job: JobId::from_wire(&key.job_id)?,
            occurrence: key.occurrence,
            step: key.step,
            attempt: key.attempt,
        })
    }

    /// To the wire.
    #[must_use]
    pub fn to_wire(self) -> wire::RunKey {
        wire::RunKey {
            job_id: self.job.to_wire(),
            occurrence: self.occurrence,
            step: self.step,
            attempt: self.attempt,
        }
    }
}
