//! Rollups say what their samples say, whenever and from whatever they are made.

use std::{collections::BTreeMap, time::Duration};

use nexus_proto::{ids::NodeId, metrics::SeriesType, time::Timestamp};
use proptest::prelude::*;

use super::file::{START, World, all_of, series};
use crate::chunks::{
    Ask, Budget, DAY_MS, HOUR_MS, Keep, Key, MINUTE_MS, Point, Resolution, WINDOW_MS,
    raw::{Kind, Packer, Unpacker},
    read::Samples,
    rolled::{self, Lines, Roller},
};

/// The plain words of the rule.
pub(super) fn naive(samples: &[(i64, f64)], length: i64, counter: bool) -> Vec<Point> {
    let mut windows: BTreeMap<i64, Vec<(f64, f64)>> = BTreeMap::new();
    let mut previous: Option<f64> = None;
    for (time, value) in samples {
        let rise = match previous {
            _ if value.is_nan() => 0.0,
            Some(before) if *value >= before => value - before,
            Some(_) => *value,
            None => 0.0,
        };
        if !value.is_nan() {
            previous = Some(*value);
        }
        let start = time.div_euclid(length) * length;
        windows.entry(start).or_default().push((*value, rise));
    }
    let point = |(start, values): (i64, Vec<(f64, f64)>)| {
        let real: Vec<f64> = values.iter().map(|v| v.0).filter(|v| !v.is_nan()).collect();
        Point {
            time: Timestamp(start),
            min: real.iter().copied().fold(f64::NAN, f64::min),
            max: real.iter().copied().fold(f64::NAN, f64::max),
            sum: real.iter().sum(),
            count: real.len() as u64,
            last: values.last().unwrap().0,
            increase: counter.then(|| values.iter().map(|v| v.1).sum()),
        }
    };
    windows.into_iter().map(point).collect()
}

fn near(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits()
        || (a.is_nan() && b.is_nan())
        || (a - b).abs() <= 1e-9 * a.abs().max(1e-3)
}

#[track_caller]
pub(super) fn assert_same(found: &[Point], expected: &[Point]) {
    for (a, b) in found.iter().zip(expected) {
        let exact = |p: &Point| (p.time, p.count, p.last.to_bits(), p.increase.is_some());
        let same = exact(a) == exact(b)
            && near(a.min, b.min)
            && near(a.max, b.max)
            && near(a.sum, b.sum)
            && near(a.increase.unwrap_or(0.0), b.increase.unwrap_or(0.0));
        assert!(same, "{a:?} is not {b:?}");
    }
    assert_eq!(found.len(), expected.len());
}

fn roll(samples: &[(i64, f64)], kind: SeriesType) -> Vec<Point> {
    let mut roller = Roller::new(MINUTE_MS, kind, None);
    for (time, value) in samples {
        roller.add(*time, *value);
    }
    roller.finish()
}

fn samples() -> impl Strategy<Value = Vec<(i64, f64)>> {
    let value = prop_oneof![
        6 => (0_i64..100_000).prop_map(|n| n as f64),
        4 => (0_i64..100_000).prop_map(|n| n as f64 / 100.0),
        1 => (0_i64..1_000_000).prop_map(|n| n as f64 / 1000.0 / 1000.0),
        1 => prop::sample::select(vec![f64::NAN, 0.1 + 0.2, 1e300, -1.0 / 3.0]),
    ];
    let decimals = prop::collection::vec(
        (1_i64..100_000, (0_i64..9999).prop_map(|n| n as f64 / 10.0)),
        0..80,
    );
    let any = prop::collection::vec((1_i64..100_000, value), 0..80);
    prop_oneof![any, decimals].prop_map(|steps| {
        let mut at = START - 777;
        let step = |(step, value): (i64, f64)| {
            at += step;
            (at, value)
        };
        steps.into_iter().map(step).collect()
    })
}

proptest! {
    #[test]
    fn rolling_and_its_coding_keep_to_the_rule(all in prop::collection::vec((samples(), any::<bool>()), 1..4)) {
        let mut lines = Lines::new();
        for (number, (samples, counter)) in all.iter().enumerate() {
            let kind = if *counter { SeriesType::Counter } else { SeriesType::Gauge };
            let points = roll(samples, kind);
            assert_same(&points, &naive(samples, MINUTE_MS, *counter));
            lines.insert(series("a", &number.to_string(), kind), points);
        }
        let built = rolled::build(&mut Packer::new().unwrap(), &lines, MINUTE_MS).unwrap();
        let mut found = Lines::new();
        for built in built {
            let mut unpacker = Unpacker::new().unwrap();
            let body = unpacker.unpack(Kind::Rollup, &built.body).unwrap();
            for (index, points) in rolled::read(body, &built.keys, |_| true).unwrap() {
                found.entry(built.keys[index].clone()).or_default().extend(points);
            }
        }
        lines.retain(|_, points| !points.is_empty());
        prop_assert_eq!(found.len(), lines.len());
        for (key, points) in &lines {
            assert_same(&found[key], points);
        }
    }

    #[test]
    fn whatever_the_bytes_are_reading_ends(body in prop::collection::vec(any::<u8>(), 0..200), count in 0_usize..9) {
        let keys: Vec<Key> = (0..count).map(super::key).collect();
        let _either = rolled::read(&body, &keys, |_| true);
    }
}

