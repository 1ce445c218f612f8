//! A series as it was answered.

use std::collections::BTreeMap;

use nexus_proto::operator::v1::{MetricPoint, MetricSeries};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) points: Vec<MetricPoint>,
    /// What is drawn of each point: when, lowest, highest, and where the line goes.
    pub(super) dots: Vec<Dot>,
}

/// What is drawn of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Dot {
    pub(super) time_ms: i64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) value: f64,
}

impl Series {
    /// Takes a piece of an answer in: of the series before it, or of a new one.
    pub(super) fn gather(all: &mut Vec<Self>, piece: MetricSeries) {
        let labels: BTreeMap<_, _> = piece
            .labels
            .into_iter()
            .map(|label| (label.name, label.value))
            .collect();
        let dots = piece.points.iter().filter_map(dot);
        match all.last_mut() {
            Some(open) if open.labels == labels => {
                open.dots.extend(dots);
                open.points.extend(piece.points);
            }
            _ => all.push(Self {
                labels,
                dots: dots.collect(),
                points: piece.points,
            }),
        }
    }

    /// Shows how fast a counter rises instead of where it stands.
    pub(super) fn turn_to_rates(&mut self) {
        let dots = self.points.iter().filter_map(|point| {
            rate(point).map(|value| Dot {
                time_ms: point.time_ms,
                low: value,
                high: value,
                value,
            })
        });
        self.dots = dots.collect();
    }

    /// The highest of all; below everything without any.
    pub(super) fn highest(&self) -> f64 {
        let highs = self.dots.iter().map(|dot| dot.high);
        highs.fold(f64::NEG_INFINITY, f64::max)
    }

    /// The lowest of all.
    pub(super) fn lowest(&self) -> f64 {
        let lows = self.dots.iter().map(|dot| dot.low);
        lows.fold(f64::INFINITY, f64::min)
    }
}

/// Increase per second.
pub(super) fn rate(point: &MetricPoint) -> Option<f64> {
    let seconds = std::time::Duration::from_millis(point.increase_ms).as_secs_f64();
    point
        .increase
        .filter(|_| seconds > 0.0)
        .map(|increase| increase / seconds)
}

/// The line goes through means; what is no number, or endless, is not drawn.
fn dot(point: &MetricPoint) -> Option<Dot> {
    let low = point.min.unwrap_or(point.last);
    let high = point.max.unwrap_or(point.last);
    let value = match (point.sum, point.count) {
        (Some(sum), 1..) => sum / count(point.count),
        _ => point.last,
    };
    let drawn = low.is_finite() && high.is_finite() && value.is_finite();
    drawn.then_some(Dot {
        time_ms: point.time_ms,
        low,
        high,
        value,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn count(count: u64) -> f64 {
    count as f64
}
