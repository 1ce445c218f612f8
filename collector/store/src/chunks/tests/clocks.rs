//! Clocks that are wrong, of nodes and of the collector, make little work and keep nothing for longer.

use std::time::Duration;

use nexus_proto::{ids::NodeId, metrics::SeriesType};

use super::{
    file::{START, World, all_of, series},
    rollup::{DAY, assert_same, column, host, keys, naive, report, step_all, write},
};
use crate::chunks::{Ask, Built, DAY_MS, HOUR_MS, Keep, Key, WINDOW_MS, read::Samples};

#[test]
fn a_chunk_spans_few_windows_however_times_jump() {
    let key = series("a", "", SeriesType::Gauge);
    let samples: &[(Key, f64)] = &[(key, 1.0)];
    let far = |n: i64| START + n % 7 * 1000 * DAY_MS + n * 10_000;
    let reports: Vec<_> = (0..70).map(|n| (far(n), samples)).collect();
    let built = super::file::build(&reports, START);
    let span = |built: &Built| built.to.as_ms() - built.from.as_ms();
    assert!(built.iter().map(span).max() <= Some(4 * WINDOW_MS));
    let all: usize = built.iter().map(|built| built.reports).sum();
    assert_eq!(all, reports.len());
    // Those that come late, but in order, stay together.
    let late: Vec<_> = (0..360).map(|n| (START + n * 10_000, samples)).collect();
    assert_eq!(super::file::build(&late, START + DAY_MS).len(), 1);
}

#[test]
fn chunks_that_were_stored_in_the_future_go_in_time() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + HOUR_MS);
    let (first, rest) = all.split_at(180);
    // The collector's clock is years ahead for a while.
    write(&mut world, node, &keys(), first, DAY + 2000 * DAY_MS);
    report(&mut world, node, rest);
    let chunks = |world: &World| world.file.totals().unwrap().held.map(|held| held.chunks);
    step_all(&mut world, DAY + 10 * HOUR_MS);
    assert_eq!(chunks(&world), [4, 1, 0], "what came late is due no later");
    step_all(&mut world, DAY + 50 * HOUR_MS);
    step_all(&mut world, DAY + 70 * HOUR_MS);
    assert_eq!(chunks(&world), [0, 1, 1]);
}

#[test]
fn minutes_become_hours_before_they_go() {
    let mut world = World::new(Keep {
        raw: Duration::from_secs(2 * 3600),
        minutes: Duration::from_secs(4 * 3600),
        ..Keep::default()
    });
    let node = NodeId::random();
    let all = host(DAY, DAY + 4 * HOUR_MS);
    report(&mut world, node, &all);
    for hour in 5..24 {
        step_all(&mut world, DAY + hour * HOUR_MS);
    }
    let held = world.file.totals().unwrap().held;
    assert_eq!([held[0].chunks, held[1].chunks], [0, 0]);
    let ask = Ask {
        step: Some(Duration::from_secs(3600)),
        ..all_of(node, "counter")
    };
    let points = &world.ask(&ask, Samples::new()).lines[0].points;
    assert_same(points, &naive(&column(&all, 0), HOUR_MS, true));
}
