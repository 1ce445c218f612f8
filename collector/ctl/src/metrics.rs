//! `nexusctl metrics`: a metric of a node over time, as a chart or as points.
//!
//! A chart asks for one step a column; the other formats ask for what is kept, unless `--step` says otherwise.

mod chart;
mod scale;
mod series;
mod words;

use std::time::Duration;

use nexus_proto::{
    agent::v1::SeriesType,
    limits,
    operator::v1::{
        LabelMatcher, MetricHead, MetricPoint, ReadMetricsRequest, read_metrics_response::Kind,
    },
    time::Timestamp,
};

use self::{
    chart::{Canvas, Ink},
    series::Series,
    words::Wanted,
};
use crate::{
    cli::MetricsArgs,
    connection::{Collector, fault, no_such_node},
    fault::{Fault, Outcome},
    output::{self, Cell, Field, Format, Printer, Shown},
    session::{Session, within},
    terminal,
    visible::visible,
    when,
};

/// Series of one chart: more cannot be told apart.
const DRAWN: usize = 6;

/// What the collector answered.
struct Answer {
    head: MetricHead,
    series: Vec<Series>,
}

pub(crate) async fn metrics(session: &Session, args: &MetricsArgs) -> Outcome {
    let wanted = Wanted::parse(&args.words)?;
    let (from, to) = range(session, args)?;
    let chart = match args.output.output {
        Format::Table | Format::Wide => Some(Canvas::of_stdout()),
        Format::Name => {
            return Err(
                Fault::usage("command line: -o name", "points have no names")
                    .hint("formats for points are json, jsonl, yaml and csv"),
            );
        }
        Format::Json | Format::Jsonl | Format::Yaml | Format::Csv => None,
    };
    let step = match (args.step, &chart) {
        (Some(step), _) => step,
        (None, Some(canvas)) => canvas.step(to.since(from)),
        (None, None) => Duration::ZERO,
    };
    let request = ReadMetricsRequest {
        node: wanted.node.clone(),
        name: wanted.metric.clone(),
        matchers: wanted.matchers.iter().map(matcher).collect(),
        from_ms: from.as_ms(),
        to_ms: to.as_ms(),
        step_ms: u64::try_from(step.as_millis()).unwrap_or(u64::MAX),
    };
    let what = format!("read metrics of {}", wanted.node);
    let work = async {
        let mut collector = session.connect().await?;
        read(&mut collector, request).await
    };
    let mut answer = within(args.timeout, &what, work).await?;
    if args.rate {
        if answer.head.r#type() != SeriesType::Counter {
            let kind = match answer.head.r#type() {
                SeriesType::Gauge => "a gauge",
                _ => "of no known type",
            };
            let why = format!("{} is {kind}, only counters have a rate", wanted.metric);
            return Err(Fault::usage("command line: --rate", why));
        }
        answer.series.iter_mut().for_each(Series::turn_to_rates);
    }
    match chart {
        Some(canvas) => draw(session, args, &wanted, &canvas.over(from, to), answer),
        None => print(session, args, &wanted, answer),
    }
}

/// Both ends of what is asked for.
fn range(session: &Session, args: &MetricsArgs) -> Outcome<(Timestamp, Timestamp)> {
    let time = |flag: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => when::parse_time(text, session.now())
            .map(Some)
            .map_err(|why| Fault::usage(format!("command line: {flag}"), why)),
    };
    let to = time("--to", &args.to)?.unwrap_or_else(|| session.now());
    let from = time("--from", &args.from)?.unwrap_or_else(|| to.before(args.range));
    if from >= to {
        let why = format!("{from} is not before {to}");
        return Err(Fault::usage("command line: --from", why));
    }
    Ok((from, to))
}

fn matcher(matcher: &words::Matcher) -> LabelMatcher {
    LabelMatcher {
        label: matcher.label.clone(),
        value: matcher.value.clone(),
        unequal: matcher.unequal,
    }
}

