//! Snapshots to reports.

use std::{collections::HashMap, sync::Arc};

use crate::{agent::v1 as wire, limits};

use super::{Sample, SeriesKey, SeriesType, Snapshot, scale::Scale};

/// Reports from one key frame to the next: an hour at one report in ten seconds.
const KEY_FRAME_EVERY: u32 = 360;

/// Encodes one stream of reports.
#[derive(Debug, Default)]
pub struct Encoder {
    ids: HashMap<Arc<SeriesKey>, u32>,
    /// By id; ids of retired series are used again.
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// Ids of the previous snapshot's samples: snapshots of one host mostly have the same series in
    /// the same order, which spares hashing every key every time.
    order: Vec<u32>,
    /// Reports until the next key frame.
    until_key_frame: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    key: Arc<SeriesKey>,
    kind: SeriesType,
    scale: Scale,
    mantissa: i64,
    /// The value as bits while it is not the mantissa's.
    raw: Option<u64>,
    /// The snapshot that had it last.
    generation: u32,
}

impl Encoder {
    /// An encoder whose first report is a key frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next report a key frame.
    pub fn restart(&mut self) {
        self.until_key_frame = 0;
    }

    /// The report that follows the ones before with this snapshot. A series that stands in the
    /// snapshot twice counts once, with its first value, and what exceeds [`limits::SERIES`] is left
    /// out: who makes snapshots keeps the limits.
    pub fn encode(&mut self, snapshot: &Snapshot) -> wire::MetricReport {
        let mut report = wire::MetricReport {
            interval_ms: snapshot.interval_ms,
            key_frame: self.until_key_frame == 0,
            ..wire::MetricReport::default()
        };
        if report.key_frame {
            self.forget();
            self.until_key_frame = KEY_FRAME_EVERY;
        }
        self.until_key_frame -= 1;
        self.generation = self.generation.wrapping_add(1);

        let order = self.find_slots(snapshot);
        self.retire_unseen(&mut report);
        let mut changes = Changes::default();
        let mut fresh: Vec<usize> = Vec::new();
        let mut final_order = Vec::with_capacity(snapshot.samples.len());
        for (index, (sample, id)) in snapshot.samples.iter().zip(order).enumerate() {
            match id {
                Found::Id(id) => {
                    self.update(id, sample, &mut report, &mut changes);
                    final_order.push(id);
                }
                Found::New => {
                    fresh.push(index);
                    final_order.push(u32::MAX);
                }
                Found::Again => final_order.push(u32::MAX),
            }
        }
        for index in fresh {
            let Some(sample) = snapshot.samples.get(index) else {
                continue;
            };
            if let Some(id) = self.define(sample, &mut report, &mut changes)
                && let Some(place) = final_order.get_mut(index)
            {
                *place = id;
            }
        }
        self.order = final_order;
        changes.write(&mut report);
        report
    }

    fn forget(&mut self) {
        self.ids.clear();
        self.slots.clear();
        self.free.clear();
        self.order.clear();
    }

    fn find_slots(&mut self, snapshot: &Snapshot) -> Vec<Found> {
        let mut found = Vec::with_capacity(snapshot.samples.len());
        for (index, sample) in snapshot.samples.iter().enumerate() {
            let guess = self.order.get(index).copied();
            let id = guess
                .filter(|id| {
                    self.slot(*id)
                        .is_some_and(|s| Arc::ptr_eq(&s.key, &sample.key))
                })
                .or_else(|| self.ids.get(&sample.key).copied());
            let generation = self.generation;
            found.push(
                match id.and_then(|id| self.slot_mut(id).map(|slot| (id, slot))) {
                    Some((_, slot)) if slot.generation == generation => Found::Again,
                    // A series that changed its type is another one.
                    Some((_, slot)) if slot.kind != sample.kind => Found::New,
                    Some((id, slot)) => {
                        slot.generation = generation;
                        Found::Id(id)
                    }
                    None => Found::New,
                },
            );
        }
        found
    }

