//! What the pages for Prometheus can hold, for the reference in `docs/`. No interface: everything else goes through
//! [`crate::main`].

use std::fmt;

use crate::pages::{
    exposition::Format,
    families,
    metrics::{self, specimen},
};

/// `/metrics` in the format 0.0.4, with one series of every family.
pub fn own_page() -> Result<String, fmt::Error> {
    metrics::page(&specimen().registry(), Format::Plain)
}

/// What `/metrics/nodes` says of a family.
#[must_use]
pub fn help(family: &str) -> String {
    families::help(family)
}

/// The word of `collect=` that a family is shown for.
#[must_use]
pub fn collector_of(family: &str) -> Option<&'static str> {
    let mut all = families::COLLECTORS.iter();
    all.find(|(_, prefixes)| prefixes.iter().any(|prefix| family.starts_with(prefix)))
        .map(|(name, _)| *name)
}
