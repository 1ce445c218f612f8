//! What a collector that was taken over says instead of the truth.

use nexus_proto::operator::v1 as wire;

/// Nothing, unless a test says so.
#[derive(Default)]
pub(crate) struct Lies {
    /// The answer to every question for nodes.
    pub(crate) nodes: Option<Vec<wire::Node>>,
}
