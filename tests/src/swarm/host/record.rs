//! A shape in a form that one process writes and another reads, so that all parts of a swarm make their hosts
//! after the same look at this one.

use std::sync::Arc;

use nexus_proto::{
    metrics::{SeriesKey, SeriesType},
    record::{Cell, Row, Section},
};
use serde::{Deserialize, Serialize};

use super::{Shape, Template};

/// A shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShapeRecord {
    series: Vec<TemplateRecord>,
    sections: Vec<(String, Vec<Vec<CellRecord>>)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TemplateRecord {
    name: String,
    labels: Vec<(String, String)>,
    kind: KindRecord,
    /// Value, rate and step as the bits of their doubles: written in decimals they could come back as others.
    bits: [u64; 3],
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum KindRecord {
    Untyped,
    Counter,
    Gauge,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum CellRecord {
    Null,
    Text(String),
    Integer(i64),
}

impl From<&Shape> for ShapeRecord {
    fn from(shape: &Shape) -> Self {
        let rows = |section: &Section| {
            let rows = section.rows.iter();
            rows.map(|row| row.0.iter().map(CellRecord::from).collect())
                .collect()
        };
        let sections = shape.sections.iter();
        Self {
            series: shape.series.iter().map(TemplateRecord::from).collect(),
            sections: sections
                .map(|section| (section.kind.clone(), rows(section)))
                .collect(),
        }
    }
}

impl From<ShapeRecord> for Shape {
    fn from(record: ShapeRecord) -> Self {
        let row = |cells: Vec<CellRecord>| Row(cells.into_iter().map(Cell::from).collect());
        let sections = record.sections.into_iter();
        Self {
            series: record.series.into_iter().map(Template::from).collect(),
            sections: sections
                .map(|(kind, rows)| Section::new(&kind, rows.into_iter().map(row).collect()))
                .collect(),
        }
    }
}

impl From<&Template> for TemplateRecord {
    fn from(template: &Template) -> Self {
        Self {
            name: template.key.name.clone(),
            labels: template.key.labels.clone(),
            kind: match template.kind {
                SeriesType::Untyped => KindRecord::Untyped,
                SeriesType::Counter => KindRecord::Counter,
                SeriesType::Gauge => KindRecord::Gauge,
            },
            bits: [template.value, template.rate, template.step].map(f64::to_bits),
        }
    }
}

impl From<TemplateRecord> for Template {
    fn from(record: TemplateRecord) -> Self {
        let [value, rate, step] = record.bits.map(f64::from_bits);
        Self {
            key: Arc::new(SeriesKey {
                name: record.name,
                labels: record.labels,
            }),
            kind: match record.kind {
                KindRecord::Untyped => SeriesType::Untyped,
                KindRecord::Counter => SeriesType::Counter,
                KindRecord::Gauge => SeriesType::Gauge,
            },
            value,
            rate,
            step,
        }
    }
}

impl From<&Cell> for CellRecord {
    fn from(cell: &Cell) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Text(text) => Self::Text(text.clone()),
            Cell::Integer(number) => Self::Integer(*number),
        }
    }
}

impl From<CellRecord> for Cell {
    fn from(record: CellRecord) -> Self {
        match record {
            CellRecord::Null => Self::Null,
            CellRecord::Text(text) => Self::Text(text),
            CellRecord::Integer(number) => Self::Integer(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nexus_proto::time::Timestamp;

    use super::{super::Host, *};

    #[tokio::test]
    async fn hosts_after_a_record_are_those_after_the_shape_itself() {
        let shape = Shape::of_this_host(300, 40).await;
        let text = serde_json::to_string(&ShapeRecord::from(&shape)).unwrap();
        let record: ShapeRecord = serde_json::from_str(&text).unwrap();
        let again = Shape::from(record);
        assert_eq!(again.sections, shape.sections);
        assert!(again.rows() >= 40, "{again:?}");
        let run = |shape: Shape| {
            let mut host = Host::new(&Arc::new(shape), 7);
            let times = (1..=20).map(|n| Timestamp(1_700_000_000_000 + n * 10_000));
            times
                .map(|now| host.report(now, Duration::from_secs(10)))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(again), run(shape));
    }
}
