//! Reading the audit chain, row by row, as it is stored: whoever reads it checks the hashes.

use nexus_proto::operator::v1::AuditRow;
use nexus_runtime::tasks::Tasks;
use nexus_store::Store;
use tokio::sync::mpsc;
use tonic::Status;

use super::status::of_store;

/// Rows read at once.
const ROWS: usize = 500;

/// Sends the rows from `from_seq` on that stand in the chain now.
pub(crate) async fn send_rows(
    store: Store,
    tasks: Tasks,
    from_seq: u64,
    out: mpsc::Sender<Result<AuditRow, Status>>,
) {
    let mut next = from_seq.max(1);
    loop {
        let read = move |store: &Store| store.audit_rows(next, ROWS);
        match crate::reads::read(&tasks, &store, "audit rows", read).await {
            Ok(rows) => {
                let last = rows.len() < ROWS;
                for row in rows {
                    next = row.seq.saturating_add(1);
                    if out.send(Ok(row)).await.is_err() {
                        return;
                    }
                }
                if last {
                    return;
                }
            }
            Err(error) => {
                // Whoever asked may be gone by now.
                let _gone = out
                    .send(Err(of_store("read the audit chain", &error)))
                    .await;
                return;
            }
        }
    }
}
