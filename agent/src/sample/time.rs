//! `time`: the clock, its zone and its source.

use std::fs;

use super::{SampleError, sink::Sink, source::Sources};

pub(super) fn collect(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact for the next 285,000 years"
    )]
    let seconds = sources.now.as_ms() as f64 / 1000.0;
    sink.gauge(&["node_time_seconds"], &[], seconds);
    sources.zone.refresh(&sources.config.localtime);
    let (name, offset) = sources.zone.at(sources.now.as_ms().div_euclid(1000));
    let labels = [("time_zone", name.as_str())];
    sink.gauge(
        &["node_time_zone_offset_seconds"],
        &labels,
        f64::from(offset),
    );

    let folder = sources.sys("devices/system/clocksource");
    let mut devices: Vec<_> = fs::read_dir(&folder)
        .map_err(|source| SampleError::Read {
            path: folder,
            source,
        })?
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"clocksource")
        })
        .map(|entry| entry.path())
        .collect();
    devices.sort_unstable();
    for (number, device) in devices.iter().enumerate() {
        let number = number.to_string();
        let available = sources.files.read(&device.join("available_clocksource"))?;
        for source in available.split_ascii_whitespace() {
            let labels = [("clocksource", source), ("device", number.as_str())];
            sink.gauge(&["node_time_clocksource_available_info"], &labels, 1.0);
        }
        let current = sources
            .files
            .read(&device.join("current_clocksource"))?
            .trim_ascii();
        let labels = [("clocksource", current), ("device", number.as_str())];
        sink.gauge(&["node_time_clocksource_current_info"], &labels, 1.0);
    }
    Ok(())
}
