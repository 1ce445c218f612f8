//! What other people's programs make of ours. Needs root on Debian, and what each module names.

// `cfg(test)` tells the lints that helpers in there are test code too.
#[cfg(test)]
#[path = "interop/agent_disk.rs"]
mod agent_disk;
#[cfg(test)]
#[path = "interop/agent_folder.rs"]
mod agent_folder;
#[cfg(test)]
#[path = "interop/cable.rs"]
mod cable;
#[cfg(test)]
#[path = "interop/clock.rs"]
mod clock;
#[cfg(test)]
#[path = "interop/containers.rs"]
mod containers;
#[cfg(test)]
#[path = "interop/damage.rs"]
mod damage;
#[cfg(test)]
#[path = "interop/disk.rs"]
mod disk;
#[cfg(test)]
#[path = "interop/doctor.rs"]
mod doctor;
#[cfg(test)]
#[path = "interop/expiry.rs"]
mod expiry;
#[cfg(test)]
#[path = "interop/failing_disk.rs"]
mod failing_disk;
#[cfg(test)]
#[path = "interop/fake_clock.rs"]
mod fake_clock;
#[cfg(test)]
#[path = "interop/helper.rs"]
mod helper;
#[cfg(test)]
#[path = "interop/helper_scene.rs"]
mod helper_scene;
#[cfg(test)]
#[path = "interop/helper_socket.rs"]
mod helper_socket;
#[cfg(test)]
#[path = "interop/interference.rs"]
mod interference;
#[cfg(test)]
#[path = "interop/mounts.rs"]
mod mounts;
#[cfg(test)]
#[path = "interop/nat.rs"]
mod nat;
#[cfg(test)]
#[path = "interop/network.rs"]
mod network;
#[cfg(test)]
#[path = "interop/node_exporter.rs"]
mod node_exporter;
#[cfg(test)]
#[path = "interop/overload.rs"]
mod overload;
#[cfg(test)]
#[path = "interop/owner.rs"]
mod owner;
#[cfg(test)]
#[path = "interop/powercut.rs"]
mod powercut;
#[cfg(test)]
#[path = "interop/prometheus.rs"]
mod prometheus;
#[cfg(test)]
#[path = "interop/shutdown.rs"]
mod shutdown;
#[cfg(test)]
#[path = "interop/sqlite.rs"]
mod sqlite;
#[cfg(test)]
#[path = "interop/transitions.rs"]
mod transitions;
#[cfg(test)]
#[path = "interop/units.rs"]
mod units;
#[cfg(test)]
#[path = "interop/watchdog.rs"]
mod watchdog;
