use std::{collections::BTreeMap, fs, path::Path};

use nexus_proto::metrics::{Sample, SeriesType};

use super::*;

fn value(snapshot: &Snapshot, name: &str, labels: &[(&str, &str)]) -> f64 {
    let found = snapshot.find(name, labels);
    found
        .unwrap_or_else(|| panic!("{name} {labels:?} is missing"))
        .value
}

fn names(snapshot: &Snapshot) -> BTreeMap<String, (SeriesType, f64)> {
    let entry = |sample: &Sample| (sample.key.to_string(), (sample.kind, sample.value));
    let map: BTreeMap<_, _> = snapshot.samples.iter().map(entry).collect();
    assert_eq!(
        map.len(),
        snapshot.samples.len(),
        "a series stands there twice"
    );
    map
}

/// A host made of files.
fn fixture() -> (tempfile::TempDir, SampleConfig) {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "proc/stat",
        "cpu  1 2 3 4 5 6 7 8 9 10\n\
         cpu0 301854 612 111922 8979004 3552 2 3944 44 36 26\n\
         cpu2 282 0 0 8979 0 0 0 0\n\
         intr 8885917 17 0 0\nctxt 38014093\nbtime 1418183276\nprocesses 26442\n\
         procs_running 2\nprocs_blocked 1\nsoftirq 5057579 250191 1481983\n",
    );
    write(
        "proc/meminfo",
        "MemTotal:  16042172 kB\nActive(anon):  2068484 kB\nHugePages_Total: 3\n",
    );
    write(
        "proc/vmstat",
        "nr_free_pages 1\npgpgin 7344136\npswpout 2\npgmajfault 3\npgfault 4\noom_kill 5\npgalloc_dma 6\n",
    );
    write(
        "proc/pressure/cpu",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=14036781\nfull avg10=0 avg60=0 avg300=0 total=9\n",
    );
    for resource in ["io", "memory"] {
        write(
            &format!("proc/pressure/{resource}"),
            "some avg10=0.10 avg60=2.00 avg300=3.85 total=15\nfull avg10=0.20 avg60=3.00 avg300=4.95 total=25\n",
        );
    }
    write("proc/loadavg", "0.21 0.37 0.39 1/719 19737\n");
    write("proc/sys/fs/file-nr", "1024\t0\t1631329\n");
    write(
        "proc/1/mounts",
        "/dev/root / ext4 rw 0 0\nproc /proc proc rw 0 0\nx /gone/away xfs ro 0 0\n",
    );
    write(
        "proc/diskstats",
        "7 0 loop0 1 2 3 4\n8 0 sda 25353629 34367663 1003337964 567 28444756 11134226 505697032 63877960 2 9653880 82621804 1 2 3 4 5 6\n\
         8 1 sda1 1 2 3 4\n 252 0 dm-0 59910002 0 1003337218\n",
    );
    write(
        "udev/b8:0",
        "S:disk/by-id/x\nE:ID_MODEL=SAMSUNG\nE:ID_SERIAL_SHORT=S3\nE:ID_ATA=1\nE:ID_ATA_WRITE_CACHE=1\nE:ID_ATA_ROTATION_RATE_RPM=7200\n",
    );
    write(
        "udev/b252:0",
        "E:DM_NAME=root\nE:DM_VG_NAME=system\nE:ID_FS_TYPE=ext4\nE:ID_FS_UUID=u\n",
    );
    write(
        "proc/net/dev",
        "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 68210035552 520993275 1 2 3 4 5 6 9315587528 43451486 7 8 9 10 11 12\n",
    );
    write("sys/class/net/eth0/statistics/rx_nohandler", "13\n");
    write(
        "proc/net/netstat",
        "TcpExt: SyncookiesSent SyncookiesRecv X\nTcpExt: 1 2 3\nIpExt: InNoRoutes InOctets\nIpExt: 1 6286396970\n",
    );
    write(
        "proc/net/snmp",
        "Ip: Forwarding DefaultTTL\nIp: 2 64\nTcp: ActiveOpens MaxConn InErrs\nTcp: 3556 -1 5\n",
    );
    write(
        "proc/net/snmp6",
        "Ip6InOctets 460\nUdp6InErrors 1\nUdpLite6InErrors 2\nIcmp6InType1 3\n",
    );
    write(
        "proc/net/sockstat",
        "sockets: used 229\nTCP: inuse 4 orphan 0 tw 4 alloc 17 mem 1\n",
    );
    write(
        "proc/net/sockstat6",
        "TCP6: inuse 17\nFRAG6: inuse 0 memory 0\n",
    );
    write(
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "tsc hpet \n",
    );
    write(
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc\n",
    );
    for (cpu, core, count) in [(0, 0, 5), (1, 0, 0), (2, 1, 9)] {
        let cpu = format!("sys/devices/system/cpu/cpu{cpu}");
        write(&format!("{cpu}/topology/physical_package_id"), "0\n");
        write(&format!("{cpu}/topology/core_id"), &format!("{core}\n"));
        write(
            &format!("{cpu}/thermal_throttle/core_throttle_count"),
            &format!("{count}\n"),
        );
        write(
            &format!("{cpu}/thermal_throttle/package_throttle_count"),
            "30\n",
        );
    }
    let config = SampleConfig {
        procfs: folder.path().join("proc"),
        sysfs: folder.path().join("sys"),
        udev: folder.path().join("udev"),
        localtime: folder.path().join("none"),
        ..SampleConfig::default()
    };
    (folder, config)
}

