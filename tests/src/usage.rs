//! What a running program uses, as the kernel says.

use std::{collections::BTreeMap, fs, time::Duration};

use rustix::process::{Pid, getpid, set_child_subreaper};

use crate::fault::{Fault, Outcome};

/// Processor time a process has used so far, in user and kernel mode, in steps of a hundredth of a second
/// (proc_pid_stat(5), fields 14 and 15); zero once it is gone.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    Stat::of(pid).map_or(Duration::ZERO, |stat| stat.own)
}

/// From here on what programs leave behind when they end becomes a child of this process, so that
/// [`cpu_time_of_descendants`] and [`descendants`] miss nothing that was started from here.
pub fn adopt_orphans() -> Outcome {
    let adopted = set_child_subreaper(Some(getpid()));
    adopted.map_err(|error| Fault::new(format!("adopt orphans: {error}")))
}

/// Processor time of everything this process started, at any remove, what has ended included: that of the ended
/// stands with whoever waited for them (proc_pid_stat(5), fields 16 and 17).
#[must_use]
pub fn cpu_time_of_descendants() -> Duration {
    let all = processes();
    let waited = all
        .get(&std::process::id())
        .map_or(Duration::ZERO, |own| own.of_ended_children);
    let living = descendants_in(&all);
    let living = living.iter().filter_map(|pid| all.get(pid));
    living.fold(waited, |sum, stat| sum + stat.own + stat.of_ended_children)
}

/// The processes this one started, at any remove, that have not been waited for.
#[must_use]
pub fn descendants() -> Vec<Pid> {
    let raw = descendants_in(&processes()).into_iter();
    raw.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .collect()
}

/// What proc_pid_stat(5) says, as far as it is asked.
struct Stat {
    parent: u32,
    own: Duration,
    of_ended_children: Duration,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The first two fields are the number and the name, in which there may be anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |place: usize| fields.get(place)?.parse::<u64>().ok();
        let span = |ticks: u64| Duration::from_millis(ticks * 10);
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: span(ticks(11)? + ticks(12)?),
            of_ended_children: span(ticks(13)? + ticks(14)?),
        })
    }
}

fn processes() -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, Stat::of(pid)?))).collect()
}

fn descendants_in(all: &BTreeMap<u32, Stat>) -> Vec<u32> {
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = all.iter().filter(|(_, stat)| stat.parent == parent);
        found.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
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

/// A process and all that descend from it.
#[must_use]
pub fn family(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The state, then the parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            Some((process, parent.parse().ok()?))
        })
        .collect();
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = parents.iter().filter(|(_, its)| *its == parent);
        family.extend(children.map(|(process, _)| *process));
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_of_the_family() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let family = family(own);
        assert_eq!(family.first(), Some(&own));
        assert!(family.contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

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

    #[test]
    fn what_children_and_their_children_used_is_counted_when_they_have_ended_too() {
        let before = cpu_time_of_descendants();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh")
            .args(["-c", &format!("sh -c '{busy}'")])
            .status();
        assert!(status.unwrap().success());
        assert!(cpu_time_of_descendants() > before);

        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let id = i32::try_from(child.id()).unwrap();
        assert!(descendants().contains(&Pid::from_raw(id).unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
