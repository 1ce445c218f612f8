//! Reports read back from the head, each node's in the order they were committed.

use std::collections::HashMap;

use nexus_proto::{
    agent::v1::{self as wire, record::Body},
    ids::{Incarnation, NodeId},
    metrics::{Decoder, KeyPool},
    store::v1,
    time::Timestamp,
};
use prost::Message as _;

use super::Row;
use crate::{StoreError, chunks::Resume, compact::Newest, writer::chain};

/// Where a node's chain of reports stands.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) decoder: Decoder,
    /// Of the last report.
    pub(crate) seq: u64,
}

/// A report that was taken in; its values are the decoder's.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// The row, and when it was committed.
    pub(crate) row: (i64, Timestamp),
    pub(crate) seq: u64,
    pub(crate) time: Timestamp,
    pub(crate) interval_ms: u32,
    pub(crate) decoder: &'a Decoder,
}

/// Chains by node and life.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) chains: HashMap<(NodeId, Incarnation), Chain>,
    keys: KeyPool,
    /// Reports that could not be read.
    pub(crate) lost: u64,
}

impl Replay {
    pub(crate) fn new(keys: KeyPool) -> Self {
        Self {
            keys,
            ..Self::default()
        }
    }

    /// Puts a chain where it stood after a report.
    fn resume(&mut self, node: NodeId, newest: &Newest) -> Result<(), StoreError> {
        let mut decoder = Decoder::pooled(self.keys.clone());
        if let Some(Body::Metrics(report)) = &newest.record.body {
            decoder
                .take(report)
                .map_err(|e| StoreError::corrupt("where a node's metrics stood", e))?;
        }
        let seq = newest.record.seq;
        let of = (node, newest.incarnation);
        self.chains.insert(of, Chain { decoder, seq });
        Ok(())
    }

    /// Puts the chain of a node where its chunks end. A state that is damaged is told of, and `None`: nothing more is
    /// known of the node until its next key frame.
    pub(crate) fn take_up(&mut self, resume: &Resume) -> Result<Option<Newest>, StoreError> {
        let stood = Newest::unpack(&resume.state);
        match stood.and_then(|stood| self.resume(resume.node, &stood).map(|()| stood)) {
            Ok(stood) => Ok(Some(stood)),
            Err(error @ StoreError::Corrupt { .. }) => {
                let node = resume.node;
                tracing::error!(%node, error = chain(&error), "metrics go on at the next key frame");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes in those reports of a row that `wanted` names.
    pub(crate) fn take(
        &mut self,
        row: &Row,
        wanted: impl Fn(NodeId) -> bool,
        mut each: impl FnMut(Taken<'_>),
    ) -> Result<(), StoreError> {
        for part in &row.parts {
            let bad = |e| StoreError::corrupt("an id in the head of metrics", e);
            let node = NodeId::from_wire(&part.node).map_err(bad)?;
            let incarnation = Incarnation::from_wire(&part.incarnation).map_err(bad)?;
            if wanted(node) {
                self.part(row, (node, incarnation), part, &mut each);
            }
        }
        Ok(())
    }

    fn part(
        &mut self,
        row: &Row,
        (node, incarnation): (NodeId, Incarnation),
        part: &v1::MetricReports,
        each: &mut impl FnMut(Taken<'_>),
    ) {
        let keys = &self.keys;
        let stands = self
            .chains
            .entry((node, incarnation))
            .or_insert_with(|| Chain {
                decoder: Decoder::pooled(keys.clone()),
                ..Chain::default()
            });
        if part.base != 0 && part.base != stands.seq {
            // What comes between is gone: nothing is known until the next key frame.
            stands.decoder = Decoder::pooled(keys.clone());
        }
        for encoded in &part.records {
            match read(encoded, &mut stands.decoder) {
                Ok((seq, time, interval_ms)) => {
                    // A commit that failed and stands nevertheless was not acknowledged: its reports came again.
                    let again = seq <= stands.seq;
                    stands.seq = seq;
                    if again {
                        continue;
                    }
                    each(Taken {
                        node,
                        incarnation,
                        row: (row.index, row.time),
                        seq,
                        time,
                        interval_ms,
                        decoder: &stands.decoder,
                    });
                }
                Err(error) => {
                    self.lost += 1;
                    tracing::error!(%node, row = row.index, error = chain(&error), "a metric report cannot be read");
                }
            }
        }
    }
}

fn read(encoded: &[u8], decoder: &mut Decoder) -> Result<(u64, Timestamp, u32), StoreError> {
    let damaged = "a metric report";
    let record = wire::Record::decode(encoded).map_err(|e| StoreError::corrupt(damaged, e))?;
    let Some(Body::Metrics(report)) = record.body else {
        return Err(StoreError::Corrupt {
            what: "a record without metrics; it".to_owned(),
            source: None,
        });
    };
    decoder
        .take(&report)
        .map_err(|e| StoreError::corrupt(damaged, e))?;
    Ok((record.seq, Timestamp(record.time_ms), report.interval_ms))
}
