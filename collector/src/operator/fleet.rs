//! What operators ask about nodes: lists, labels, SQL.

use std::{collections::BTreeMap, time::Duration};

use nexus_proto::{
    agent::v1::{LabelsUpdate, collector_frame::Kind},
    ids::NodeId,
    limits,
    operator::v1::{
        Column, ListNodesRequest, ListNodesResponse, Node, QueryRequest, QueryResponse, QueryRow,
        QuerySchemaResponse, SetLabelsRequest, SqlValue, View, sql_value,
    },
    selector::{self, FieldSelector, Selector},
    time::Timestamp,
};
use nexus_store::{NodeRow, QueryOptions, QueryStream, Store, StoreError, Value, entry::LabelsSet};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Operators,
    gate::Act,
    status::{failed, hinted, of_store},
};

/// Fields of a node that a field selector may name.
const NODE_FIELDS: &[&str] = &[
    "id",
    "name",
    "state",
    "os",
    "kernel",
    "arch",
    "agent_version",
    "transport",
    "key_exchange",
    "shard",
    "slot",
    "address",
];
/// Nodes of one message.
const NODES_A_MESSAGE: usize = 200;
/// Rows of one message.
const ROWS_A_MESSAGE: usize = 500;
/// A reader that takes no message of a query's answer for this long has gone away: a query holds one of few places,
/// and what it reads cannot be cleared away meanwhile.
const STALLED: Duration = Duration::from_secs(60);

impl Operators {
    /// Nodes that match, by name, in messages of bounded size.
    pub(crate) async fn list_nodes(
        &self,
        request: ListNodesRequest,
    ) -> Result<Vec<ListNodesResponse>, Status> {
        const WHAT: &str = "list nodes";
        let selector = Selector::parse(&request.selector)
            .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        let fields = FieldSelector::parse(&request.field_selector, NODE_FIELDS)
            .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        let as_of = request.as_of_ms.map(Timestamp);
        let rows = if request.names.is_empty() {
            self.nodes(as_of).await?
        } else {
            self.nodes_named(request.names, as_of).await?
        };
        let limit = match request.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let nodes: Vec<Node> = rows
            .into_iter()
            .filter(|row| selector.matches(&row.labels))
            .map(|row| self.as_it_is(row, as_of))
            .map(to_wire)
            .filter(|node| fields.is_empty() || matches_fields(&fields, node))
            .take(limit)
            .collect();
        Ok(nodes
            .chunks(NODES_A_MESSAGE)
            .map(|nodes| ListNodesResponse {
                nodes: nodes.to_vec(),
            })
            .collect())
    }

    /// What a connected agent complains of is why its state is not all it should be; and it may have moved
    /// since its session began.
    fn as_it_is(&self, mut row: NodeRow, as_of: Option<Timestamp>) -> NodeRow {
        if as_of.is_none()
            && let Some(session) = self.registry.get(row.id)
        {
            row.state_reason = session.trouble();
            row.address = session.peer.address().to_string();
            row.rtt_us = session.peer.rtt_us();
        }
        row
    }

    /// Changes a node's labels.
    pub(crate) async fn set_labels(
        &self,
        act: &Act,
        request: SetLabelsRequest,
    ) -> Result<Node, Status> {
        const WHAT: &str = "set labels";
        for (key, value) in &request.set {
            selector::check_key(key)
                .and_then(|()| selector::check_value(value))
                .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        }
        let named = self.nodes_named(vec![request.node.clone()], None).await?;
        let id = named.first().map(|row| row.id);
        let id = id.ok_or_else(|| no_such_node(&request.node))?;
        // Labels are read, changed and written as a whole: one change of a node at a time.
        let gate = self.registry.gate(id);
        let _one_at_a_time = gate.lock().await;
        let row = self.node(id)?;
        let mut labels = row.labels.clone();
        for key in &request.remove {
            labels.remove(key);
        }
        for (key, value) in &request.set {
            match labels.get(key) {
                Some(held) if held != value && !request.overwrite => {
                    let status = Status::failed_precondition(format!(
                        "{WHAT}: {} has {key}={held} already",
                        row.name
                    ));
                    return Err(hinted(status, "--overwrite replaces it"));
                }
                _ => {
                    labels.insert(key.clone(), value.clone());
                }
            }
        }
        if labels.len() > limits::LABELS {
            return Err(Status::invalid_argument(format!(
                "{WHAT}: {} would have {} labels, at most {} are allowed",
                row.name,
                labels.len(),
                limits::LABELS
            )));
        }
        let detail = serde_json::json!({
            "name": row.name, "before": row.labels, "after": labels,
        });
        act.record(format!("nodes/{id}"), detail).await?;
        let entry = LabelsSet {
            node: id.to_wire(),
            labels: labels.clone().into_iter().collect(),
            time_ms: self.clock.now().as_ms(),
        };
        self.store
            .append_for(id, entry)
            .await
            .map_err(|error| of_store(WHAT, &error))?;
        if let Some(session) = self.registry.get(id) {
            // One that misses it is told at its next Welcome.
            session.send(Kind::Labels(LabelsUpdate {
                labels: labels.into_iter().collect(),
            }));
        }
        self.node(id).map(to_wire)
    }

