//! Reports to snapshots.

use std::{collections::HashSet, sync::Arc};

use crate::{agent::v1 as wire, limits};

use super::{
    KeyPool, MetricError, Sample, SeriesKey, SeriesType, Snapshot,
    encode::{Changes, define},
    scale::Scale,
};

/// Decodes one stream of reports, in the order they were encoded.
#[derive(Debug, Default)]
pub struct Decoder {
    /// By id.
    slots: Vec<Option<Slot>>,
    keys: HashSet<Arc<SeriesKey>>,
    /// Bytes of the keys.
    key_bytes: usize,
    pool: Option<KeyPool>,
    /// Whether the state is that of a whole stream so far.
    in_step: bool,
    /// Whether the newest report needs none before it.
    at_key_frame: bool,
}

#[derive(Debug)]
struct Slot {
    key: Arc<SeriesKey>,
    kind: SeriesType,
    scale: Scale,
    mantissa: i64,
    value: f64,
}

impl Decoder {
    /// A decoder that waits for a key frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with its keys from a pool that many decoders share.
    #[must_use]
    pub fn pooled(pool: KeyPool) -> Self {
        Self {
            pool: Some(pool),
            ..Self::default()
        }
    }

    /// How many series the state holds: as many samples as a report that changes nothing decodes to.
    #[must_use]
    pub fn series(&self) -> usize {
        self.keys.len()
    }

    /// Whether the newest report was a key frame.
    #[must_use]
    pub fn at_key_frame(&self) -> bool {
        self.at_key_frame
    }

    /// A key frame after which reports decode as they do after all that came so far.
    #[must_use]
    pub fn key_frame(&self, interval_ms: u32) -> wire::MetricReport {
        let mut report = wire::MetricReport {
            interval_ms,
            key_frame: true,
            ..wire::MetricReport::default()
        };
        let mut changes = Changes::default();
        for (id, slot) in (0_u32..).zip(&self.slots) {
            let Some(slot) = slot else { continue };
            report
                .define
                .push(define(id, &slot.key, slot.kind, slot.scale));
            if slot.mantissa != 0 {
                changes.deltas.push((id, slot.mantissa));
            }
            if slot.scale.value(slot.mantissa).to_bits() != slot.value.to_bits() {
                changes.raws.push((id, slot.value));
            }
        }
        changes.write(&mut report);
        report
    }

    /// The snapshot a report stands for. After an error only a key frame is taken, for the state may
    /// lack what the refused report said.
    pub fn decode(&mut self, report: &wire::MetricReport) -> Result<Snapshot, MetricError> {
        self.take(report)?;
        Ok(self.snapshot(report.interval_ms))
    }

    /// What the reports so far come to.
    #[must_use]
    pub fn snapshot(&self, interval_ms: u32) -> Snapshot {
        // They are kept as the node's newest values.
        let mut samples = Vec::with_capacity(self.keys.len());
        samples.extend(self.slots.iter().flatten().map(Slot::sample));
        Snapshot {
            interval_ms,
            samples,
        }
    }

    /// The same without a copy of it.
    pub fn each(&self) -> impl Iterator<Item = (&Arc<SeriesKey>, SeriesType, f64)> + Clone {
        let slots = self.slots.iter().flatten();
        slots.map(|slot| (&slot.key, slot.kind, slot.value))
    }

    /// Takes a report in, as [`Decoder::decode`] does, without making its snapshot.
    pub fn take(&mut self, report: &wire::MetricReport) -> Result<(), MetricError> {
        let before = std::mem::replace(&mut self.in_step, false);
        if report.key_frame {
            self.slots.clear();
            self.keys.clear();
            self.key_bytes = 0;
        } else if !before {
            return Err(MetricError::NoKeyFrame);
        }
        for id in &report.retire {
            self.retire(*id)?;
        }
        for def in &report.define {
            self.define(def)?;
        }
        check_even("changed series", report.ids.len(), report.deltas.len())?;
        each_id(&report.ids, &report.deltas, |id, delta| {
            let slot = self.slot_mut(id)?;
            slot.mantissa = slot.mantissa.wrapping_add(*delta);
            slot.value = slot.scale.value(slot.mantissa);
            Ok(())
        })?;
        check_even("raw series", report.raw_ids.len(), report.raw.len())?;
        each_id(&report.raw_ids, &report.raw, |id, value| {
            self.slot_mut(id)?.value = *value;
            Ok(())
        })?;
        if report.key_frame {
            // Most series stay as they are, and a collector has a decoder for every node.
            self.slots.shrink_to_fit();
        }
        self.in_step = true;
        self.at_key_frame = report.key_frame;
        Ok(())
    }

