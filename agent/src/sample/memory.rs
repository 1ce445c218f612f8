//! `meminfo`, `vmstat`, `pressure`.

use super::{
    SampleError,
    sink::Sink,
    source::{Sources, number, number_in},
};

/// Every key of `/proc/meminfo`; the ones in kB in bytes, and named so: `Active(anon)` becomes
/// `node_memory_Active_anon_bytes`.
pub(super) fn meminfo(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("meminfo");
    for line in sources.files.read(&path)?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(key) = fields.next() else { continue };
        let key = key.trim_end_matches(':');
        let value = number_in(&path, "value after each key", fields.next())?;
        let (name, inner) = match key.split_once('(') {
            Some((name, rest)) => (name, Some(rest.trim_end_matches(')'))),
            None => (key, None),
        };
        let underscore = if inner.is_some() { "_" } else { "" };
        let (unit, factor) = if fields.next().is_some() {
            ("_bytes", 1024.0)
        } else {
            ("", 1.0)
        };
        let name = [
            "node_memory_",
            name,
            underscore,
            inner.unwrap_or_default(),
            unit,
        ];
        sink.gauge(&name, &[], value * factor);
    }
    Ok(())
}

/// The fields node_exporter shows by default: `^(oom_kill|pgpg|pswp|pg.*fault).*`.
pub(super) fn vmstat(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("vmstat");
    for line in sources.files.read(&path)?.lines() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        let shown = key.starts_with("oom_kill")
            || key.starts_with("pgpg")
            || key.starts_with("pswp")
            || key
                .strip_prefix("pg")
                .is_some_and(|rest| rest.contains("fault"));
        if shown {
            let value = number_in(&path, "value after each key", Some(value))?;
            sink.untyped(&["node_vmstat_", key], &[], value);
        }
    }
    Ok(())
}

/// Pressure stall information; a kernel without it has none of these series.
pub(super) fn pressure(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    for (resource, some, full) in [
        ("cpu", "node_pressure_cpu_waiting_seconds_total", None),
        (
            "io",
            "node_pressure_io_waiting_seconds_total",
            Some("node_pressure_io_stalled_seconds_total"),
        ),
        (
            "memory",
            "node_pressure_memory_waiting_seconds_total",
            Some("node_pressure_memory_stalled_seconds_total"),
        ),
    ] {
        let path = sources.proc("pressure").join(resource);
        for line in sources.files.read(&path)?.lines() {
            let mut fields = line.split_ascii_whitespace();
            let name = match fields.next() {
                Some("some") => some,
                Some("full") => match full {
                    Some(full) => full,
                    None => continue,
                },
                _ => continue,
            };
            let total = fields
                .find_map(|field| field.strip_prefix("total="))
                .and_then(number);
            let Some(microseconds) = total else {
                return Err(SampleError::Malformed {
                    path,
                    what: "total",
                });
            };
            sink.counter(&[name], &[], microseconds / 1000.0 / 1000.0);
        }
    }
    Ok(())
}