    /// Begins a query; its rows are sent by [`send_rows`].
    pub(crate) async fn query(&self, request: QueryRequest) -> Result<QueryStream, Status> {
        const WHAT: &str = "query";
        if request.sql.len() > limits::SQL_BYTES {
            return Err(Status::invalid_argument(format!(
                "{WHAT}: the statement has {} bytes, at most {} are allowed",
                request.sql.len(),
                limits::SQL_BYTES
            )));
        }
        let most = *self.query.borrow();
        let timeout = match request.timeout_ms {
            0 => most.timeout,
            ms => Duration::from_millis(ms).min(most.timeout),
        };
        let limit = match usize::try_from(request.limit).unwrap_or(usize::MAX) {
            0 => most.rows,
            limit => limit.min(most.rows),
        };
        let options = QueryOptions {
            as_of: request.as_of_ms.map(Timestamp),
            limit,
            timeout,
            nodes: None,
        };
        self.store
            .query(&request.sql, options)
            .await
            .map_err(|error| match &error {
                StoreError::Query(why) if names_nothing(why) => hinted(
                    of_store(WHAT, &error),
                    "`nexusctl query --schema` lists tables and columns",
                ),
                _ => of_store(WHAT, &error),
            })
    }

    /// The views a query may name.
    pub(crate) fn schema(&self) -> QuerySchemaResponse {
        let column = |column: nexus_store::ColumnInfo| Column {
            name: column.name,
            r#type: column.kind.to_owned(),
            about: column.about,
        };
        let views = self.store.schema().into_iter().map(|view| View {
            name: view.name,
            about: view.about,
            columns: view.columns.into_iter().map(column).collect(),
        });
        QuerySchemaResponse {
            views: views.collect(),
        }
    }

    /// The nodes of these names or ids, in the order asked, each once.
    pub(super) async fn nodes_named(
        &self,
        names: Vec<String>,
        as_of: Option<Timestamp>,
    ) -> Result<Vec<NodeRow>, Status> {
        if as_of.is_some() {
            return named(self.nodes(as_of).await?, &names);
        }
        let read = move |store: &Store| {
            let mut rows: BTreeMap<NodeId, NodeRow> = BTreeMap::new();
            for name in &names {
                rows.extend(
                    store
                        .nodes_called(name)?
                        .into_iter()
                        .map(|row| (row.id, row)),
                );
            }
            Ok((rows.into_values().collect(), names))
        };
        let (rows, names) = crate::reads::read(&self.tasks, &self.store, "nodes", read)
            .await
            .map_err(|error| of_store("read the nodes", &error))?;
        named(rows, &names)
    }

    async fn nodes(&self, as_of: Option<Timestamp>) -> Result<Vec<NodeRow>, Status> {
        let read = move |store: &Store| store.nodes(as_of);
        crate::reads::read(&self.tasks, &self.store, "nodes", read)
            .await
            .map_err(|error| of_store("read the nodes", &error))
    }

    fn node(&self, id: NodeId) -> Result<NodeRow, Status> {
        self.store
            .node(id)
            .map_err(|error| of_store("read a node", &error))?
            .ok_or_else(|| Status::not_found(format!("read a node: there is no node {id}")))
    }
}

