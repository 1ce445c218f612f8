//! Which points an answer has, and what they are made of.

use std::time::Duration;

use nexus_proto::{ids::NodeId, metrics::SeriesType, time::Timestamp};

use super::{
    file::{START, World, all_of, series},
    rollup::{
        DAY, assert_answers, assert_same, column, host, keys, naive, report, step_all, write,
    },
};
use crate::{
    StoreError,
    chunks::{
        Ask, DAY_MS, HOUR_MS, Keep, Key, MINUTE_MS, Resolution,
        read::{self, Samples},
    },
    db,
};

fn step(step: i64, node: NodeId, name: &'static str) -> Ask<'static> {
    Ask {
        step: Some(Duration::from_millis(step.unsigned_abs())),
        ..all_of(node, name)
    }
}

#[test]
fn a_clock_that_was_far_ahead_for_a_while_hides_nothing() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + 7 * HOUR_MS);
    let ahead = host(DAY + 5000 * DAY_MS, DAY + 5000 * DAY_MS + MINUTE_MS);
    let (first, rest) = all.split_at(700);
    report(&mut world, node, first);
    write(&mut world, node, &keys(), &ahead, DAY + 3 * HOUR_MS);
    report(&mut world, node, &rest[..rest.len() - 100]);
    // That window too is rolled up, the last ones are not.
    step_all(&mut world, DAY + 8 * HOUR_MS);
    let due = "UPDATE due SET due_ms = 0 WHERE window_ms > ?1";
    let connection = &world.file.connection;
    connection.execute(due, [DAY + 1000 * DAY_MS]).unwrap();
    step_all(&mut world, DAY + 8 * HOUR_MS);
    let head: Samples = [(keys()[1].clone(), column(&rest[rest.len() - 100..], 1))].into();
    for length in [MINUTE_MS, HOUR_MS] {
        let answer = world.ask(&step(length, node, "gauge"), head.clone());
        let mut expected = column(&all, 1);
        expected.extend(column(&ahead, 1));
        assert_same(&answer.lines[0].points, &naive(&expected, length, false));
    }
}

#[test]
fn hours_of_today_are_made_of_minutes_when_samples_are_gone() {
    let mut world = World::new(Keep {
        raw: Duration::from_secs(3 * 3600),
        ..Keep::default()
    });
    let node = NodeId::random();
    let all = host(DAY, DAY + 10 * HOUR_MS);
    report(&mut world, node, &all);
    step_all(&mut world, DAY + 10 * HOUR_MS);
    let totals = world.file.totals().unwrap();
    assert!(totals.held[0].chunks < 20 && totals.held[2].chunks == 0);
    for length in [MINUTE_MS, HOUR_MS] {
        assert_answers(&world, node, length, &all);
    }
}

#[test]
fn a_range_that_begins_in_an_outage_has_samples() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let mut all = host(DAY, DAY + 2 * HOUR_MS);
    all.retain(|(at, _)| !(DAY + 30 * MINUTE_MS..DAY + 80 * MINUTE_MS).contains(at));
    report(&mut world, node, &all);
    step_all(&mut world, DAY + 8 * HOUR_MS);
    assert_eq!(world.file.totals().unwrap().held[1].chunks, 1);
    let ask = |from: i64| Ask {
        from: Timestamp(from),
        ..all_of(node, "gauge")
    };
    let answer = world.ask(&ask(DAY + 40 * MINUTE_MS), Samples::new());
    assert_eq!(answer.resolution, Resolution::Raw);
    assert_eq!(answer.lines[0].points.len(), 40 * 6);
}

#[test]
fn a_step_is_made_of_whole_points() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    report(&mut world, node, &host(DAY, DAY + 2 * HOUR_MS));
    step_all(&mut world, DAY + 30 * HOUR_MS);
    for (length, resolution) in [
        (59_000, Resolution::Raw),
        (90_000, Resolution::Raw),
        (5 * MINUTE_MS, Resolution::Minute),
        (90 * MINUTE_MS, Resolution::Minute),
        (3 * HOUR_MS, Resolution::Hour),
    ] {
        let answer = world.ask(&step(length, node, "gauge"), Samples::new());
        assert_eq!(answer.resolution, resolution, "{length}");
    }
}

