//! Jobs: an intent in the control log, a run per target in the targets' shards, and a scheduler that
//! reconciles the two with who is connected until every run has ended.
//!
//! `submit` takes a signed job in; `decide` says, as a pure function of its rows, what to do next about an `active` one;
//! `scheduler` asks it whenever something may have changed, and `carry` does it, and does it again after a restart,
//! from the rows alone. `hints` only save it from looking too late.

mod active;
mod carry;
pub(crate) mod decide;
pub(crate) mod hints;
pub(crate) mod scheduler;
pub(crate) mod submit;
