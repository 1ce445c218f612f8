//! A machine made of files that has everything an agent can read, so that the reference names every metric and is
//! the same wherever it is made.

use std::{path::Path, time::Duration};

use nexus_agent::sample::{SampleConfig, Sampler};
use nexus_proto::{metrics::Snapshot, time::Timestamp};
use nexus_runtime::fault::Outcome;

/// What an agent reads there.
pub(super) fn sample(folder: &Path) -> Outcome<Snapshot> {
    for (path, text) in FILES {
        crate::write(&folder.join(path), text)?;
    }
    let config = SampleConfig {
        procfs: folder.join("proc"),
        sysfs: folder.join("sys"),
        udev: folder.join("udev"),
        localtime: folder.join("localtime"),
        // However busy this machine is.
        mount_timeout: Duration::from_secs(60),
        ..SampleConfig::default()
    };
    Ok(Sampler::new(config).sample(Timestamp(0)))
}

const FILES: &[(&str, &str)] = &[
    (
        "proc/stat",
        "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime 0\nprocesses 0\n\
         procs_running 0\nprocs_blocked 0\nsoftirq 0\n",
    ),
    (
        "proc/meminfo",
        "MemTotal: 0 kB\nMemFree: 0 kB\nMemAvailable: 0 kB\nBuffers: 0 kB\nCached: 0 kB\n\
         SwapCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\nActive(anon): 0 kB\nInactive(anon): 0 kB\n\
         Active(file): 0 kB\nInactive(file): 0 kB\nUnevictable: 0 kB\nMlocked: 0 kB\n\
         SwapTotal: 0 kB\nSwapFree: 0 kB\nZswap: 0 kB\nZswapped: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\n\
         AnonPages: 0 kB\nMapped: 0 kB\nShmem: 0 kB\nKReclaimable: 0 kB\nSlab: 0 kB\n\
         SReclaimable: 0 kB\nSUnreclaim: 0 kB\nKernelStack: 0 kB\nPageTables: 0 kB\n\
         SecPageTables: 0 kB\nNFS_Unstable: 0 kB\nBounce: 0 kB\nWritebackTmp: 0 kB\n\
         CommitLimit: 0 kB\nCommitted_AS: 0 kB\nVmallocTotal: 0 kB\nVmallocUsed: 0 kB\n\
         VmallocChunk: 0 kB\nPercpu: 0 kB\nAnonHugePages: 0 kB\nShmemHugePages: 0 kB\n\
         ShmemPmdMapped: 0 kB\nFileHugePages: 0 kB\nFilePmdMapped: 0 kB\nBalloon: 0 kB\n\
         HugePages_Total: 0\nHugePages_Free: 0\nHugePages_Rsvd: 0\nHugePages_Surp: 0\n\
         Hugepagesize: 0 kB\nHugetlb: 0 kB\nDirectMap4k: 0 kB\nDirectMap2M: 0 kB\nDirectMap1G: 0 kB\n\
         CmaTotal: 0 kB\nCmaFree: 0 kB\nHardwareCorrupted: 0 kB\nUnaccepted: 0 kB\n",
    ),
    (
        "proc/vmstat",
        "pgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\noom_kill 0\n",
    ),
    (
        "proc/pressure/cpu",
        "some avg10=0 avg60=0 avg300=0 total=0\nfull avg10=0 avg60=0 avg300=0 total=0\n",
    ),
    (
        "proc/pressure/io",
        "some avg10=0 avg60=0 avg300=0 total=0\nfull avg10=0 avg60=0 avg300=0 total=0\n",
    ),
    (
        "proc/pressure/memory",
        "some avg10=0 avg60=0 avg300=0 total=0\nfull avg10=0 avg60=0 avg300=0 total=0\n",
    ),
    ("proc/loadavg", "0 0 0 1/1 1\n"),
    ("proc/sys/fs/file-nr", "0 0 0\n"),
    ("proc/1/mounts", "/dev/sda1 / ext4 rw 0 0\n"),
    (
        "proc/diskstats",
        "8 0 sda 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
    ),
    (
        "udev/b8:0",
        "E:ID_ATA=1\nE:ID_ATA_WRITE_CACHE=1\nE:ID_ATA_WRITE_CACHE_ENABLED=1\n\
         E:ID_ATA_ROTATION_RATE_RPM=1\nE:ID_FS_TYPE=ext4\nE:DM_NAME=root\n",
    ),
    (
        "proc/net/dev",
        "head\nhead\neth0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
    ),
    ("sys/class/net/eth0/statistics/rx_nohandler", "0\n"),
    (
        "proc/net/netstat",
        "\
         TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed ListenOverflows ListenDrops TCPTimeouts TCPSynRetrans\n\
         TcpExt: 0 0 0 0 0 0 0\nIpExt: InOctets OutOctets\nIpExt: 0 0\n",
    ),
    (
        "proc/net/snmp",
        "Ip: Forwarding\nIp: 0\nIcmp: InMsgs InErrors OutMsgs\nIcmp: 0 0 0\n\
         Tcp: ActiveOpens PassiveOpens CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts\n\
         Tcp: 0 0 0 0 0 0 0 0\n\
         Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 0 0 0 0 0 0\n\
         UdpLite: InErrors\nUdpLite: 0\n",
    ),
    (
        "proc/net/snmp6",
        "Ip6InOctets 0\nIp6OutOctets 0\nIcmp6InMsgs 0\nIcmp6InErrors 0\nIcmp6OutMsgs 0\n\
         Udp6InDatagrams 0\nUdp6NoPorts 0\nUdp6InErrors 0\nUdp6OutDatagrams 0\nUdp6RcvbufErrors 0\n\
         Udp6SndbufErrors 0\nUdpLite6InErrors 0\n",
    ),
    (
        "proc/net/sockstat",
        "sockets: used 0\nTCP: inuse 0 orphan 0 tw 0 alloc 0 mem 0\nUDP: inuse 0 mem 0\n\
         UDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n",
    ),
    (
        "proc/net/sockstat6",
        "TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "tsc\n",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc\n",
    ),
    (
        "sys/devices/system/cpu/cpu0/topology/physical_package_id",
        "0\n",
    ),
    ("sys/devices/system/cpu/cpu0/topology/core_id", "0\n"),
    (
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        "0\n",
    ),
    (
        "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count",
        "0\n",
    ),
];
