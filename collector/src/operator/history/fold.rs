//! Samples as points of a step, series by series.
//!
//! Steps begin at whole multiples of their length since the epoch, whatever is asked for, so that two answers about
//! the same time agree. A value that is no number counts as no sample beside one that is.

use std::{collections::BTreeMap, sync::Arc};

use nexus_proto::{metrics::SeriesKey, time::Timestamp};
use nexus_store::Point;

/// A series' points in order of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) key: Arc<SeriesKey>,
    pub(super) points: Vec<Summary>,
}

/// A sample, or what the samples of a step come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    /// Of the sample, or the step's beginning.
    pub(super) time: Timestamp,
    /// Of the newest sample.
    last_at: Timestamp,
    pub(super) last: f64,
    /// Samples that are numbers.
    pub(super) count: u64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) sum: f64,
    /// Of a counter, since the sample before.
    pub(super) increase: Option<f64>,
    /// The time in which it rose by that.
    pub(super) increase_ms: u64,
}

/// Points in order of time become series in order of their labels. Without a step each sample is a point.
pub(super) fn fold<'a>(
    points: impl Iterator<Item = &'a Point>,
    counter: bool,
    step_ms: i64,
) -> Vec<Series> {
    let mut all: BTreeMap<&Arc<SeriesKey>, Vec<Summary>> = BTreeMap::new();
    for point in points {
        let summaries = all.entry(&point.key).or_default();
        let rise = match summaries.last() {
            // A sample that came twice.
            Some(before) if before.last_at == point.time => continue,
            Some(before) if counter => risen(before, point),
            _ => None,
        };
        let start = match step_ms {
            0 => point.time,
            step => Timestamp(point.time.as_ms().div_euclid(step).saturating_mul(step)),
        };
        match summaries.last_mut() {
            Some(open) if step_ms > 0 && open.time == start => open.add(point, rise),
            _ => summaries.push(Summary::new(start, point, rise)),
        }
    }
    let series = all.into_iter().map(|(key, points)| Series {
        key: Arc::clone(key),
        points,
    });
    series.collect()
}

/// By how much, and in which time. A counter that fell began again at nothing.
fn risen(before: &Summary, point: &Point) -> Option<(f64, u64)> {
    if before.last.is_nan() || point.value.is_nan() {
        return None;
    }
    let rise = if point.value < before.last {
        point.value
    } else {
        point.value - before.last
    };
    let span = point.time.since(before.last_at).as_millis();
    Some((rise, u64::try_from(span).unwrap_or(u64::MAX)))
}

impl Summary {
    fn new(time: Timestamp, point: &Point, rise: Option<(f64, u64)>) -> Self {
        let value = point.value;
        Self {
            time,
            last_at: point.time,
            last: value,
            count: u64::from(!value.is_nan()),
            min: value,
            max: value,
            sum: if value.is_nan() { 0.0 } else { value },
            increase: rise.map(|(rise, _)| rise),
            increase_ms: rise.map_or(0, |(_, ms)| ms),
        }
    }

    fn add(&mut self, point: &Point, rise: Option<(f64, u64)>) {
        self.last_at = point.time;
        if let Some((rise, ms)) = rise {
            self.increase = Some(self.increase.unwrap_or(0.0) + rise);
            self.increase_ms = self.increase_ms.saturating_add(ms);
        }
        if point.value.is_nan() {
            return;
        }
        self.last = point.value;
        self.count += 1;
        self.min = self.min.min(point.value);
        self.max = self.max.max(point.value);
        self.sum += point.value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(i64, f64)]) -> Vec<Point> {
        let key = Arc::new(SeriesKey::new("m", &[]));
        let points = values.iter().map(|(time, value)| Point {
            time: Timestamp(*time),
            key: Arc::clone(&key),
            value: *value,
        });
        points.collect()
    }

    fn folded(values: &[(i64, f64)], counter: bool, step: i64) -> Vec<Summary> {
        let mut series = fold(points(values).iter(), counter, step);
        assert_eq!(series.len(), 1);
        series.remove(0).points
    }

    #[test]
    fn a_step_has_all_that_is_in_it_and_begins_at_its_multiple() {
        let of = folded(
            &[(999, 4.0), (1000, 2.0), (1400, f64::NAN), (1999, 3.0)],
            false,
            1000,
        );
        let times: Vec<_> = of.iter().map(|point| point.time.as_ms()).collect();
        assert_eq!(times, [0, 1000]);
        let second = of[1];
        assert_eq!(
            (second.min, second.max, second.sum, second.last),
            (2.0, 3.0, 5.0, 3.0)
        );
        assert_eq!((second.count, second.increase), (2, None));
    }

    #[test]
    fn a_counter_rises_over_its_resets_and_steps() {
        let values = [
            (0, 10.0),
            (500, 12.0),
            (1000, 15.0),
            (1500, 1.0),
            (1500, 1.0),
            (2500, 4.0),
        ];
        let raw = folded(&values, true, 0);
        let rises: Vec<_> = raw.iter().map(|point| point.increase).collect();
        assert_eq!(
            rises,
            [None, Some(2.0), Some(3.0), Some(1.0), Some(3.0)],
            "sent twice, counted once"
        );
        let steps = folded(&values, true, 1000);
        let rises: Vec<_> = steps
            .iter()
            .map(|point| (point.increase, point.increase_ms))
            .collect();
        assert_eq!(
            rises,
            [(Some(2.0), 500), (Some(4.0), 1000), (Some(3.0), 1000)]
        );
    }

    #[test]
    fn what_is_no_number_is_shown_where_nothing_else_is() {
        let raw = folded(&[(0, 1.0), (1, f64::NAN), (2, 2.0)], true, 0);
        assert!(raw[1].last.is_nan() && raw[1].count == 0);
        assert_eq!(raw[2].increase, None);
        let step = folded(&[(0, f64::NAN), (1, 7.0)], false, 10);
        assert_eq!((step[0].min, step[0].last, step[0].count), (7.0, 7.0, 1));
    }
}
