//! The real programs, together.

// `cfg(test)` tells the lints that helpers in there are test code too.
#[cfg(test)]
#[path = "e2e/agent.rs"]
mod agent;
#[cfg(test)]
#[path = "e2e/bench.rs"]
mod bench;
#[cfg(test)]
#[path = "e2e/clones.rs"]
mod clones;
#[cfg(test)]
#[path = "e2e/command_line.rs"]
mod command_line;
#[cfg(test)]
#[path = "e2e/containers.rs"]
mod containers;
#[cfg(test)]
#[path = "e2e/demo.rs"]
mod demo;
#[cfg(test)]
#[path = "e2e/doctor.rs"]
mod doctor;
#[cfg(test)]
#[path = "e2e/endings.rs"]
mod endings;
#[cfg(test)]
#[path = "e2e/handbook.rs"]
mod handbook;
#[cfg(test)]
#[path = "e2e/inventory.rs"]
mod inventory;
#[cfg(test)]
#[path = "e2e/jobs.rs"]
mod jobs;
#[cfg(test)]
#[path = "e2e/metrics.rs"]
mod metrics;
#[cfg(test)]
#[path = "e2e/nodes.rs"]
mod nodes;
#[cfg(test)]
#[path = "e2e/operators.rs"]
mod operators;
#[cfg(test)]
#[path = "e2e/queries.rs"]
mod queries;
#[cfg(test)]
#[path = "e2e/refused.rs"]
mod refused;
#[cfg(test)]
#[path = "e2e/running.rs"]
mod running;
#[cfg(test)]
#[path = "e2e/service.rs"]
mod service;
#[cfg(test)]
#[path = "e2e/settings.rs"]
mod settings;
#[cfg(test)]
#[path = "e2e/soak.rs"]
mod soak;
#[cfg(test)]
#[path = "e2e/starts.rs"]
mod starts;
#[cfg(test)]
#[path = "e2e/stolen.rs"]
mod stolen;
#[cfg(test)]
#[path = "e2e/strangers.rs"]
mod strangers;
#[cfg(test)]
#[path = "e2e/swarm.rs"]
mod swarm;
#[cfg(test)]
#[path = "e2e/transport.rs"]
mod transport;
#[cfg(test)]
#[path = "e2e/trust.rs"]
mod trust;
#[cfg(test)]
#[path = "e2e/truth.rs"]
mod truth;
#[cfg(test)]
#[path = "e2e/views.rs"]
mod views;
#[cfg(test)]
#[path = "e2e/waiting.rs"]
mod waiting;