/// Sends an answer row by row, in messages of bounded size, as fast as it is read. The query ends with this:
/// when nobody waits for it any more, and when the collector ends.
pub(crate) async fn send_rows(
    mut rows: QueryStream,
    stop: CancellationToken,
    out: mpsc::Sender<Result<QueryResponse, Status>>,
) {
    let columns = std::mem::take(&mut rows.columns);
    let head = QueryResponse {
        columns,
        ..QueryResponse::default()
    };
    if out.send(Ok(head)).await.is_err() {
        return;
    }
    loop {
        let batch = tokio::select! {
            biased;
            () = out.closed() => return,
            () = stop.cancelled() => {
                let status = Status::unavailable("query: the collector is shutting down");
                // Whoever asked may be gone by now.
                let _gone = out.send(Err(status)).await;
                return;
            }
            batch = rows.next() => batch,
        };
        let batch = match batch {
            None => break,
            Some(Ok(batch)) => batch,
            Some(Err(error)) => {
                // As above.
                let _gone = out.send(Err(of_store("query", &error))).await;
                return;
            }
        };
        let mut batch = batch.into_iter().map(row_to_wire).peekable();
        while batch.peek().is_some() {
            let message = QueryResponse {
                rows: batch.by_ref().take(ROWS_A_MESSAGE).collect(),
                ..QueryResponse::default()
            };
            match tokio::time::timeout(STALLED, out.send(Ok(message))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    drop(rows);
                    let status = Status::deadline_exceeded(
                        "query: its answer was not read, so it was ended before its last row",
                    );
                    // Whoever reads on learns that this is not all.
                    let _gone = out.send(Err(status)).await;
                    return;
                }
            }
        }
    }
    if rows.truncated() {
        let tail = QueryResponse {
            truncated: true,
            ..QueryResponse::default()
        };
        // As above.
        let _gone = out.send(Ok(tail)).await;
    }
}

fn row_to_wire(row: Vec<Value>) -> QueryRow {
    let values = row.into_iter().map(|value| SqlValue {
        value: match value {
            Value::Null => None,
            Value::Integer(number) => Some(sql_value::Value::Integer(number)),
            Value::Real(number) => Some(sql_value::Value::Real(number)),
            Value::Text(text) => Some(sql_value::Value::Text(text)),
            Value::Blob(bytes) => Some(sql_value::Value::Blob(bytes)),
        },
    });
    QueryRow {
        values: values.collect(),
    }
}

/// The nodes of these names or ids, in the order asked, each once.
fn named(rows: Vec<NodeRow>, names: &[String]) -> Result<Vec<NodeRow>, Status> {
    let mut by_name: BTreeMap<&str, Vec<&NodeRow>> = BTreeMap::new();
    for row in &rows {
        by_name.entry(&row.name).or_default().push(row);
    }
    let mut found: Vec<NodeRow> = Vec::new();
    for name in names {
        let row = match name.parse::<NodeId>() {
            Ok(id) => rows.iter().find(|row| row.id == id),
            Err(_) => match by_name.get(name.as_str()).map(Vec::as_slice) {
                Some([row]) => Some(*row),
                Some(several) => {
                    let ids: Vec<_> = several.iter().map(|row| row.id.to_string()).collect();
                    return Err(hinted(
                        Status::failed_precondition(format!(
                            "find the node `{name}`: the name is ambiguous: {}",
                            ids.join(", ")
                        )),
                        "use one of the ids instead",
                    ));
                }
                None => None,
            },
        };
        let row = row.ok_or_else(|| no_such_node(name))?;
        if !found.iter().any(|known| known.id == row.id) {
            found.push(row.clone());
        }
    }
    Ok(found)
}

pub(super) fn no_such_node(name: &str) -> Status {
    Status::not_found(format!("find the node `{name}`: there is no such node"))
}

fn matches_fields(fields: &FieldSelector, node: &Node) -> bool {
    let id = nexus_proto::ids::NodeId::from_wire(&node.id)
        .map(|id| id.to_string())
        .unwrap_or_default();
    let (shard, slot) = (node.shard.to_string(), node.slot.to_string());
    fields.matches(|field| {
        Some(match field {
            "id" => &id,
            "name" => &node.name,
            "state" => &node.state,
            "os" => &node.os,
            "kernel" => &node.kernel,
            "arch" => &node.arch,
            "agent_version" => &node.agent_version,
            "transport" => &node.transport,
            "key_exchange" => &node.key_exchange,
            "shard" => &shard,
            "slot" => &slot,
            "address" => &node.address,
            _ => return None,
        })
    })
}

/// Of what SQLite says of a statement.
fn names_nothing(why: &str) -> bool {
    ["no such table", "no such column"]
        .iter()
        .any(|begin| why.starts_with(begin))
}

fn to_wire(row: NodeRow) -> Node {
    Node {
        id: row.id.to_wire(),
        name: row.name,
        state: row.state,
        labels: row.labels.into_iter().collect(),
        os: row.os,
        kernel: row.kernel,
        arch: row.arch,
        agent_version: row.agent_version,
        transport: row.transport,
        key_exchange: row.key_exchange,
        last_seen_ms: row.last_seen.map(Timestamp::as_ms),
        enrolled_at_ms: row.enrolled_at.as_ms(),
        shard: row.shard.into(),
        slot: row.slot.into(),
        incarnation: row.incarnation.to_wire(),
        rtt_us: row.rtt_us,
        certificate_expires_ms: row.certificate_expires.map(Timestamp::as_ms),
        state_reason: row.state_reason,
        address: row.address,
    }
}
