//! `stat`, `loadavg`, `filefd`, `uname`: single numbers of the kernel.

use super::{
    SampleError,
    sink::Sink,
    source::{Sources, number, number_in},
};

/// `/proc/stat` without its processors.
#[derive(Debug, Default)]
pub(super) struct Totals {
    interrupts: f64,
    context_switches: f64,
    forks: f64,
    boot_time: f64,
    running: f64,
    blocked: f64,
}

impl Totals {
    /// Takes one line: the key and its first value, which for interrupts is their sum.
    pub(super) fn note(&mut self, key: &str, value: Option<&str>) {
        let place = match key {
            "intr" => &mut self.interrupts,
            "ctxt" => &mut self.context_switches,
            "processes" => &mut self.forks,
            "btime" => &mut self.boot_time,
            "procs_running" => &mut self.running,
            "procs_blocked" => &mut self.blocked,
            _ => return,
        };
        *place = value.and_then(number).unwrap_or(0.0);
    }
}

pub(super) fn stat(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let Some(totals) = sources.totals.take() else {
        let path = sources.proc("stat");
        return Err(SampleError::Malformed {
            path,
            what: "readable content",
        });
    };
    sink.counter(&["node_intr_total"], &[], totals.interrupts);
    sink.counter(
        &["node_context_switches_total"],
        &[],
        totals.context_switches,
    );
    sink.counter(&["node_forks_total"], &[], totals.forks);
    sink.gauge(&["node_boot_time_seconds"], &[], totals.boot_time);
    sink.gauge(&["node_procs_running"], &[], totals.running);
    sink.gauge(&["node_procs_blocked"], &[], totals.blocked);
    Ok(())
}

pub(super) fn loadavg(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("loadavg");
    let mut fields = sources.files.read(&path)?.split_ascii_whitespace();
    for name in ["node_load1", "node_load5", "node_load15"] {
        sink.gauge(
            &[name],
            &[],
            number_in(&path, "three loads", fields.next())?,
        );
    }
    Ok(())
}

pub(super) fn filefd(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("sys/fs/file-nr");
    let mut fields = sources.files.read(&path)?.split_ascii_whitespace();
    let allocated = number_in(&path, "number of allocated files", fields.next())?;
    let maximum = number_in(&path, "maximum", fields.nth(1))?;
    sink.gauge(&["node_filefd_allocated"], &[], allocated);
    sink.gauge(&["node_filefd_maximum"], &[], maximum);
    Ok(())
}

pub(super) fn uname(_: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let uname = rustix::system::uname();
    let labels = [
        ("domainname", uname.domainname().to_string_lossy()),
        ("machine", uname.machine().to_string_lossy()),
        ("nodename", uname.nodename().to_string_lossy()),
        ("release", uname.release().to_string_lossy()),
        ("sysname", uname.sysname().to_string_lossy()),
        ("version", uname.version().to_string_lossy()),
    ];
    let labels = labels
        .each_ref()
        .map(|(name, value)| (*name, value.as_ref()));
    sink.gauge(&["node_uname_info"], &labels, 1.0);
    Ok(())
}