/// What a host with a counter, that begins again now and then, and a gauge reports in ten seconds.
pub(super) fn host(from: i64, to: i64) -> Vec<(i64, [f64; 2])> {
    let mut counter = 0.0;
    let times = (from..to).step_by(10_000);
    times
        .map(|at| {
            counter = if at % 4_440_000 == 0 {
                3.0
            } else {
                counter + (at / 10_000 % 17) as f64
            };
            (at, [counter, (at / 10_000 % 13) as f64 / 10.0])
        })
        .collect()
}

pub(super) fn keys() -> [Key; 2] {
    [
        series("counter", "", SeriesType::Counter),
        series("gauge", "", SeriesType::Gauge),
    ]
}

/// Writes reports in chunks of ten minutes each, when they are over.
pub(super) fn report(world: &mut World, node: NodeId, reports: &[(i64, [f64; 2])]) {
    let keys = keys();
    for reports in reports.chunk_by(|a, b| a.0 / 600_000 == b.0 / 600_000) {
        let now = reports[0].0 / 600_000 * 600_000 + 600_000;
        write(world, node, &keys, reports, now);
    }
}

pub(super) fn write(
    world: &mut World,
    node: NodeId,
    keys: &[Key; 2],
    reports: &[(i64, [f64; 2])],
    now: i64,
) {
    let reports: Vec<(i64, Vec<(Key, f64)>)> = reports
        .iter()
        .map(|(at, values)| (*at, keys.iter().cloned().zip(*values).collect()))
        .collect();
    let reports: Vec<(i64, &[(Key, f64)])> = reports
        .iter()
        .map(|(at, values)| (*at, values.as_slice()))
        .collect();
    world.write(node, now, &reports);
}

pub(super) fn step_all(world: &mut World, now: i64) -> usize {
    let budget = Budget {
        windows: 3,
        chunks: 20,
        pages: 100,
    };
    let mut windows = 0;
    loop {
        let stepped = world.file.step(Timestamp(now), budget).unwrap();
        assert!(stepped.windows <= 3 && stepped.chunks <= 20 && stepped.pages <= 100);
        windows += stepped.windows;
        if !stepped.worked() {
            return windows;
        }
    }
}

pub(super) fn column(reports: &[(i64, [f64; 2])], which: usize) -> Vec<(i64, f64)> {
    reports
        .iter()
        .map(|(at, values)| (*at, values[which]))
        .collect()
}

#[track_caller]
pub(super) fn assert_answers(world: &World, node: NodeId, step: i64, reports: &[(i64, [f64; 2])]) {
    for (which, (name, counter)) in [("counter", true), ("gauge", false)]
        .into_iter()
        .enumerate()
    {
        let step = Duration::from_millis(step.unsigned_abs());
        let ask = Ask {
            step: Some(step),
            ..all_of(node, name)
        };
        let answer = world.ask(&ask, Samples::new());
        let length = i64::try_from(step.as_millis()).unwrap();
        let expected = naive(&column(reports, which), length, counter);
        assert_same(&answer.lines[0].points, &expected);
    }
}

/// A day's beginning.
pub(super) const DAY: i64 = START / DAY_MS * DAY_MS;

#[test]
fn minutes_and_hours_are_the_same_before_and_after_they_are_rolled_up() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let mut reports = host(DAY + 3 * HOUR_MS, DAY + 30 * HOUR_MS);
    // Off for a while, over a border.
    reports.retain(|(at, _)| !(DAY + 9 * HOUR_MS..DAY + 11 * HOUR_MS).contains(at));
    report(&mut world, node, &reports);
    for length in [MINUTE_MS, HOUR_MS] {
        assert_answers(&world, node, length, &reports);
    }
    assert_eq!(step_all(&mut world, DAY + 4 * HOUR_MS), 0, "not yet");
    let windows = step_all(&mut world, DAY + 40 * HOUR_MS);
    assert!(windows >= 12, "{windows}");
    for length in [MINUTE_MS, HOUR_MS] {
        assert_answers(&world, node, length, &reports);
    }
    assert!(world.file.totals().unwrap().held[1].chunks >= 12);
    assert_eq!(
        step_all(&mut world, DAY + 60 * HOUR_MS),
        2,
        "two days of hours"
    );
    for length in [MINUTE_MS, HOUR_MS] {
        assert_answers(&world, node, length, &reports);
    }
    // The raw ones go, and nobody who asks for minutes sees it.
    step_all(&mut world, DAY + 90 * HOUR_MS);
    assert_eq!(world.file.totals().unwrap().held[0].chunks, 0);
    for length in [MINUTE_MS, HOUR_MS] {
        assert_answers(&world, node, length, &reports);
    }
    let answer = world.ask(&all_of(node, "gauge"), Samples::new());
    assert_eq!(answer.resolution, Resolution::Minute, "what still exists");
    step_all(&mut world, DAY + 40 * DAY_MS);
    assert_answers(&world, node, HOUR_MS, &reports);
    step_all(&mut world, DAY + 800 * DAY_MS);
    assert!(
        world
            .ask(&all_of(node, "gauge"), Samples::new())
            .lines
            .is_empty()
    );
}

