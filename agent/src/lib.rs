//! The on-host agent: samples the machine, keeps what it saw in a spool until a collector has
//! committed it, and runs the signed jobs that admission lets through.
//!
//! Modules stand in the order of the two pipelines. Data: `sample` and `inventory` → `spool` →
//! `session`. Jobs: `session` → `runs`, which takes them through `admit`, `ledger` and `exec` → `spool`
//! again. `helper` is the second process, root and without a network, that runs jobs for the agent once it has judged
//! them itself, by `admit` and by the machine's `local_policy`. `identity` is who the agent is, `agent` is the one file
//! that sees them all.

pub mod admit;
pub mod agent;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod exec;
pub mod helper;
pub mod identity;
pub mod inventory;
pub mod join;
pub mod ledger;
pub mod local_policy;
mod memory;
mod ration;
pub mod runs;
pub mod sample;
pub mod session;
pub mod spool;
pub mod status;
pub mod trouble;