    fn retire(&mut self, id: u32) -> Result<(), MetricError> {
        let place = usize::try_from(id)
            .ok()
            .and_then(|id| self.slots.get_mut(id));
        let slot = place
            .and_then(Option::take)
            .ok_or(MetricError::Undefined(id))?;
        self.keys.remove(&slot.key);
        self.key_bytes = self.key_bytes.saturating_sub(slot.key.bytes());
        Ok(())
    }

    fn define(&mut self, def: &wire::SeriesDef) -> Result<(), MetricError> {
        let scale = Scale::from_wire(def)?;
        if def.name.is_empty() {
            let slot = self.slot_mut(def.id)?;
            (slot.scale, slot.mantissa) = (scale, 0);
            return Ok(());
        }
        let index = usize::try_from(def.id)
            .ok()
            .filter(|index| *index < limits::SERIES)
            .ok_or(MetricError::TooMany { id: def.id })?;
        let (labels, rest) = def.labels.as_chunks::<2>();
        check_even("label names", labels.len() + rest.len(), labels.len())?;
        let key = SeriesKey {
            name: def.name.clone(),
            labels: labels
                .iter()
                .map(|[name, value]| (name.clone(), value.clone()))
                .collect(),
        };
        key.check()?;
        let bytes = self.key_bytes.saturating_add(key.bytes());
        if bytes > limits::STREAM_KEY_BYTES {
            return Err(MetricError::KeysTooLong(bytes));
        }
        let key = match &self.pool {
            Some(pool) => pool.share(key),
            None => Arc::new(key),
        };
        if !self.keys.insert(Arc::clone(&key)) {
            return Err(MetricError::Duplicate(key.to_string()));
        }
        self.key_bytes = bytes;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let place = self
            .slots
            .get_mut(index)
            .ok_or(MetricError::TooMany { id: def.id })?;
        if place.is_some() {
            return Err(MetricError::Redefined(def.id));
        }
        *place = Some(Slot {
            key,
            kind: SeriesType::from_wire(def.r#type)?,
            scale,
            mantissa: 0,
            value: 0.0,
        });
        Ok(())
    }

    fn slot_mut(&mut self, id: u32) -> Result<&mut Slot, MetricError> {
        let place = usize::try_from(id)
            .ok()
            .and_then(|id| self.slots.get_mut(id));
        place
            .and_then(Option::as_mut)
            .ok_or(MetricError::Undefined(id))
    }
}

impl Slot {
    fn sample(&self) -> Sample {
        Sample {
            key: Arc::clone(&self.key),
            kind: self.kind,
            value: self.value,
        }
    }
}

fn check_even(what: &'static str, ids: usize, values: usize) -> Result<(), MetricError> {
    if ids == values {
        Ok(())
    } else {
        Err(MetricError::Uneven { what, ids, values })
    }
}

/// Undoes the differences of a list of rising ids.
fn each_id<T>(
    differences: &[u32],
    values: &[T],
    mut apply: impl FnMut(u32, &T) -> Result<(), MetricError>,
) -> Result<(), MetricError> {
    let mut before = None;
    for (difference, value) in differences.iter().zip(values) {
        let id = match before {
            None => *difference,
            Some(id) if *difference == 0 => return Err(MetricError::Unordered(id)),
            Some(id) => id
                .checked_add(*difference)
                .ok_or(MetricError::Unordered(id))?,
        };
        apply(id, value)?;
        before = Some(id);
    }
    Ok(())
}