    fn retire_unseen(&mut self, report: &mut wire::MetricReport) {
        let generation = self.generation;
        for (id, place) in (0_u32..).zip(&mut self.slots) {
            if place
                .as_ref()
                .is_some_and(|slot| slot.generation != generation)
                && let Some(slot) = place.take()
            {
                self.ids.remove(&slot.key);
                self.free.push(id);
                report.retire.push(id);
            }
        }
    }

    fn update(
        &mut self,
        id: u32,
        sample: &Sample,
        report: &mut wire::MetricReport,
        changes: &mut Changes,
    ) {
        let Some(slot) = self.slot_mut(id) else {
            return;
        };
        let bits = sample.value.to_bits();
        let old = slot
            .raw
            .unwrap_or_else(|| slot.scale.value(slot.mantissa).to_bits());
        if bits == old {
            return;
        }
        match slot.scale.fit(sample.value) {
            Some((scale, mantissa)) => {
                if scale != slot.scale {
                    let mut def = wire::SeriesDef {
                        id,
                        ..wire::SeriesDef::default()
                    };
                    scale.write(&mut def);
                    report.define.push(def);
                    slot.scale = scale;
                    slot.mantissa = 0;
                }
                changes
                    .deltas
                    .push((id, mantissa.wrapping_sub(slot.mantissa)));
                slot.mantissa = mantissa;
                slot.raw = None;
            }
            None => {
                changes.raws.push((id, sample.value));
                slot.raw = Some(bits);
            }
        }
    }

    fn define(
        &mut self,
        sample: &Sample,
        report: &mut wire::MetricReport,
        changes: &mut Changes,
    ) -> Option<u32> {
        if self.ids.contains_key(&sample.key) {
            return None;
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.slots.len() < limits::SERIES => {
                self.slots.push(None);
                u32::try_from(self.slots.len()).ok()?.checked_sub(1)?
            }
            None => return None,
        };
        let (scale, mantissa) = Scale::default().fit(sample.value).unwrap_or_default();
        let exact = scale.value(mantissa).to_bits() == sample.value.to_bits();
        if !exact {
            changes.raws.push((id, sample.value));
        } else if mantissa != 0 {
            changes.deltas.push((id, mantissa));
        }
        report
            .define
            .push(define(id, &sample.key, sample.kind, scale));
        self.ids.insert(Arc::clone(&sample.key), id);
        *self.slots.get_mut(usize::try_from(id).ok()?)? = Some(Slot {
            key: Arc::clone(&sample.key),
            kind: sample.kind,
            scale,
            mantissa,
            raw: (!exact).then(|| sample.value.to_bits()),
            generation: self.generation,
        });
        Some(id)
    }

    fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get(usize::try_from(id).ok()?)?.as_ref()
    }

    fn slot_mut(&mut self, id: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(id).ok()?)?.as_mut()
    }
}

enum Found {
    Id(u32),
    New,
    Again,
}

pub(super) fn define(id: u32, key: &SeriesKey, kind: SeriesType, scale: Scale) -> wire::SeriesDef {
    let labels = key.labels.iter();
    let mut def = wire::SeriesDef {
        id,
        name: key.name.clone(),
        labels: labels
            .flat_map(|(name, value)| [name.clone(), value.clone()])
            .collect(),
        r#type: kind.to_wire().into(),
        ..wire::SeriesDef::default()
    };
    scale.write(&mut def);
    def
}

#[derive(Default)]
pub(super) struct Changes {
    pub(super) deltas: Vec<(u32, i64)>,
    pub(super) raws: Vec<(u32, f64)>,
}

impl Changes {
    pub(super) fn write(mut self, report: &mut wire::MetricReport) {
        self.deltas.sort_unstable_by_key(|(id, _)| *id);
        self.raws.sort_unstable_by_key(|(id, _)| *id);
        report.ids = differences(self.deltas.iter().map(|(id, _)| *id));
        report.deltas = self.deltas.into_iter().map(|(_, delta)| delta).collect();
        report.raw_ids = differences(self.raws.iter().map(|(id, _)| *id));
        report.raw = self.raws.into_iter().map(|(_, value)| value).collect();
    }
}

fn differences(ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut before = 0;
    ids.map(|id| std::mem::replace(&mut before, id).abs_diff(id))
        .collect()
}