#[test]
fn more_values_than_may_be_read_are_refused() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + 4 * HOUR_MS);
    report(&mut world, node, &all[..all.len() - 50]);
    step_all(&mut world, DAY + 5 * HOUR_MS);
    let head: Samples = [(keys()[1].clone(), column(&all[all.len() - 50..], 1))].into();
    let reader = db::open_reader(&world.path).unwrap();
    let read = |most: usize, length: Option<i64>| {
        let ask = Ask {
            most,
            ..length.map_or(all_of(node, "gauge"), |length| step(length, node, "gauge"))
        };
        read::points(&reader, &ask, head.clone())
    };
    let samples = all.len() - 50;
    assert!(read(samples, None).is_ok());
    assert!(matches!(
        read(samples - 1, None),
        Err(StoreError::TooMany(_))
    ));
    for length in [MINUTE_MS, HOUR_MS] {
        assert!(read(2000, Some(length)).is_ok());
        assert!(matches!(
            read(200, Some(length)),
            Err(StoreError::TooMany(200))
        ));
    }
}

#[test]
fn it_is_known_which_series_there_are_without_reading_them() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    report(&mut world, node, &host(DAY, DAY + HOUR_MS));
    world
        .file
        .connection
        .execute("UPDATE raw SET body = x'00'", [])
        .unwrap();
    let reader = db::open_reader(&world.path).unwrap();
    let known = read::known(&reader, &all_of(node, "gauge")).unwrap();
    let found: Vec<_> = known.into_iter().collect();
    let span = (Timestamp(DAY), Timestamp(DAY + HOUR_MS - 10_000));
    assert_eq!(found, [(keys()[1].0.clone(), span)]);
    let other = NodeId::random();
    assert!(
        read::known(&reader, &all_of(other, "gauge"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_counter_rises_from_its_last_number_wherever_that_stands() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let counter = series("c", "", SeriesType::Counter);
    let others: Vec<(Key, f64)> = (0..2000)
        .map(|n| (series("g", &n.to_string(), SeriesType::Gauge), 1.0))
        .collect();
    // A window of so many points that they are several chunks, of which only the first has the counter.
    for minute in 0..120 {
        let mut samples = others.clone();
        match minute {
            0..10 => samples.push((counter.clone(), 10.0)),
            10 => samples.push((counter.clone(), f64::NAN)),
            _ => {}
        }
        let at = START + minute * MINUTE_MS;
        world.write(node, at, &[(at, &samples)]);
    }
    step_all(&mut world, START + 4 * HOUR_MS);
    assert!(world.file.totals().unwrap().held[1].chunks > 1);
    let at = START + 2 * HOUR_MS;
    let rises = |world: &World, head: Samples| {
        let ask = Ask {
            from: Timestamp(at),
            ..step(MINUTE_MS, node, "c")
        };
        let points = &world.ask(&ask, head).lines[0].points;
        points.iter().map(|p| p.increase).collect::<Vec<_>>()
    };
    let head: Samples = [(counter.clone(), vec![(at, 15.0)])].into();
    assert_eq!(rises(&world, head), [Some(5.0)]);
    world.write(node, at, &[(at, &[(counter, 15.0)])]);
    assert_eq!(rises(&world, Samples::new()), [Some(5.0)]);
    step_all(&mut world, START + 7 * HOUR_MS);
    assert_eq!(rises(&world, Samples::new()), [Some(5.0)]);
}

#[test]
fn a_long_answer_holds_up_no_other() {
    let world = World::new(Keep::default());
    let readers = db::Readers::open(&world.path).unwrap();
    let (one, other) = (readers.get().unwrap(), readers.get().unwrap());
    assert!(!std::ptr::eq(&raw const *one, &raw const *other));
}
