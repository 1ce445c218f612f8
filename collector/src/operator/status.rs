//! Errors as gRPC statuses: `what failed: why` in the message, a hint in the metadata.

use nexus_proto::HINT;
use nexus_runtime::errors;
use nexus_store::StoreError;
use tonic::{Code, Status, metadata::MetadataValue};

/// A status that says what failed and why.
pub(crate) fn failed(code: Code, what: &str, error: &(dyn std::error::Error + 'static)) -> Status {
    Status::new(code, format!("{what}: {}", errors::chain(error)))
}

/// With a hint. One that cannot travel as metadata is left out.
pub(crate) fn hinted(mut status: Status, hint: &str) -> Status {
    if let Ok(value) = MetadataValue::try_from(hint) {
        status.metadata_mut().insert(HINT, value);
    }
    status
}

/// What a failure of the store means to a caller.
pub(crate) fn of_store(what: &str, error: &StoreError) -> Status {
    let code = match error {
        StoreError::Invalid(_) | StoreError::Query(_) => Code::InvalidArgument,
        StoreError::TooMany(_) => Code::ResourceExhausted,
        StoreError::Deadline => Code::DeadlineExceeded,
        StoreError::Full(_)
        | StoreError::Unwritable(_)
        | StoreError::Unapplied(_)
        | StoreError::Closed => Code::Unavailable,
        StoreError::Statement(_)
        | StoreError::Sqlite { .. }
        | StoreError::File { .. }
        | StoreError::Missing { .. }
        | StoreError::Newer { .. }
        | StoreError::Foreign { .. }
        | StoreError::InUse { .. }
        | StoreError::Exists { .. }
        | StoreError::Corrupt { .. } => Code::Internal,
    };
    failed(code, what, error)
}
