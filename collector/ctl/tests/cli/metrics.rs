//! Metrics as charts and as points.

use nexus_proto::{
    agent::v1::SeriesType,
    operator::v1::{
        MetricHead, MetricLabel, MetricPoint, MetricSeries, ReadMetricsResponse,
        read_metrics_response::Kind,
    },
};
use serde_json::{Value, json};

use crate::{World, code, err, out, terminal};

/// 2023-11-15T00:00:00Z
const BEGIN: i64 = 1_700_006_400_000;

fn answer(kind: SeriesType, series: &[(&str, &[f64])]) -> Vec<ReadMetricsResponse> {
    let head = MetricHead {
        node: "web-1".into(),
        r#type: kind.into(),
        series: series.len().try_into().unwrap(),
        ..MetricHead::default()
    };
    let series = series.iter().map(|(cpu, values)| {
        let points = (0..).zip(*values).map(|(index, value)| MetricPoint {
            time_ms: BEGIN + index * 60_000,
            last: *value,
            count: 1,
            increase: (kind == SeriesType::Counter && index > 0).then_some(30.0),
            increase_ms: 60_000,
            ..MetricPoint::default()
        });
        let label = |name: &str, value: &str| MetricLabel {
            name: name.into(),
            value: value.into(),
        };
        Kind::Series(MetricSeries {
            labels: vec![label("cpu", cpu), label("mode", "idle")],
            points: points.collect(),
        })
    });
    let kinds = std::iter::once(Kind::Head(head)).chain(series);
    let message = |kind| ReadMetricsResponse { kind: Some(kind) };
    kinds.map(message).collect()
}

async fn world(kind: SeriesType, series: &[(&str, &[f64])]) -> World {
    let world = World::logged_in().await;
    world.fake.seen.lock().unwrap().metrics = answer(kind, series);
    world
}

const RANGE: [&str; 4] = [
    "--from",
    "2023-11-15T00:00:00Z",
    "--to",
    "2023-11-15T00:10:00Z",
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["metrics", "node/web-1"];
    args.extend(more);
    args.extend(RANGE);
    args
}