#[test]
fn reads_a_host_made_of_files() {
    let (_folder, config) = fixture();
    let snapshot = Sampler::new(config).sample(Timestamp(1_700_000_000_250));
    assert_eq!(snapshot.interval_ms, 10_000);
    for (name, labels, expected) in [
        (
            "node_cpu_seconds_total",
            &[("cpu", "0"), ("mode", "user")][..],
            3018.54,
        ),
        (
            "node_cpu_seconds_total",
            &[("cpu", "0"), ("mode", "steal")],
            0.44,
        ),
        (
            "node_cpu_seconds_total",
            &[("cpu", "1"), ("mode", "idle")],
            0.0,
        ),
        (
            "node_cpu_seconds_total",
            &[("cpu", "2"), ("mode", "idle")],
            89.79,
        ),
        (
            "node_cpu_guest_seconds_total",
            &[("cpu", "0"), ("mode", "nice")],
            0.26,
        ),
        (
            "node_cpu_core_throttles_total",
            &[("core", "0"), ("package", "0")],
            5.0,
        ),
        (
            "node_cpu_core_throttles_total",
            &[("core", "1"), ("package", "0")],
            9.0,
        ),
        (
            "node_cpu_package_throttles_total",
            &[("package", "0")],
            30.0,
        ),
        ("node_intr_total", &[], 8_885_917.0),
        ("node_boot_time_seconds", &[], 1_418_183_276.0),
        ("node_procs_blocked", &[], 1.0),
        ("node_memory_MemTotal_bytes", &[], 16_042_172.0 * 1024.0),
        ("node_memory_Active_anon_bytes", &[], 2_068_484.0 * 1024.0),
        ("node_memory_HugePages_Total", &[], 3.0),
        ("node_vmstat_pgmajfault", &[], 3.0),
        ("node_vmstat_oom_kill", &[], 5.0),
        (
            "node_pressure_cpu_waiting_seconds_total",
            &[],
            14_036_781.0 / 1000.0 / 1000.0,
        ),
        (
            "node_pressure_io_stalled_seconds_total",
            &[],
            25.0 / 1000.0 / 1000.0,
        ),
        ("node_load15", &[], 0.39),
        ("node_filefd_maximum", &[], 1_631_329.0),
        ("node_time_seconds", &[], 1_700_000_000.25),
        (
            "node_time_zone_offset_seconds",
            &[("time_zone", "UTC")],
            0.0,
        ),
        (
            "node_time_clocksource_available_info",
            &[("clocksource", "hpet"), ("device", "0")],
            1.0,
        ),
        (
            "node_time_clocksource_current_info",
            &[("clocksource", "tsc"), ("device", "0")],
            1.0,
        ),
        (
            "node_disk_read_bytes_total",
            &[("device", "sda")],
            1_003_337_964.0 * 512.0,
        ),
        (
            "node_disk_read_time_seconds_total",
            &[("device", "sda")],
            567.0 * 0.001,
        ),
        ("node_disk_io_now", &[("device", "sda")], 2.0),
        (
            "node_disk_discarded_sectors_total",
            &[("device", "sda")],
            3.0,
        ),
        (
            "node_disk_flush_requests_time_seconds_total",
            &[("device", "sda")],
            0.006,
        ),
        (
            "node_disk_ata_rotation_rate_rpm",
            &[("device", "sda")],
            7200.0,
        ),
        (
            "node_disk_reads_completed_total",
            &[("device", "dm-0")],
            59_910_002.0,
        ),
        (
            "node_network_receive_bytes_total",
            &[("device", "eth0")],
            68_210_035_552.0,
        ),
        (
            "node_network_transmit_compressed_total",
            &[("device", "eth0")],
            12.0,
        ),
        (
            "node_network_receive_nohandler_total",
            &[("device", "eth0")],
            13.0,
        ),
        ("node_netstat_TcpExt_SyncookiesRecv", &[], 2.0),
        ("node_netstat_IpExt_InOctets", &[], 6_286_396_970.0),
        ("node_netstat_Tcp_InErrs", &[], 5.0),
        ("node_netstat_Ip6_InOctets", &[], 460.0),
        ("node_netstat_UdpLite6_InErrors", &[], 2.0),
        ("node_sockstat_sockets_used", &[], 229.0),
        ("node_sockstat_TCP_mem_bytes", &[], 4096.0),
        ("node_sockstat_FRAG6_memory", &[], 0.0),
        (
            "node_filesystem_device_error",
            &[
                ("device", "x"),
                ("fstype", "xfs"),
                ("mountpoint", "/gone/away"),
            ],
            1.0,
        ),
        (
            "node_scrape_collector_success",
            &[("collector", "pressure")],
            1.0,
        ),
    ] {
        assert_eq!(
            value(&snapshot, name, labels),
            expected,
            "{name} {labels:?}"
        );
    }
    let all = names(&snapshot);
    for absent in [
        "node_network_receive_bytes_total{device=\"lo\"}",
        "node_disk_io_now{device=\"loop0\"}",
        "node_disk_io_now{device=\"sda1\"}",
        "node_disk_writes_completed_total{device=\"dm-0\"}",
        "node_netstat_TcpExt_X",
        "node_netstat_Tcp_MaxConn",
        "node_vmstat_pgalloc_dma",
    ] {
        assert!(!all.contains_key(absent), "{absent}");
    }
    let info = snapshot
        .samples
        .iter()
        .find(|s| s.key.name == "node_disk_info" && s.key.label("device") == Some("sda"));
    let info = info.unwrap();
    assert_eq!(
        (info.key.label("model"), info.key.label("wwn")),
        (Some("SAMSUNG"), Some(""))
    );
    assert!(
        all.keys()
            .any(|key| key.starts_with("node_disk_device_mapper_info{device=\"dm-0\""))
    );
    assert!(
        all.keys()
            .any(|key| key.starts_with("node_disk_filesystem_info{device=\"dm-0\""))
    );
    assert!(
        snapshot
            .samples
            .iter()
            .all(|sample| sample.key.check().is_ok())
    );
}

