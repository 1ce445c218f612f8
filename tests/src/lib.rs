//! The harness: builds the programs once, starts the real ones on free ports in folders of their own, and ends
//! them with the test.
//!
//! Tests wait for conditions ([`poll`]), never for time alone. Every program runs in a process group that is
//! killed when its handle is dropped, so that a failing test leaves nothing behind.

pub mod agent;
pub mod bench;
pub mod collector;
pub mod ctl;
pub mod doctor;
pub mod fault;
pub mod figure;
pub mod fleet;
pub mod handbook;
pub mod helper;
pub mod hostile;
pub mod manager;
pub mod page;
pub mod poll;
pub mod port;
pub mod powercut;
pub mod process;
pub mod programs;
pub mod relay;
pub mod report;
pub mod scrape;
pub mod soak;
pub mod strangers;
pub mod swarm;
pub mod thief;
pub mod usage;
