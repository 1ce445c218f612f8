//! What the nodes' metric families mean, and which collector each belongs to, in node_exporter's terms.

/// Names of collectors that `collect=` takes, with what their families' names begin with.
pub(crate) const COLLECTORS: &[(&str, &[&str])] = &[
    ("cpu", &["node_cpu_"]),
    ("diskstats", &["node_disk_"]),
    ("filefd", &["node_filefd_"]),
    ("filesystem", &["node_filesystem_"]),
    ("loadavg", &["node_load"]),
    ("meminfo", &["node_memory_"]),
    ("netdev", &["node_network_"]),
    ("netstat", &["node_netstat_"]),
    ("pressure", &["node_pressure_"]),
    ("sockstat", &["node_sockstat_"]),
    (
        "stat",
        &[
            "node_boot_time_",
            "node_context_switches_",
            "node_forks_",
            "node_intr_",
            "node_procs_",
            "node_softirqs_",
        ],
    ),
    ("time", &["node_time_"]),
    ("uname", &["node_uname_"]),
    ("vmstat", &["node_vmstat_"]),
];

/// Whether a family is of one of these collectors; of no collector is everything's.
pub(crate) fn is_wanted(family: &str, collectors: &[String]) -> bool {
    collectors.is_empty()
        || COLLECTORS.iter().any(|(name, prefixes)| {
            collectors.iter().any(|wanted| wanted == name)
                && prefixes.iter().any(|prefix| family.starts_with(prefix))
        })
}

/// The HELP text of a family.
pub(crate) fn help(family: &str) -> String {
    if let Ok(index) = KNOWN.binary_search_by_key(&family, |(name, _)| name)
        && let Some((_, text)) = KNOWN.get(index)
    {
        return (*text).to_owned();
    }
    let base = family.strip_suffix("_total").unwrap_or(family);
    if let Some(field) = base.strip_prefix("node_memory_") {
        return format!("Memory information field {field}.");
    }
    if let Some(field) = base.strip_prefix("node_vmstat_") {
        return format!("/proc/vmstat information field {field}.");
    }
    if let Some(field) = base.strip_prefix("node_netstat_") {
        return format!("Statistic {}.", field.replacen('_', "", 1));
    }
    if let Some(field) = base.strip_prefix("node_network_") {
        return format!("Network device statistic {field}.");
    }
    if let Some(field) = base.strip_prefix("node_sockstat_") {
        return match field.rsplit_once('_') {
            Some((protocol, state)) => {
                format!("Number of {protocol} sockets in state {state}.")
            }
            None => format!("Socket statistic {field}."),
        };
    }
    format!("{}, as the node reports it.", base.replace('_', " "))
}

