//! `netdev`, `netstat`, `sockstat`.

use rustix::param::page_size;

use super::{
    SampleError,
    sink::Sink,
    source::{Sources, number, number_in},
};

/// `/proc/net/dev`, receiving and then sending; its sums of several kinds of error are the ones
/// node_exporter shows.
const DEVICE_COLUMNS: [&str; 16] = [
    "receive_bytes",
    "receive_packets",
    "receive_errs",
    "receive_drop",
    "receive_fifo",
    "receive_frame",
    "receive_compressed",
    "receive_multicast",
    "transmit_bytes",
    "transmit_packets",
    "transmit_errs",
    "transmit_drop",
    "transmit_fifo",
    "transmit_colls",
    "transmit_carrier",
    "transmit_compressed",
];

/// Every interface but `lo`, as Debian's node_exporter leaves it out.
pub(super) fn netdev(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("net/dev");
    let mut seen = 0;
    for line in sources.files.read(&path)?.lines().skip(2) {
        // A name may hold a colon, the values do not.
        let Some((device, values)) = line.rsplit_once(':') else {
            continue;
        };
        let device = device.trim_ascii_start();
        if device == "lo" {
            continue;
        }
        seen += 1;
        if !sources.nohandler.contains_key(device) {
            let file = sources.config.sysfs.join("class/net").join(device);
            sources
                .nohandler
                .insert(device.to_owned(), file.join("statistics/rx_nohandler"));
        }
        let mut values = values.split_ascii_whitespace();
        for column in DEVICE_COLUMNS {
            let value = number_in(&path, "sixteen values", values.next())?;
            sink.counter(
                &["node_network_", column, "_total"],
                &[("device", device)],
                value,
            );
        }
    }
    if sources.nohandler.len() > seen {
        // Interfaces went away; the ones that are there come back with the next reading.
        sources.nohandler.clear();
        return nohandler_of_present(sources, sink);
    }
    nohandler(sources, sink);
    Ok(())
}

/// The one number `/proc/net/dev` lacks.
fn nohandler(sources: &mut Sources, sink: &mut Sink) {
    for (device, path) in &sources.nohandler {
        let Ok(text) = sources.files.read(path) else {
            continue;
        };
        if let Some(value) = number(text.trim_ascii()) {
            let labels = [("device", device.as_str())];
            sink.counter(&["node_network_receive_nohandler_total"], &labels, value);
        }
    }
}

fn nohandler_of_present(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("net/dev");
    for line in sources.files.read(&path)?.lines().skip(2) {
        let Some((device, _)) = line.rsplit_once(':') else {
            continue;
        };
        let device = device.trim_ascii_start();
        if device != "lo" {
            let file = sources.config.sysfs.join("class/net").join(device);
            sources
                .nohandler
                .insert(device.to_owned(), file.join("statistics/rx_nohandler"));
        }
    }
    nohandler(sources, sink);
    Ok(())
}

/// The fields node_exporter shows by default.
fn is_shown(protocol: &str, field: &str) -> bool {
    if matches!(field, "InErrors" | "InErrs") {
        return true;
    }
    match protocol {
        "Ip" => field == "Forwarding",
        "Ip6" | "IpExt" => matches!(field, "InOctets" | "OutOctets"),
        "Icmp" | "Icmp6" => matches!(field, "InMsgs" | "OutMsgs"),
        "TcpExt" => {
            field.starts_with("Listen")
                || field.starts_with("Syncookies")
                || matches!(field, "TCPSynRetrans" | "TCPTimeouts")
        }
        "Tcp" => matches!(
            field,
            "ActiveOpens"
                | "InSegs"
                | "OutSegs"
                | "OutRsts"
                | "PassiveOpens"
                | "RetransSegs"
                | "CurrEstab"
        ),
        "Udp" | "Udp6" => matches!(
            field,
            "InDatagrams" | "OutDatagrams" | "NoPorts" | "RcvbufErrors" | "SndbufErrors"
        ),
        _ => false,
    }
}

/// Protocol counters: `/proc/net/netstat` and `snmp` in pairs of lines (names, values), `snmp6` one a line.
pub(super) fn netstat(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    for file in ["net/netstat", "net/snmp"] {
        let path = sources.proc(file);
        let mut lines = sources.files.read(&path)?.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let Some((protocol, names)) = names.split_once(": ") else {
                continue;
            };
            let values = values.split_ascii_whitespace().skip(1);
            for (field, value) in names.split_ascii_whitespace().zip(values) {
                if is_shown(protocol, field) {
                    let value = number_in(&path, "value for each name", Some(value))?;
                    sink.untyped(&["node_netstat_", protocol, "_", field], &[], value);
                }
            }
        }
    }
    let path = sources.proc("net/snmp6");
    // Without IPv6 there is no such file.
    let Some(text) = sources.files.read_if_there(&path)? else {
        return Ok(());
    };
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        // The protocol ends with its 6: Udp6InErrors, UdpLite6InErrors.
        let Some((protocol, field)) = fields.next().and_then(|name| {
            let six = name.find('6')?;
            name.split_at_checked(six + 1)
        }) else {
            continue;
        };
        if is_shown(protocol, field) {
            let value = number_in(&path, "value for each name", fields.next())?;
            sink.untyped(&["node_netstat_", protocol, "_", field], &[], value);
        }
    }
    Ok(())
}

/// Sockets by protocol and state; memory in pages and in bytes.
pub(super) fn sockstat(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    for file in ["net/sockstat", "net/sockstat6"] {
        let path = sources.proc(file);
        let Some(text) = sources.files.read_if_there(&path)? else {
            continue;
        };
        for line in text.lines() {
            let Some((protocol, pairs)) = line.split_once(':') else {
                continue;
            };
            let mut fields = pairs.split_ascii_whitespace();
            while let Some(field) = fields.next() {
                let value = number_in(&path, "value for each state", fields.next())?;
                sink.gauge(&["node_sockstat_", protocol, "_", field], &[], value);
                if field == "mem" {
                    #[expect(clippy::cast_precision_loss, reason = "a page is not that large")]
                    let bytes = value * page_size() as f64;
                    sink.gauge(&["node_sockstat_", protocol, "_mem_bytes"], &[], bytes);
                }
            }
        }
    }
    Ok(())
}
