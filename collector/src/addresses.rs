//! What agents and operators are told about where this collector answers: known once the ports are bound.

use std::sync::{Arc, OnceLock};

/// The addresses, shared by those who hand them out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<OnceLock<Vec<String>>>);

impl Addresses {
    /// Fixes them; the first call counts.
    pub(crate) fn set(&self, agents: Vec<String>) {
        let _first_counts = self.0.set(agents);
    }

    /// `host:port` of the agents' port.
    pub(crate) fn agents(&self) -> Vec<String> {
        self.0.get().cloned().unwrap_or_default()
    }
}
