//! The words agents, collectors and operators share: messages, ids, limits, and the parts of the
//! protocol that need neither a clock nor a socket.
//!
//! Wire types (the `v1` modules, generated) stop at the edge of each program: they are parsed once
//! into domain types with their limits checked, and trusted from there on.

#![forbid(unsafe_code)]

pub mod audit;
pub mod codec;
pub mod ids;
pub mod inventory;
pub mod job;
pub mod limits;
pub mod metrics;
pub mod record;
mod secret;
pub mod selector;
pub mod time;

/// `nexus.agent.v1`: sessions, records, signed documents.
pub mod agent {
    #[allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        missing_docs,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("nexus.agent.v1");
    }
}

/// `nexus.helper.v1`: what an agent asks of the root helper beside it.
pub mod helper {
    #[allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        missing_docs,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("nexus.helper.v1");
    }
}

/// `nexus.operator.v1`: what clients ask of a collector.
pub mod operator {
    #[allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        missing_docs,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("nexus.operator.v1");
    }

    /// Every RPC's path with its effect class, as the .proto file says: `("/nexus.operator.v1.Operator/Login", 1)`.
    pub const EFFECTS: &[(&str, i32)] = include!(concat!(env!("OUT_DIR"), "/effects.rs"));

    /// The effect class of a call; `None` for a path that is no RPC of ours.
    #[must_use]
    pub fn effect_of(path: &str) -> Option<v1::Effect> {
        EFFECTS
            .iter()
            .find(|(known, _)| *known == path)
            .and_then(|(_, number)| v1::Effect::try_from(*number).ok())
    }
}

/// `nexus.store.v1`: log entries on disk.
pub mod store {
    #[allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        missing_docs,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("nexus.store.v1");
    }
}

/// The protocol versions this build speaks, lowest and highest.
pub const PROTOCOL: (u32, u32) = (1, 1);

/// The versions of what agent and helper say to each other that this build speaks, lowest and highest.
pub const HELPER_PROTOCOL: (u32, u32) = (1, 1);

/// ALPN of gRPC over HTTP/3.
pub const ALPN_H3: &[u8] = b"h3";
/// ALPN of gRPC over HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN of the enrolment service: server-authenticated only.
pub const ALPN_ENROL: &[u8] = b"nexus-enrol/1";

/// The metadata key that carries a request's id through the programs.
pub const REQUEST_ID: &str = "nexus-request-id";
/// The metadata key that carries an error's hint.
pub const HINT: &str = "nexus-hint";
