//! What a made-up host reports: this host's own series as a real sampler shows them, with values that go
//! their own way on every node, series that come and go, and counters that begin again.

pub mod record;

use std::sync::Arc;

use nexus_agent::{
    inventory::{Inventory, InventoryConfig},
    sample::{SampleConfig, Sampler},
};
use nexus_proto::{
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    record::{Cell, Row, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between the two looks at this host that tell what moves, and how fast.
const BETWEEN: Duration = Duration::from_secs(2);
/// How long this host's inventory may take.
const INVENTORY: Duration = Duration::from_secs(30);
/// One in so many reports, a series ends and another begins (a container's device, say).
const CHURN: u32 = 200;
/// One in so many reports, the host was booted anew.
const REBOOT: u32 = 20_000;
/// A value that stood still between the looks moves now and then: one in so many reports.
const STILL: u32 = 100;

/// What all made-up hosts have in common.
#[derive(Debug)]
pub struct Shape {
    series: Vec<Template>,
    sections: Vec<Section>,
}

#[derive(Debug)]
struct Template {
    key: Arc<SeriesKey>,
    kind: SeriesType,
    value: f64,
    /// Change a second.
    rate: f64,
    /// Values are multiples of it.
    step: f64,
}

impl Shape {
    /// Looks at this host. A report will have `series` series, the packages' section `packages` rows.
    pub async fn of_this_host(series: usize, packages: usize) -> Self {
        let clock = Clock::system();
        let mut sampler = Sampler::new(SampleConfig::default());
        let first = sampler.sample(clock.now());
        sleep(BETWEEN).await;
        let second = sampler.sample(clock.now());
        Self {
            series: templates(&first, &second, series),
            sections: sections(packages).await,
        }
    }

    /// How many series a report has.
    #[must_use]
    pub fn series(&self) -> usize {
        self.series.len()
    }

    /// Rows of all sections.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.sections.iter().map(|section| section.rows.len()).sum()
    }
}

/// The first `count` series; when this host has fewer, its own again with another label.
fn templates(first: &Snapshot, second: &Snapshot, count: usize) -> Vec<Template> {
    let before: std::collections::HashMap<&SeriesKey, f64> = first
        .samples
        .iter()
        .map(|sample| (&*sample.key, sample.value))
        .collect();
    let rounds = 0..count.div_ceil(second.samples.len().max(1));
    let all = rounds.flat_map(|round| second.samples.iter().map(move |sample| (round, sample)));
    all.take(count)
        .map(|(round, sample)| {
            let before = before.get(&*sample.key).copied().unwrap_or(sample.value);
            let key = if round == 0 {
                Arc::clone(&sample.key)
            } else {
                Arc::new(labelled(&sample.key, "copy", &round.to_string()))
            };
            Template {
                key,
                kind: sample.kind,
                value: sample.value,
                rate: (sample.value - before) / BETWEEN.as_secs_f64(),
                step: step(sample.value).min(step(before)),
            }
        })
        .collect()
}

fn labelled(key: &SeriesKey, name: &str, value: &str) -> SeriesKey {
    let others = key.labels.iter().filter(|(label, _)| label != name);
    let mut labels: Vec<(&str, &str)> = others.map(|(l, v)| (l.as_str(), v.as_str())).collect();
    labels.push((name, value));
    SeriesKey::new(&key.name, &labels)
}

/// What a value is a multiple of: pages, whole numbers, hundredths, or less.
fn step(value: f64) -> f64 {
    [4096.0, 1.0, 0.01]
        .into_iter()
        .find(|step| {
            let count = value / step;
            (count - count.round()).abs() < 1e-6 && (count >= 1.0 || *step <= 1.0)
        })
        .unwrap_or(1e-6)
}

/// This host's inventory, its packages cut or repeated to so many.
async fn sections(packages: usize) -> Vec<Section> {
    let mut inventory = Inventory::new(&InventoryConfig::default(), &Default::default());
    let mut sections: Vec<Section> = Vec::new();
    let until = Instant::now() + INVENTORY;
    while sections.len() < nexus_proto::inventory::SCHEMA.len() && Instant::now() < until {
        for section in inventory.poll() {
            sections.retain(|known| known.kind != section.kind);
            sections.push(section);
        }
        sleep(Duration::from_millis(100)).await;
    }
    sections.retain(|section| section.error.is_none());
    for section in &mut sections {
        if section.kind == "packages" {
            let rows = section.rows.len().max(1);
            let repeated = (0..packages.div_ceil(rows))
                .flat_map(|round| section.rows.iter().map(move |row| again(row, round)));
            *section = Section::new("packages", repeated.take(packages).collect());
        }
    }
    sections
}

/// A package under another name.
fn again(row: &Row, round: usize) -> Row {
    let mut row = row.clone();
    if let (true, Some(Cell::Text(name))) = (round > 0, row.0.first_mut()) {
        name.push_str(&format!("-{round}"));
    }
    row
}

/// One made-up host.
#[derive(Debug)]
pub struct Host {
    shape: Arc<Shape>,
    chance: StdRng,
    /// Values and keys in the shape's order.
    series: Vec<(Arc<SeriesKey>, f64)>,
    /// How much busier than the original it is.
    factor: f64,
    last: Option<Timestamp>,
    came: u32,
}

impl Host {
    /// The same seed makes the same host.
    #[must_use]
    pub fn new(shape: &Arc<Shape>, seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let factor = chance.random_range(0.3..3.0);
        let mut vary = |template: &Template| {
            let moves = template.rate != 0.0 || template.kind == SeriesType::Counter;
            let by = if moves {
                chance.random_range(0.5..1.5)
            } else {
                1.0
            };
            round(template.value * by, template.step)
        };
        let series = shape
            .series
            .iter()
            .map(|template| (Arc::clone(&template.key), vary(template)))
            .collect();
        Self {
            shape: Arc::clone(shape),
            chance,
            series,
            factor,
            last: None,
            came: 0,
        }
    }

    /// What it says now.
    pub fn report(&mut self, now: Timestamp, interval: Duration) -> Snapshot {
        let span = self
            .last
            .map_or(interval, |last| now.since(last))
            .as_secs_f64();
        self.last = Some(now);
        let booted = self.one_in(REBOOT);
        for (template, (_, value)) in self.shape.series.iter().zip(&mut self.series) {
            let moved = match template.kind {
                _ if template.key.name == "node_time_seconds" => seconds(now),
                SeriesType::Counter if booted => 0.0,
                SeriesType::Counter if template.rate > 0.0 => {
                    let by =
                        template.rate * span * self.factor * self.chance.random_range(0.0..2.0);
                    *value + by
                }
                _ if template.rate != 0.0 => *value * self.chance.random_range(0.98..1.02),
                SeriesType::Counter if self.chance.random_ratio(1, STILL) => *value + template.step,
                _ => *value,
            };
            *value = round(moved, template.step);
        }
        if self.one_in(CHURN) {
            self.replace_one();
        }
        let samples = self.shape.series.iter().zip(&self.series);
        let samples = samples.map(|(template, (key, value))| Sample {
            key: Arc::clone(key),
            kind: template.kind,
            value: *value,
        });
        Snapshot {
            interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
            samples: samples.collect(),
        }
    }

    /// Its inventory as it joins.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.shape.sections
    }

    /// One package in another version.
    pub fn upgrade(&mut self) -> Option<Section> {
        let sections = &self.shape.sections;
        let packages = sections.iter().find(|section| section.kind == "packages")?;
        let mut rows = packages.rows.clone();
        let chosen = self.chance.random_range(0..rows.len().max(1));
        if let Some(Cell::Text(version)) = rows.get_mut(chosen).and_then(|row| row.0.get_mut(1)) {
            version.push_str(&format!("+{}", self.chance.random_range(1..10)));
        }
        Some(Section::new("packages", rows))
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.chance.random_ratio(1, many)
    }

    /// A series with labels ends, one with another label begins.
    fn replace_one(&mut self) {
        self.came += 1;
        let (came, all) = (self.came.to_string(), self.series.len().max(1));
        let chosen = self.chance.random_range(0..all);
        if let Some((key, value)) = self.series.get_mut(chosen)
            && !key.labels.is_empty()
        {
            *key = Arc::new(labelled(key, "replica", &came));
            *value = 0.0;
        }
    }
}

