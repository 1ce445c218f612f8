//! Collects samples, and gives each series the same key in every snapshot.

use std::{mem, sync::Arc};

use nexus_proto::{
    limits,
    metrics::{KeyPool, Sample, SeriesKey, SeriesType},
};

use super::SampleError;

/// Bytes of all keys of a snapshot: a key frame defines them all in one record.
const KEY_BYTES: usize = limits::RECORD_BYTES / 2;
/// What the wire adds to a key, at most.
const KEY_OVERHEAD: usize = 32;

#[derive(Debug)]
pub(super) struct Sink {
    samples: Vec<Sample>,
    /// Keys of the previous snapshot, by group (collector), in the order they were put. A host mostly
    /// shows the same series in the same order, so the next key is found by looking at the next one.
    groups: Vec<Vec<Arc<SeriesKey>>>,
    /// Shared with whoever reads the snapshots back.
    pub(super) keys: KeyPool,
    group: usize,
    /// Where the group's samples begin.
    begin: usize,
    /// The next key to expect in the group.
    cursor: usize,
    name: String,
    key_bytes: usize,
    refused: usize,
}

impl Sink {
    pub(super) fn new(groups: usize) -> Self {
        Self {
            samples: Vec::new(),
            groups: vec![Vec::new(); groups],
            keys: KeyPool::new(),
            group: 0,
            begin: 0,
            cursor: 0,
            name: String::new(),
            key_bytes: 0,
            refused: 0,
        }
    }

    /// What is put from here on belongs to this group.
    pub(super) fn begin(&mut self, group: usize) {
        self.group = group;
        self.begin = self.samples.len();
        self.cursor = 0;
    }

    /// Ends the group: an error if series were left out.
    pub(super) fn end(&mut self) -> Result<(), SampleError> {
        if let Some(keys) = self.groups.get_mut(self.group) {
            keys.clear();
            let samples = self.samples.iter().skip(self.begin);
            keys.extend(samples.map(|sample| Arc::clone(&sample.key)));
        }
        match mem::take(&mut self.refused) {
            0 => Ok(()),
            refused => Err(SampleError::Refused(refused)),
        }
    }

    /// All samples since the last time.
    pub(super) fn take(&mut self) -> Vec<Sample> {
        self.key_bytes = 0;
        let capacity = self.samples.len() + 8;
        mem::replace(&mut self.samples, Vec::with_capacity(capacity))
    }

    /// The name is given in pieces, the labels sorted by name.
    pub(super) fn counter(&mut self, name: &[&str], labels: &[(&str, &str)], value: f64) {
        self.put(name, labels, SeriesType::Counter, value);
    }

    pub(super) fn gauge(&mut self, name: &[&str], labels: &[(&str, &str)], value: f64) {
        self.put(name, labels, SeriesType::Gauge, value);
    }

    pub(super) fn untyped(&mut self, name: &[&str], labels: &[(&str, &str)], value: f64) {
        self.put(name, labels, SeriesType::Untyped, value);
    }

    fn put(&mut self, name: &[&str], labels: &[(&str, &str)], kind: SeriesType, value: f64) {
        debug_assert!(labels.is_sorted(), "labels are given sorted");
        self.name.clear();
        self.name.extend(name.iter().copied());
        let Some(key) = self.key(labels) else {
            self.refused += 1;
            return;
        };
        self.key_bytes += key.bytes() + KEY_OVERHEAD;
        if self.key_bytes > KEY_BYTES || self.samples.len() >= limits::SERIES {
            self.refused += 1;
            return;
        }
        self.samples.push(Sample { key, kind, value });
    }

    fn key(&mut self, labels: &[(&str, &str)]) -> Option<Arc<SeriesKey>> {
        let keys = self.groups.get(self.group).map_or(&[][..], Vec::as_slice);
        let (before, after) = keys.split_at_checked(self.cursor).unwrap_or((keys, &[]));
        let is_it = |key: &&Arc<SeriesKey>| is_key(key, &self.name, labels);
        if let Some(ahead) = after.iter().position(|key| is_it(&key)) {
            self.cursor += ahead + 1;
            return after.get(ahead).cloned();
        }
        if let Some(found) = before.iter().find(is_it) {
            return Some(Arc::clone(found));
        }
        let key = SeriesKey::new(&self.name, labels);
        key.check().ok().map(|()| self.keys.share(key))
    }
}

fn is_key(key: &SeriesKey, name: &str, labels: &[(&str, &str)]) -> bool {
    key.name == name
        && key.labels.len() == labels.len()
        && key
            .labels
            .iter()
            .zip(labels)
            .all(|((a, b), (c, d))| a == c && b == d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_the_same_through_changes() {
        let mut sink = Sink::new(1);
        let mut round = |devices: &[&str]| {
            sink.begin(0);
            for device in devices {
                sink.gauge(&["node_", "x"], &[("device", device)], 1.0);
            }
            sink.end().unwrap();
            sink.take()
        };
        let first = round(&["a", "b", "c"]);
        for devices in [
            &["a", "b", "c"][..],
            &["b", "c"],
            &["c", "new", "b"],
            &["b", "c"],
        ] {
            for sample in round(devices) {
                if let Some(old) = first.iter().find(|old| old.key == sample.key) {
                    assert!(
                        devices.len() == 3
                            || sample.key.label("device") != Some("b")
                            || Arc::ptr_eq(&old.key, &sample.key)
                    );
                }
            }
        }
        let again = round(&["b", "c"]);
        let once_more = round(&["b", "c"]);
        assert!(
            again
                .iter()
                .zip(&once_more)
                .all(|(a, b)| Arc::ptr_eq(&a.key, &b.key))
        );
    }

    #[test]
    fn refuses_what_no_report_can_carry() {
        let mut sink = Sink::new(1);
        sink.begin(0);
        sink.gauge(&["bad-name"], &[], 1.0);
        sink.gauge(&["long"], &[("x", &"y".repeat(limits::SERIES_BYTES))], 1.0);
        sink.gauge(&["good"], &[], 1.0);
        assert!(matches!(sink.end(), Err(SampleError::Refused(2))));
        assert_eq!(sink.take().len(), 1);
        sink.begin(0);
        for i in 0..limits::SERIES + 1 {
            sink.gauge(&["many"], &[("i", &i.to_string())], 1.0);
        }
        assert!(matches!(sink.end(), Err(SampleError::Refused(_))));
    }
}