/// By name, for the search.
const KNOWN: &[(&str, &str)] = &[
    ("node_boot_time_seconds", "Node boot time, in unixtime."),
    (
        "node_context_switches_total",
        "Total number of context switches.",
    ),
    (
        "node_cpu_guest_seconds_total",
        "Seconds the CPUs spent in guests (VMs) for each mode.",
    ),
    (
        "node_cpu_seconds_total",
        "Seconds the CPUs spent in each mode.",
    ),
    (
        "node_disk_discard_time_seconds_total",
        "This is the total number of seconds spent by all discards.",
    ),
    (
        "node_disk_discarded_sectors_total",
        "The total number of sectors discarded successfully.",
    ),
    (
        "node_disk_discards_completed_total",
        "The total number of discards completed successfully.",
    ),
    (
        "node_disk_discards_merged_total",
        "The total number of discards merged.",
    ),
    (
        "node_disk_flush_requests_time_seconds_total",
        "This is the total number of seconds spent by all flush requests.",
    ),
    (
        "node_disk_flush_requests_total",
        "The total number of flush requests completed successfully",
    ),
    ("node_disk_info", "Info of /sys/block/<block_device>."),
    (
        "node_disk_io_now",
        "The number of I/Os currently in progress.",
    ),
    (
        "node_disk_io_time_seconds_total",
        "Total seconds spent doing I/Os.",
    ),
    (
        "node_disk_io_time_weighted_seconds_total",
        "The weighted # of seconds spent doing I/Os.",
    ),
    (
        "node_disk_read_bytes_total",
        "The total number of bytes read successfully.",
    ),
    (
        "node_disk_read_time_seconds_total",
        "The total number of seconds spent by all reads.",
    ),
    (
        "node_disk_reads_completed_total",
        "The total number of reads completed successfully.",
    ),
    (
        "node_disk_reads_merged_total",
        "The total number of reads merged.",
    ),
    (
        "node_disk_write_time_seconds_total",
        "This is the total number of seconds spent by all writes.",
    ),
    (
        "node_disk_writes_completed_total",
        "The total number of writes completed successfully.",
    ),
    (
        "node_disk_writes_merged_total",
        "The number of writes merged.",
    ),
    (
        "node_disk_written_bytes_total",
        "The total number of bytes written successfully.",
    ),
    (
        "node_filefd_allocated",
        "File descriptor statistics: allocated.",
    ),
    (
        "node_filefd_maximum",
        "File descriptor statistics: maximum.",
    ),
    (
        "node_filesystem_avail_bytes",
        "Filesystem space available to non-root users in bytes.",
    ),
    (
        "node_filesystem_device_error",
        "Whether an error occurred while getting statistics for the given device.",
    ),
    ("node_filesystem_files", "Filesystem total file nodes."),
    (
        "node_filesystem_files_free",
        "Filesystem total free file nodes.",
    ),
    (
        "node_filesystem_free_bytes",
        "Filesystem free space in bytes.",
    ),
    ("node_filesystem_readonly", "Filesystem read-only status."),
    ("node_filesystem_size_bytes", "Filesystem size in bytes."),
    ("node_forks_total", "Total number of forks."),
    ("node_intr_total", "Total number of interrupts serviced."),
    (
        "node_last_report_timestamp_seconds",
        "When the node's newest report was made, by the node's clock; 0 before the first.",
    ),
    ("node_load1", "1m load average."),
    ("node_load15", "15m load average."),
    ("node_load5", "5m load average."),
    (
        "node_pressure_cpu_waiting_seconds_total",
        "Total time in seconds that processes have waited for CPU time",
    ),
    (
        "node_pressure_io_stalled_seconds_total",
        "Total time in seconds no process could make progress due to IO congestion",
    ),
    (
        "node_pressure_io_waiting_seconds_total",
        "Total time in seconds that processes have waited due to IO congestion",
    ),
    (
        "node_pressure_memory_stalled_seconds_total",
        "Total time in seconds no process could make progress due to memory congestion",
    ),
    (
        "node_pressure_memory_waiting_seconds_total",
        "Total time in seconds that processes have waited for memory",
    ),
    (
        "node_procs_blocked",
        "Number of processes blocked waiting for I/O to complete.",
    ),
    (
        "node_procs_running",
        "Number of processes in runnable state.",
    ),
    (
        "node_sockstat_sockets_used",
        "Number of IPv4 sockets in use.",
    ),
    (
        "node_time_seconds",
        "System time in seconds since epoch (1970).",
    ),
    (
        "node_uname_info",
        "Labeled system information as provided by the uname system call.",
    ),
    (
        "node_up",
        "Whether the node's newest report is at most three intervals old.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn every_family_has_help() {
        assert_eq!(help("node_load1"), "1m load average.");
        assert_eq!(
            help("node_memory_MemAvailable_bytes"),
            "Memory information field MemAvailable_bytes."
        );
        assert_eq!(
            help("node_network_receive_bytes_total"),
            "Network device statistic receive_bytes."
        );
        assert_eq!(help("node_netstat_Tcp_InSegs"), "Statistic TcpInSegs.");
        assert_eq!(
            help("node_sockstat_TCP_alloc"),
            "Number of TCP sockets in state alloc."
        );
        assert!(!help("something_else").is_empty());
    }

    #[test]
    fn collectors_choose_families() {
        let wanted = ["cpu".to_owned(), "stat".to_owned()];
        assert!(is_wanted("node_cpu_seconds_total", &wanted));
        assert!(is_wanted("node_forks_total", &wanted));
        assert!(!is_wanted("node_load1", &wanted));
        assert!(is_wanted("node_load1", &[]));
    }
}