fn round(value: f64, step: f64) -> f64 {
    let count = (value / step).round();
    // Multiplying by a hundredth would not give the double a decimal is written as.
    if step < 1.0 {
        count / (1.0 / step).round()
    } else {
        count * step
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since the epoch fit in 2^52"
)]
fn seconds(now: Timestamp) -> f64 {
    now.as_ms() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_are_alike_but_not_the_same_and_a_seed_repeats_them() {
        let shape = Arc::new(Shape::of_this_host(400, 300).await);
        assert_eq!(shape.series(), 400);
        let run = |seed| {
            let mut host = Host::new(&shape, seed);
            let times = (1..=50).map(|n| Timestamp(1_700_000_000_000 + n * 10_000));
            let interval = Duration::from_secs(10);
            times
                .map(|now| host.report(now, interval))
                .collect::<Vec<_>>()
        };
        let (one, other) = (run(1), run(2));
        assert_eq!(one, run(1));
        assert_ne!(one, other);
        for pair in one.windows(2) {
            let changed = pair[0].samples.iter().zip(&pair[1].samples);
            let changed = changed
                .filter(|(before, after)| before.value != after.value)
                .count();
            assert!(changed > 10 && changed < 300, "{changed}");
        }
        let mut host = Host::new(&shape, 3);
        let packages = |sections: &[Section]| {
            let found = sections.iter().find(|section| section.kind == "packages");
            found.cloned().unwrap()
        };
        let joined = packages(host.sections());
        assert_eq!(joined.rows.len(), 300);
        assert_ne!(joined.hash, host.upgrade().unwrap().hash);
    }

    #[test]
    fn values_keep_to_their_step() {
        assert_eq!(step(8192.0), 4096.0);
        assert_eq!(step(7.0), 1.0);
        assert_eq!(step(0.0), 1.0);
        assert_eq!(step(12.34), 0.01);
        assert_eq!(round(12.3456, 0.01), 12.35);
        assert_eq!(round(9000.0, 4096.0), 8192.0);
    }
}
