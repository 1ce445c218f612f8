//! Nodes as `get nodes` and the targets of jobs see them.

use std::collections::BTreeMap;

use nexus_proto::{ids::NodeId, operator::v1::Node, selector::Selector};

use crate::{
    fault::{Fault, Outcome},
    output::{
        Cell, Field,
        Shown::{Always, Never, Wide},
    },
};

/// Fields of a node, the promised ones first.
pub(crate) fn fields() -> Vec<Field> {
    vec![
        Field::new("name", Always),
        Field::new("id", Wide),
        Field::new("state", Always),
        Field::titled("os", "OS", Always),
        Field::new("kernel", Wide),
        Field::new("arch", Always),
        Field::titled("agent_version", "VERSION", Always),
        Field::new("transport", Always),
        Field::new("key_exchange", Wide),
        Field::new("last_seen", Always),
        Field::titled("enrolled_at", "AGE", Always),
        Field::new("labels", Wide),
        Field::new("shard", Wide),
        Field::new("slot", Never),
        Field::new("incarnation", Never),
        Field::titled("rtt_seconds", "RTT", Never),
        Field::titled("certificate_expires_at", "CERTIFICATE", Never),
        Field::titled("state_reason", "REASON", Wide),
        Field::new("address", Wide),
    ]
}

/// The cells of [`fields`].
pub(crate) fn cells(node: Node) -> Vec<Cell> {
    vec![
        Cell::text(node.name),
        Cell::text(id_text(&node.id)),
        Cell::State(node.state),
        Cell::text(node.os),
        Cell::text(node.kernel),
        Cell::text(node.arch),
        Cell::text(node.agent_version),
        Cell::text(node.transport),
        Cell::text(node.key_exchange),
        Cell::time(node.last_seen_ms),
        Cell::time(Some(node.enrolled_at_ms)),
        Cell::Labels(node.labels.into_iter().collect::<BTreeMap<_, _>>()),
        Cell::Unsigned(node.shard.into()),
        Cell::Unsigned(node.slot.into()),
        Cell::text(id_text(&node.incarnation)),
        node.rtt_us.map_or(Cell::Null, |us| Cell::Real(seconds(us))),
        Cell::time(node.certificate_expires_ms),
        Cell::text(node.state_reason),
        Cell::text(node.address),
    ]
}

/// An id as text; nothing for one that is none.
pub(crate) fn id_text(bytes: &[u8]) -> String {
    NodeId::from_wire(bytes)
        .map(|id| id.to_string())
        .unwrap_or_default()
}

fn seconds(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64()
}

/// Fields that `--field-selector` knows of nodes.
pub(crate) const SELECTABLE: &[&str] = &["name", "state", "id"];

/// A label selector, or what is wrong with it.
pub(crate) fn selector(text: &str) -> Outcome<Selector> {
    Selector::parse(text).map_err(|error| {
        Fault::usage(format!("selector `{text}`"), error)
            .hint("examples: `role=web`, `zone in (a,b)`, `!canary`")
    })
}