#[test]
fn one_collector_fails_alone_and_recovers() {
    let (folder, config) = fixture();
    let mut sampler = Sampler::new(config);
    let whole = sampler.sample(Timestamp(1)).samples.len();
    let path = folder.path().join("proc/loadavg");
    fs::write(&path, "no loads\n").unwrap();
    let part = sampler.sample(Timestamp(2));
    assert_eq!(part.samples.len(), whole - 3);
    assert_eq!(
        value(
            &part,
            "node_scrape_collector_success",
            &[("collector", "loadavg")]
        ),
        0.0
    );
    assert_eq!(
        value(
            &part,
            "node_scrape_collector_success",
            &[("collector", "cpu")]
        ),
        1.0
    );
    fs::write(&path, "1 2 3\n").unwrap();
    assert_eq!(sampler.sample(Timestamp(3)).samples.len(), whole);

    // Nothing at all is there: no panic, no series but the reasons.
    let nowhere = SampleConfig {
        procfs: folder.path().join("a"),
        sysfs: folder.path().join("b"),
        ..SampleConfig::default()
    };
    let nothing = Sampler::new(nowhere).sample(Timestamp(1));
    assert_eq!(
        value(
            &nothing,
            "node_scrape_collector_success",
            &[("collector", "stat")]
        ),
        0.0
    );
}

