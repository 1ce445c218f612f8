//! What agents and operators are told about where this collector answers: known once the ports are bound.

use std::sync::{Arc, PoisonError, RwLock};

/// The addresses, shared by those who hand them out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<RwLock<Vec<String>>>);

impl Addresses {
    /// From now on these.
    pub(crate) fn set(&self, agents: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = agents;
    }

    /// `host:port` of the agents' port.
    pub(crate) fn agents(&self) -> Vec<String> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
