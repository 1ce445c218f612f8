//! `cpu`: time spent by each processor in each mode, and how often heat throttled it.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    SampleError,
    kernel::Totals,
    sink::Sink,
    source::{Files, Sources, number},
};

/// The kernel counts in hundredths of a second for user space on every architecture (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;
/// In the order of `/proc/stat`; the last two are shown as another metric.
const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];
const IDLE: usize = 3;
/// Idle time that jumps back this far, in ticks, means that the processor was replugged.
const JUMP_BACK: f64 = 3.0 * TICKS_PER_SECOND;

pub(super) fn collect(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    sources.totals = None;
    let path = sources.proc("stat");
    let text = sources.files.read(&path)?;
    let mut processors = 0;
    let mut totals = Totals::default();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(key) = fields.next() else { continue };
        let Some(cpu) = key.strip_prefix("cpu") else {
            totals.note(key, fields.next());
            continue;
        };
        let Ok(cpu) = cpu.parse::<usize>() else {
            continue;
        };
        if cpu >= 65_536 {
            continue;
        }
        // A processor that is offline has no line, but its place: node_exporter shows zeros there.
        processors = processors.max(cpu + 1);
        if sources.ticks.len() < processors {
            sources.ticks.resize(processors, [0.0; 10]);
        }
        let Some(kept) = sources.ticks.get_mut(cpu) else {
            continue;
        };
        let mut ticks = [0.0; 10];
        for (place, field) in ticks.iter_mut().zip(fields) {
            *place = number(field).unwrap_or(0.0);
        }
        keep_rising(kept, &ticks);
    }
    sources.ticks.truncate(processors);
    sources.totals = Some(totals);

    let mut buffer = String::new();
    for (cpu, ticks) in sources.ticks.iter().enumerate() {
        buffer.clear();
        push_number(&mut buffer, cpu);
        let cpu = buffer.as_str();
        let seconds = ticks.map(|ticks| ticks / TICKS_PER_SECOND);
        for (mode, value) in MODES.iter().zip(seconds) {
            sink.counter(
                &["node_cpu_seconds_total"],
                &[("cpu", cpu), ("mode", mode)],
                value,
            );
        }
        let [.., guest, guest_nice] = seconds;
        for (mode, value) in [("user", guest), ("nice", guest_nice)] {
            sink.counter(
                &["node_cpu_guest_seconds_total"],
                &[("cpu", cpu), ("mode", mode)],
                value,
            );
        }
    }
    let folder = sources.sys("devices/system/cpu");
    sources.throttles.collect(&folder, &mut sources.files, sink);
    Ok(())
}

/// Some of the kernel's times step back a little at times, which a counter must not.
fn keep_rising(kept: &mut [f64; 10], new: &[f64; 10]) {
    if let (Some(before), Some(after)) = (kept.get(IDLE), new.get(IDLE))
        && before - after >= JUMP_BACK
    {
        *kept = [0.0; 10];
    }
    for (kept, new) in kept.iter_mut().zip(new) {
        *kept = kept.max(*new);
    }
}

fn push_number(buffer: &mut String, number: usize) {
    use std::fmt::Write as _;
    // Writing to a String cannot fail.
    write!(buffer, "{number}").ok();
}

/// Which processors count throttlings, one of each core and of each package: their place in the
/// machine is looked up now and then, their counts every time.
#[derive(Debug, Default)]
pub(super) struct Throttles {
    cores: Vec<Counter>,
    packages: Vec<Counter>,
    /// Samplings until processors are looked for again.
    wait: u32,
}

#[derive(Debug)]
struct Counter {
    file: std::path::PathBuf,
    package: String,
    core: String,
}

impl Throttles {
    fn collect(&mut self, folder: &Path, files: &mut Files, sink: &mut Sink) {
        if self.wait == 0 {
            self.find(folder, files);
            self.wait = 60;
        }
        self.wait -= 1;
        for counter in &self.packages {
            if let Some(count) = read_number(files, &counter.file) {
                let labels = [("package", counter.package.as_str())];
                sink.counter(&["node_cpu_package_throttles_total"], &labels, count);
            }
        }
        for counter in &self.cores {
            if let Some(count) = read_number(files, &counter.file) {
                let labels = [
                    ("core", counter.core.as_str()),
                    ("package", counter.package.as_str()),
                ];
                sink.counter(&["node_cpu_core_throttles_total"], &labels, count);
            }
        }
    }

    fn find(&mut self, folder: &Path, files: &mut Files) {
        self.cores.clear();
        self.packages.clear();
        let (mut cores, mut packages) = (BTreeSet::new(), BTreeSet::new());
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut processors: Vec<_> = entries
            .filter_map(|entry| {
                let number = entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("cpu")?
                    .parse::<u32>()
                    .ok()?;
                Some((number, entry.path()))
            })
            .filter(|(_, path)| path.join("thermal_throttle").is_dir())
            .collect();
        processors.sort_unstable();
        for (_, path) in processors {
            let mut id = |name| read_number(files, &path.join("topology").join(name));
            let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) else {
                continue;
            };
            let (package, core) = (package.to_string(), core.to_string());
            let counter = |file: &str| Counter {
                file: path.join("thermal_throttle").join(file),
                package: package.clone(),
                core: core.clone(),
            };
            let (core_file, package_file) = (
                counter("core_throttle_count"),
                counter("package_throttle_count"),
            );
            if core_file.file.exists() && cores.insert((package.clone(), core.clone())) {
                self.cores.push(core_file);
            }
            if package_file.file.exists() && packages.insert(package.clone()) {
                self.packages.push(package_file);
            }
        }
    }
}

fn read_number(files: &mut Files, path: &Path) -> Option<f64> {
    number(files.read(path).ok()?.trim())
}
