//! A request's id and span: one id names a request in every program's log.

use http::Extensions;
use nexus_proto::REQUEST_ID;
use nexus_transport::Peer;
use tonic::metadata::MetadataMap;
use tracing::Span;
use uuid::Uuid;

/// Bytes of a request id; a longer one is replaced.
const ID_BYTES: usize = 64;

/// The id the caller gave, or a new one.
pub(crate) fn request_id(metadata: &MetadataMap) -> String {
    metadata
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|text| is_id(text))
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Short, and nothing that could forge a line of a log.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=ID_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

/// The span of one call.
pub(crate) fn span(rpc: &'static str, request_id: &str, extensions: &Extensions) -> Span {
    let peer = extensions.get::<Peer>();
    let name = peer.and_then(|peer| peer.identity.as_ref()).map_or_else(
        || "anonymous".to_owned(),
        |identity| identity.spiffe.to_string(),
    );
    let remote = peer.map(|peer| peer.remote.to_string()).unwrap_or_default();
    tracing::info_span!("call", rpc, request_id, peer = name, remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_good_id_and_replaces_a_bad_one() {
        let mut metadata = MetadataMap::new();
        metadata.insert(REQUEST_ID, "abc-1".parse().unwrap());
        assert_eq!(request_id(&metadata), "abc-1");
        metadata.insert(REQUEST_ID, "a b".parse().unwrap());
        assert_ne!(request_id(&metadata), "a b");
        assert!(!is_id("") && !is_id(&"x".repeat(65)));
    }
}
