//! What is damaged, or beyond what a chunk holds, holds nothing else up.

use std::time::Duration;

use nexus_proto::{ids::NodeId, metrics::SeriesType};

use super::{
    file::{World, all_of, series},
    rollup::{DAY, assert_answers, host, report, step_all, write},
};
use crate::chunks::{Ask, HOUR_MS, Keep, Key, MINUTE_MS, read::Samples};

fn count(world: &World, sql: &str) -> i64 {
    let connection = &world.file.connection;
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn what_is_damaged_costs_nothing_but_itself() {
    for damage in [
        "UPDATE raw SET body = x'010007' WHERE id = 2",
        "UPDATE raw SET keyset = 77 WHERE id = 2",
        "UPDATE keysets SET body = x'0100' WHERE id = (SELECT keyset FROM raw WHERE id = 2)",
        // Another list, whole in itself.
        "UPDATE keysets SET body = (SELECT body FROM keysets WHERE id = 2) WHERE id = 1",
        "UPDATE nodes SET node = x'00' WHERE id = 1",
    ] {
        let mut world = World::new(Keep::default());
        let (one, other) = (NodeId::random(), NodeId::random());
        let all = host(DAY, DAY + HOUR_MS / 2);
        report(&mut world, one, &all);
        let theirs: [Key; 2] = [
            series("counter", "b", SeriesType::Counter),
            series("gauge", "b", SeriesType::Gauge),
        ];
        write(&mut world, other, &theirs, &all, DAY + HOUR_MS);
        world.file.connection.execute(damage, []).unwrap();
        step_all(&mut world, DAY + 10 * HOUR_MS);
        step_all(&mut world, DAY + 30 * HOUR_MS);
        assert_eq!(count(&world, "SELECT count(*) FROM due"), 0, "{damage}");
        let found = count(&world, "SELECT count(*) FROM minutes WHERE node = 2");
        assert_eq!(found, 1, "{damage}");
        assert_eq!(
            count(&world, "SELECT count(*) FROM hours WHERE node = 2"),
            1
        );
        if damage.contains("raw") && !damage.contains("keysets") {
            // Two of the three chunks of ten minutes.
            let samples = count(&world, "SELECT samples FROM minutes WHERE node = 1");
            assert_eq!(samples, 2 * 2 * 60, "{damage}");
        }
        step_all(&mut world, DAY + 200 * HOUR_MS);
        assert_eq!(count(&world, "SELECT count(*) FROM raw"), 0, "{damage}");
    }
}

#[test]
fn a_damaged_rollup_is_made_anew_when_its_window_is() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let all = host(DAY, DAY + HOUR_MS);
    let (first, late) = all.split_at(300);
    report(&mut world, node, first);
    step_all(&mut world, DAY + 10 * HOUR_MS);
    let damage = "UPDATE minutes SET body = x'010107'";
    assert_eq!(world.file.connection.execute(damage, []).unwrap(), 1);
    report(&mut world, node, late);
    step_all(&mut world, DAY + 20 * HOUR_MS);
    assert_answers(&world, node, MINUTE_MS, &all);
}

#[test]
fn more_series_than_a_chunk_holds_are_rolled_up_into_several() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let each = 20_000;
    for report in 0..3 {
        let samples: Vec<(Key, f64)> = (0..each)
            .map(|n| {
                let key = series("many", &(report * each + n).to_string(), SeriesType::Gauge);
                (key, n as f64)
            })
            .collect();
        world.write(node, DAY + 60_000, &[(DAY + report * 20_000, &samples)]);
    }
    step_all(&mut world, DAY + 10 * HOUR_MS);
    step_all(&mut world, DAY + 30 * HOUR_MS);
    for step in [MINUTE_MS, HOUR_MS] {
        let ask = Ask {
            step: Some(Duration::from_millis(step.unsigned_abs())),
            ..all_of(node, "many")
        };
        let lines = world.ask(&ask, Samples::new()).lines;
        assert_eq!(lines.len(), 60_000);
        assert!(lines.iter().all(|line| line.points.len() == 1));
    }
    let held = world.file.totals().unwrap().held;
    assert_eq!([held[1].chunks, held[2].chunks], [2, 2]);
}
