//! The collector: lets agents in, takes their records into the shards, pushes signed jobs down, and
//! answers operators and Prometheus.
//!
//! [`collector`] is the one wiring file. The folders follow the two pipelines: `enrolment` (how a machine
//! becomes a node), `sessions` (records up, dispatches down), `jobs` (intent, scheduling), `operator` (what
//! people may ask), `pages` (what Prometheus reads). Everything durable is `nexus_store`'s.

#![forbid(unsafe_code)]

mod addresses;
mod cli;
mod codes;
mod collector;
pub mod config;
mod enrolment;
mod folder;
mod identity;
mod init;
#[doc(hidden)]
pub mod inside;
mod jobs;
mod operator;
mod owner;
mod pages;
mod ports;
mod reads;
#[doc(hidden)]
pub mod reference;
mod refusals;
mod request;
mod sessions;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trust;

pub use cli::{command, main};
