//! What a running program uses, as the kernel says.

use std::{fs, time::Duration};

/// Processor time a process has used so far, in user and kernel mode, in steps of a hundredth of a second
/// (proc_pid_stat(5), fields 14 and 15); zero once it is gone.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Resident memory of a process in bytes (`VmRSS` of proc_pid_status(5)); zero once it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Memory of a process in bytes, what it shares divided among those who share it (`Pss` of
/// /proc/PID/smaps_rollup); zero once it is gone.
#[must_use]
pub fn proportional_bytes(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_program_uses_something() {
        let own = std::process::id();
        while cpu_time(own) == Duration::ZERO {
            std::hint::spin_loop();
        }
        assert!(resident_bytes(own) > 100_000);
        assert!(proportional_bytes(own) > 100_000);
        assert_eq!(
            (cpu_time(u32::MAX), resident_bytes(u32::MAX)),
            (Duration::ZERO, 0)
        );
    }
}
