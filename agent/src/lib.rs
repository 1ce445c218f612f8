//! The on-host agent: samples the machine, keeps what it saw in a spool until a collector has
//! committed it, and runs the signed jobs that admission lets through.
//!
//! Modules stand in the order of the two pipelines. Data: `sample` and `inventory` → `spool` →
//! `session`. Jobs: `session` → `runs`, which takes them through `admit`, `ledger` and `exec` → `spool`
//! again. `identity` is who the agent is, `agent` is the one file that sees them all.

pub mod admit;
pub mod agent;
pub mod cli;
pub mod config;
pub mod exec;
pub mod identity;
pub mod inventory;
pub mod ledger;
mod memory;
pub mod runs;
pub mod sample;
pub mod session;
pub mod spool;
pub mod trouble;
