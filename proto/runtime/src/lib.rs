//! What every Nexus program stands on: the clock it is handed, named tasks with an owner, shutdown by
//! signal, layered settings, the log.
//!
//! Nothing here is global but the log's subscriber and the process's signal handlers, which are.

#![forbid(unsafe_code)]

pub mod clock;
pub mod errors;
pub mod log;
pub mod settings;
pub mod shutdown;
pub mod tasks;