#[tokio::test]
async fn a_chart_is_plain_text_where_no_terminal_is() {
    let world = world(
        SeriesType::Gauge,
        &[
            ("0", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
            ("1", &[2.0; 8]),
        ],
    )
    .await;
    let output = world.run(&args(&["m{mode=idle}"])).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let text = out(&output);
    assert!(text.is_ascii() && !text.contains('\u{1b}'), "{text}");
    assert!(
        text.lines()
            .all(|line| line.len() <= 80 && line == line.trim_end()),
        "{text}"
    );
    assert!(
        text.starts_with("m{mode=\"idle\"} on node/web-1\n"),
        "{text}"
    );
    for line in ["8 +", "0 +", "  00:00", "UTC"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let legend: Vec<_> = text.lines().rev().take(2).collect();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(legend[1]), ["*", "cpu=0", "1", "8", "8"], "{text}");
    assert_eq!(words(legend[0]), ["+", "cpu=1", "2", "2", "2"], "{text}");
    let asked = world
        .fake
        .seen
        .lock()
        .unwrap()
        .metrics_asked
        .clone()
        .unwrap();
    assert_eq!((asked.node.as_str(), asked.name.as_str()), ("web-1", "m"));
    assert_eq!(asked.matchers[0].value, "idle");
    assert_eq!((asked.from_ms, asked.to_ms), (BEGIN, BEGIN + 600_000));
    assert!((5000..20_000).contains(&asked.step_ms), "{}", asked.step_ms);
}

#[tokio::test]
async fn a_long_chart_asks_for_whole_minutes_or_hours() {
    let world = world(SeriesType::Gauge, &[("0", &[1.0, 2.0])]).await;
    for (range, whole) in [("2h", 60_000), ("2d", 60_000), ("20d", 3_600_000)] {
        let asked = ["metrics", "node/web-1", "m", "--range", range];
        let output = world.run(&asked).await;
        assert_eq!(code(&output), 0, "{}", err(&output));
        let seen = world.fake.seen.lock().unwrap();
        let step = seen.metrics_asked.clone().unwrap().step_ms;
        assert!(step > 0 && step.is_multiple_of(whole), "{range}: {step}");
    }
}

#[tokio::test]
async fn a_terminal_that_can_gets_dots() {
    let world = world(SeriesType::Gauge, &[("0", &[1.0, 2.0, 3.0])]).await;
    for (lang, term, dots) in [
        ("C.UTF-8", "xterm", true),
        ("C", "xterm", false),
        ("C.UTF-8", "dumb", false),
    ] {
        let mut command = world.command(&args(&["m"]));
        command.env("LC_ALL", lang).env("TERM", term);
        let shown = terminal::run_as(command, "", term).await;
        assert!(shown.status.success(), "{}", shown.text);
        let has = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
        assert_eq!(
            shown.text.contains(has),
            dots,
            "{lang} {term}: {}",
            shown.text
        );
        assert_eq!(shown.text.is_ascii(), !dots, "{}", shown.text);
        assert!(shown.controls().is_empty(), "{:?}", shown.text);
    }
}

#[tokio::test]
async fn more_lines_than_can_be_told_apart_are_counted() {
    let names: Vec<String> = (0..9).map(|number| number.to_string()).collect();
    let values: Vec<[f64; 1]> = (0..9).map(|number| [f64::from(number)]).collect();
    let series: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(name, values)| (name.as_str(), values.as_slice()))
        .collect();
    let world = world(SeriesType::Gauge, &series).await;
    let output = world.run(&args(&["m"])).await;
    assert!(
        err(&output).starts_with("3 more series are not shown, lower ones: "),
        "{}",
        err(&output)
    );
    assert!(err(&output).contains("'m{cpu=\"8\"}'"), "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("cpu=8") && text.contains("cpu=3"), "{text}");
    assert!(!text.contains("cpu=2"), "{text}");
}

#[tokio::test]
async fn points_in_json_and_csv() {
    let world = world(SeriesType::Counter, &[("0", &[10.0, 40.0])]).await;
    let output = world.run(&args(&["m", "-o", "json", "--rate"])).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let points: Value = serde_json::from_str(&out(&output)).unwrap();
    let labels = json!({"cpu": "0", "mode": "idle"});
    let point = |time: &str, value: f64, increase: Value, rate: Value| {
        json!({
            "time": time, "node": "web-1", "name": "m", "labels": labels, "value": value, "min": value,
            "max": value, "sum": value, "count": 1, "increase": increase, "increase_per_second": rate,
        })
    };
    assert_eq!(
        points,
        json!([
            point("2023-11-15T00:00:00.000Z", 10.0, Value::Null, Value::Null),
            point("2023-11-15T00:01:00.000Z", 40.0, json!(30.0), json!(0.5)),
        ])
    );
    assert_eq!(
        world
            .fake
            .seen
            .lock()
            .unwrap()
            .metrics_asked
            .clone()
            .unwrap()
            .step_ms,
        0
    );
    let output = world.run(&args(&["m", "-o", "csv", "--step", "1m"])).await;
    let text = out(&output);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.starts_with("time,node,name,labels,value,min,max,sum,count,increase\n"),
        "{text}"
    );
    let asked = world
        .fake
        .seen
        .lock()
        .unwrap()
        .metrics_asked
        .clone()
        .unwrap();
    assert_eq!(asked.step_ms, 60_000);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let world = world(SeriesType::Gauge, &[("0", &[1.0])]).await;
    for (more, said) in [
        (
            &["m", "--rate"][..],
            "m is a gauge, only counters have a rate",
        ),
        (&["m", "-o", "name"], "points have no names"),
        (&["m{cpu}"], "after `cpu` comes = or !="),
    ] {
        let output = world.run(&args(more)).await;
        assert_eq!(code(&output), 2, "{more:?}: {}", err(&output));
        assert!(err(&output).contains(said), "{}", err(&output));
    }
    let backwards = ["metrics", "node/web-1", "m", "--from", "-1m", "--to", "-2m"];
    let output = world.run(&backwards).await;
    assert_eq!(code(&output), 2, "{}", err(&output));
    assert!(err(&output).contains("is not before"), "{}", err(&output));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    let world = world(SeriesType::Gauge, &[("0", &[1.0]), ("1", &[1.0])]).await;
    world.fake.seen.lock().unwrap().metrics.pop();
    let output = world.run(&args(&["m", "-o", "json"])).await;
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(
        err(&output).contains("the answer is incomplete"),
        "{}",
        err(&output)
    );
    assert_eq!(out(&output), "");
}
