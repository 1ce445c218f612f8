//! Points of what is kept as points of a step, series by series.
//!
//! Steps begin at whole multiples of their length since the epoch, whatever is asked for, so that two answers about
//! the same time agree. A value that is no number counts as no sample beside one that is.

use std::sync::Arc;

use nexus_proto::{
    metrics::{SeriesKey, SeriesType},
    time::Timestamp,
};
use nexus_store::{Line, RangePoint};

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

/// Points in order of time, so far apart or samples, become points of a step. Without a step each stays as it is.
pub(super) fn fold(lines: Vec<Line>, kind: SeriesType, step_ms: i64, apart_ms: i64) -> Vec<Series> {
    let counter = kind == SeriesType::Counter;
    let series = lines.into_iter().map(|line| Series {
        key: line.key.0,
        points: folded(&line.points, counter, step_ms, apart_ms),
    });
    series.collect()
}

fn folded(points: &[RangePoint], counter: bool, step_ms: i64, apart_ms: i64) -> Vec<Summary> {
    let mut summaries: Vec<Summary> = Vec::new();
    for point in points {
        let rise = match summaries.last() {
            Some(before) if counter => risen(before, point),
            // What a minute or hour knows by itself.
            None if counter => point.increase.zip(u64::try_from(apart_ms).ok()),
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
    summaries
}

/// By how much, and in which time. A counter that fell began again at nothing; what a point stands for may hold
/// more than its last value shows.
fn risen(before: &Summary, point: &RangePoint) -> Option<(f64, u64)> {
    let rise = match point.increase {
        Some(increase) => increase,
        None if before.last.is_nan() || point.last.is_nan() => return None,
        None if point.last < before.last => point.last,
        None => point.last - before.last,
    };
    let span = point.time.since(before.last_at).as_millis();
    Some((rise, u64::try_from(span).unwrap_or(u64::MAX)))
}

impl Summary {
    fn new(time: Timestamp, point: &RangePoint, rise: Option<(f64, u64)>) -> Self {
        Self {
            time,
            last_at: point.time,
            last: point.last,
            count: point.count,
            min: point.min,
            max: point.max,
            sum: if point.count == 0 { 0.0 } else { point.sum },
            increase: rise.map(|(rise, _)| rise),
            increase_ms: rise.map_or(0, |(_, ms)| ms),
        }
    }

    fn add(&mut self, point: &RangePoint, rise: Option<(f64, u64)>) {
        self.last_at = point.time;
        if let Some((rise, ms)) = rise {
            self.increase = Some(self.increase.unwrap_or(0.0) + rise);
            self.increase_ms = self.increase_ms.saturating_add(ms);
        }
        if point.count == 0 {
            return;
        }
        if !point.last.is_nan() {
            self.last = point.last;
        }
        self.count += point.count;
        self.min = self.min.min(point.min);
        self.max = self.max.max(point.max);
        self.sum += point.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(values: &[(i64, f64)], counter: bool, step: i64) -> Vec<Summary> {
        let points: Vec<_> = values
            .iter()
            .map(|(time, value)| RangePoint {
                time: Timestamp(*time),
                min: *value,
                max: *value,
                sum: *value,
                count: u64::from(!value.is_nan()),
                last: *value,
                increase: None,
            })
            .collect();
        super::folded(&points, counter, step, 0)
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
            (2500, 4.0),
        ];
        let raw = folded(&values, true, 0);
        let rises: Vec<_> = raw.iter().map(|point| point.increase).collect();
        assert_eq!(rises, [None, Some(2.0), Some(3.0), Some(1.0), Some(3.0)]);
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
    fn the_first_minute_of_an_answer_rises_by_what_it_knows() {
        let minute = |n: i64, last: f64, increase: f64| RangePoint {
            time: Timestamp(n * 60_000),
            min: last,
            max: last,
            sum: last,
            count: 6,
            last,
            increase: Some(increase),
        };
        let points = [
            minute(0, 60.0, 6.0),
            minute(1, 72.0, 12.0),
            minute(2, 75.0, 3.0),
        ];
        let of = super::folded(&points, true, 120_000, 60_000);
        let rises: Vec<_> = of.iter().map(|p| (p.increase, p.increase_ms)).collect();
        assert_eq!(rises, [(Some(18.0), 120_000), (Some(3.0), 60_000)]);
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