async fn read(collector: &mut Collector, request: ReadMetricsRequest) -> Outcome<Answer> {
    let metric = request.name.clone();
    let incomplete = |why: &str| Fault::new(format!("read {metric}"), why);
    let request = collector.request(request);
    let answer = collector.client.read_metrics(request).await;
    let mut stream = answer.map_err(no_such_node)?.into_inner();
    let mut head: Option<MetricHead> = None;
    let mut series: Vec<Series> = Vec::new();
    let mut points = 0;
    while let Some(message) = stream.message().await.map_err(fault)? {
        match message.kind {
            Some(Kind::Head(first)) if head.is_none() => head = Some(first),
            Some(Kind::Series(piece)) if head.is_some() => {
                points += piece.points.len();
                // A collector gives no more than that.
                if points > limits::METRIC_POINTS {
                    return Err(incomplete(
                        "the answer has more points than an answer holds",
                    ));
                }
                Series::gather(&mut series, piece);
            }
            _ => return Err(incomplete("the answer is out of order")),
        }
    }
    let head = head.ok_or_else(|| incomplete("the answer is empty"))?;
    if u64::try_from(series.len()) != Ok(head.series) {
        return Err(incomplete("the answer is incomplete"));
    }
    Ok(Answer { head, series })
}

/// One row a point.
fn print(session: &Session, args: &MetricsArgs, wanted: &Wanted, answer: Answer) -> Outcome {
    let mut fields: Vec<_> = [
        "time", "node", "name", "labels", "value", "min", "max", "sum", "count", "increase",
    ]
    .iter()
    .map(|key| Field::new(key, Shown::Always))
    .collect();
    if args.rate {
        fields.push(Field::new("increase_per_second", Shown::Always));
    }
    let style = session.style(&args.output);
    let mut printer = Printer::new(style, fields, output::stdout())?;
    let node = Cell::text(answer.head.node);
    for series in &answer.series {
        for point in &series.points {
            let mut row = vec![
                Cell::Time(Timestamp(point.time_ms)),
                node.clone(),
                Cell::text(wanted.metric.clone()),
                Cell::Labels(series.labels.clone()),
            ];
            row.extend(numbers(point));
            if args.rate {
                row.push(series::rate(point).map_or(Cell::Null, Cell::Real));
            }
            printer.row(&row)?;
        }
    }
    printer.finish().map(drop)
}

/// The cells from `value` to `increase`.
fn numbers(point: &MetricPoint) -> [Cell; 6] {
    [
        Cell::Real(point.last),
        Cell::Real(point.min.unwrap_or(point.last)),
        Cell::Real(point.max.unwrap_or(point.last)),
        Cell::Real(point.sum.unwrap_or(point.last)),
        Cell::Unsigned(point.count),
        point.increase.map_or(Cell::Null, Cell::Real),
    ]
}

fn draw(
    session: &Session,
    args: &MetricsArgs,
    wanted: &Wanted,
    canvas: &Canvas,
    answer: Answer,
) -> Outcome {
    let style = session.style(&args.output);
    let mut all = answer.series;
    let count = all.len();
    // The highest first: what one looks for in a chart. Those of equal height stay in order of their labels.
    all.sort_by(|a, b| b.highest().total_cmp(&a.highest()));
    all.truncate(DRAWN);
    let unit = scale::Unit::of(&wanted.metric, args.rate);
    let mut title = format!("{} on node/{}", wanted.series(), answer.head.node);
    if args.rate {
        title.push_str(", increase per second");
    }
    let mut text = visible(&title).into_owned();
    text.push('\n');
    text.push_str(&canvas.draw(&all, unit, style.paint));
    // Text of nodes is escaped by then, and colours are meant.
    output::painted(&text)?;
    if count > all.len() {
        let rest = u64::try_from(count - all.len()).unwrap_or(u64::MAX);
        let (verb, what) = if rest == 1 {
            ("is", "a lower one")
        } else {
            ("are", "lower ones")
        };
        terminal::say(&format!(
            "{rest} more series {verb} not shown, {what}: choose by labels, as in '{}', or see all with -o json",
            words::example(&wanted.metric, &all),
        ));
    }
    Ok(())
}

impl Canvas {
    /// For standard output as it is.
    fn of_stdout() -> Self {
        let (width, unicode) = output::screen();
        Self::new(width, if unicode { Ink::Dots } else { Ink::Marks })
    }
}