#[test]
fn a_counter_of_processor_time_never_steps_back() {
    let (folder, config) = fixture();
    let mut sampler = Sampler::new(config);
    sampler.sample(Timestamp(1));
    let idle = |sampler: &mut Sampler, idle: u32| {
        let line = format!("cpu0 0 0 0 {idle} 0 0 0 0 0 0\n");
        fs::write(folder.path().join("proc/stat"), line).unwrap();
        let labels = [("cpu", "0"), ("mode", "idle")];
        value(
            &sampler.sample(Timestamp(2)),
            "node_cpu_seconds_total",
            &labels,
        )
    };
    assert_eq!(idle(&mut sampler, 8_979_000), 89_790.04);
    // So far back means that the processor was taken out and put in again.
    assert_eq!(idle(&mut sampler, 5), 0.05);
}

#[test]
fn devices_that_go_leave_no_series() {
    let (folder, config) = fixture();
    let mut sampler = Sampler::new(config);
    sampler.sample(Timestamp(1));
    let line = "a\nb\n eth1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
    fs::write(folder.path().join("proc/net/dev"), line).unwrap();
    for _ in 0..2 {
        let all = names(&sampler.sample(Timestamp(2)));
        assert!(all.contains_key("node_network_receive_bytes_total{device=\"eth1\"}"));
        assert!(!all.keys().any(|key| key.contains("eth0")));
    }
}

#[test]
fn equals_what_this_host_says() {
    let mut sampler = Sampler::new(SampleConfig::default());
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let total = |text: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
            * 1024.0
    };
    let before = read("/proc/stat");
    let snapshot = sampler.sample(Timestamp(1_700_000_000_000));
    let after = read("/proc/stat");
    assert_eq!(
        value(&snapshot, "node_memory_MemTotal_bytes", &[]),
        total(&read("/proc/meminfo"))
    );
    let keys = read("/proc/meminfo").lines().count();
    let memory = snapshot
        .samples
        .iter()
        .filter(|s| s.key.name.starts_with("node_memory_"));
    assert_eq!(memory.count(), keys);

    let cpu0 = |text: &str| -> Vec<f64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("cpu0 "))
            .unwrap();
        line.split_whitespace()
            .map(|ticks| ticks.parse::<f64>().unwrap() / 100.0)
            .collect()
    };
    for (index, mode) in ["user", "nice", "system"].into_iter().enumerate() {
        let labels = [("cpu", "0"), ("mode", mode)];
        let now = value(&snapshot, "node_cpu_seconds_total", &labels);
        assert!(
            cpu0(&before)[index] <= now && now <= cpu0(&after)[index],
            "{mode}"
        );
    }
    for collector in [
        "cpu",
        "stat",
        "meminfo",
        "vmstat",
        "loadavg",
        "uname",
        "netdev",
        "diskstats",
    ] {
        let labels = [("collector", collector)];
        assert_eq!(
            value(&snapshot, "node_scrape_collector_success", &labels),
            1.0,
            "{collector}"
        );
    }
    if let Some(size) = snapshot.samples.iter().find(|s| {
        s.key.name == "node_filesystem_size_bytes" && s.key.label("mountpoint") == Some("/")
    }) {
        let stat = rustix::fs::statvfs(Path::new("/")).unwrap();
        assert_eq!(size.value, stat.f_blocks as f64 * stat.f_frsize as f64);
    }
    let uname = snapshot
        .samples
        .iter()
        .find(|s| s.key.name == "node_uname_info")
        .unwrap();
    assert_eq!(
        uname.key.label("release"),
        Some(read("/proc/sys/kernel/osrelease").trim())
    );
}
