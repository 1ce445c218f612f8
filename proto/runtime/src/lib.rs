//! What every Nexus program stands on: the clock it is handed, named tasks with an owner, shutdown by
//! signal, layered settings, the log, whose folder of state it is, how its commands begin and fail.
//!
//! Nothing here is global but the log's subscriber and the process's signal handlers, which are.

#![forbid(unsafe_code)]

pub mod clock;
pub mod command_line;
pub mod errors;
pub mod fault;
pub mod log;
pub mod owner;
pub mod progress;
pub mod reload;
pub mod service;
pub mod settings;
pub mod shutdown;
pub mod tasks;