#[test]
fn what_comes_late_is_rolled_up_as_if_it_had_come_in_time() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + 6 * HOUR_MS);
    let late =
        |at: i64| (DAY + HOUR_MS..DAY + 5 * HOUR_MS / 2).contains(&at) && at / 10_000 % 3 == 0;
    let (behind, first): (Vec<_>, Vec<_>) = all.iter().partition(|(at, _)| late(*at));
    report(&mut world, node, &first);
    step_all(&mut world, DAY + 10 * HOUR_MS);
    assert_answers(&world, node, MINUTE_MS, &first);
    write(&mut world, node, &keys(), &behind, DAY + 10 * HOUR_MS);
    step_all(&mut world, DAY + 30 * HOUR_MS);
    step_all(&mut world, DAY + 60 * HOUR_MS);
    assert_answers(&world, node, MINUTE_MS, &all);
    assert_answers(&world, node, HOUR_MS, &all);
    assert_eq!(world.file.totals().unwrap().late, 0);
}

#[test]
fn what_comes_when_raw_chunks_are_gone_fills_what_is_empty_and_the_rest_is_counted() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + 2 * HOUR_MS);
    let second_hour = |at: i64| at >= DAY + HOUR_MS;
    let (behind, first): (Vec<_>, Vec<_>) = all.iter().partition(|(at, _)| second_hour(*at));
    report(&mut world, node, &first);
    step_all(&mut world, DAY + 100 * HOUR_MS);
    assert_eq!(world.file.totals().unwrap().held[0].chunks, 0);
    // The second hour, and again two minutes that were there.
    let mut came = behind.clone();
    came.extend(&first[..12]);
    write(&mut world, node, &keys(), &came, DAY + 100 * HOUR_MS);
    step_all(&mut world, DAY + 200 * HOUR_MS);
    let ask = Ask {
        step: Some(Duration::from_secs(60)),
        ..all_of(node, "gauge")
    };
    let answer = world.ask(&ask, Samples::new());
    assert_same(
        &answer.lines[0].points,
        &naive(&column(&all, 1), MINUTE_MS, false),
    );
    let totals = world.file.totals().unwrap();
    assert_eq!(totals.late, 0, "whole minutes are made anew");
    let more = [(DAY + 5, [1.0, 1.0]), (DAY + 6, [1.0, 1.0])];
    write(&mut world, node, &keys(), &more, DAY + 200 * HOUR_MS);
    step_all(&mut world, DAY + 300 * HOUR_MS);
    let totals = world.file.totals().unwrap();
    assert_eq!(totals.late, 4, "two of each series");
    let answer = world.ask(&ask, Samples::new());
    let expected = naive(&column(&all, 1), MINUTE_MS, false);
    assert_same(&answer.lines[0].points, &expected);
}

#[test]
fn the_head_is_rolled_up_with_the_rest_and_rollups_are_spread() {
    let mut world = World::new(Keep::default());
    let (node, all) = (NodeId::random(), host(DAY, DAY + 3 * HOUR_MS));
    let (file, head) = all.split_at(900);
    report(&mut world, node, file);
    step_all(&mut world, DAY + WINDOW_MS + HOUR_MS + HOUR_MS);
    let head: Samples = [(keys()[0].clone(), column(head, 0))].into();
    let ask = Ask {
        step: Some(Duration::from_secs(120)),
        ..all_of(node, "counter")
    };
    let answer = world.ask(&ask, head);
    assert_eq!(answer.resolution, Resolution::Minute);
    assert_same(
        &answer.lines[0].points,
        &naive(&column(&all, 0), MINUTE_MS, true),
    );

    for _ in 0..100 {
        report(&mut world, NodeId::random(), &host(DAY, DAY + 600_000));
    }
    let rolled_up_by = |world: &mut World, now: i64| {
        step_all(world, now);
        world.file.totals().unwrap().held[1].chunks
    };
    let first = DAY + WINDOW_MS + 25 * MINUTE_MS;
    let some = rolled_up_by(&mut world, first);
    let half = rolled_up_by(&mut world, first + 30 * MINUTE_MS);
    assert!(some < 20 && (30..80).contains(&half), "{some} {half}");
}
