//! The HTTP side of the pages: plain HTTP/1.1 on the metrics port, read only.

use std::{convert::Infallible, future::Future, io, pin::Pin, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{exposition::Format, families, metrics, nodes::NodesPage};

/// What the pages ask of the rest of the program.
pub(crate) trait Source: Send + Sync + 'static {
    /// The page of all nodes, prepared where it keeps no call waiting: that takes a while in a large fleet.
    fn page(
        &self,
        asked: Asked,
        format: Format,
    ) -> Pin<Box<dyn Future<Output = Result<NodesPage, String>> + Send + '_>>;
    /// How many shards there are.
    fn shards(&self) -> u16;
    /// Brings measured levels up to date before they are shown.
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Why this collector cannot serve now; `None` when it can.
    fn not_ready(&self) -> Option<String>;
}

/// For people.
const PAGES: &str = "/metrics, /metrics/nodes, /healthz and /readyz";

struct Pages<S> {
    source: S,
    registry: Registry,
}

/// Serves until told to stop; answers under way are finished.
pub(crate) async fn serve(
    listener: TcpListener,
    source: impl Source,
    registry: Registry,
    stop: CancellationToken,
) -> io::Result<()> {
    axum::serve(listener, router(source, registry))
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

fn router<S: Source>(source: S, registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(own::<S>))
        .route("/metrics/nodes", get(nodes::<S>))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready::<S>))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                format!("there is no such page: {PAGES}\n"),
            )
        })
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, "pages are read with GET\n")
        })
        .with_state(Arc::new(Pages { source, registry }))
}

fn format_of(headers: &HeaderMap) -> Format {
    Format::negotiate(
        headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok()),
    )
}

async fn own<S: Source>(State(pages): State<Arc<Pages<S>>>, headers: HeaderMap) -> Response {
    pages.source.refresh().await;
    let format = format_of(&headers);
    match metrics::page(&pages.registry, format) {
        Ok(page) => ([(header::CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(error) => failed(&error.to_string()),
    }
}

async fn nodes<S: Source>(
    State(pages): State<Arc<Pages<S>>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let asked = match Asked::parse(query.as_deref().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    if let Some(shard) = asked.shard.filter(|shard| *shard >= pages.source.shards()) {
        let count = pages.source.shards();
        let why = format!("there is no shard {shard}, there are {count}, from 0 on\n");
        return (StatusCode::NOT_FOUND, why).into_response();
    }
    let format = format_of(&headers);
    let page = match pages.source.page(asked, format).await {
        Ok(page) => page,
        Err(why) => return failed(&why),
    };
    // One piece at a time, when the reader has taken the one before.
    let pieces = stream::iter(page.map(|piece| Ok::<_, Infallible>(Bytes::from(piece))));
    (
        [(header::CONTENT_TYPE, format.content_type())],
        Body::from_stream(pieces),
    )
        .into_response()
}

async fn ready<S: Source>(State(pages): State<Arc<Pages<S>>>) -> Response {
    match pages.source.not_ready() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn failed(why: &str) -> Response {
    tracing::error!(why, "a page could not be made");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response()
}

/// `?shard=N&collect=cpu,meminfo`; `collect` may be given several times, also as `collect[]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) shard: Option<u16>,
    pub(crate) collectors: Vec<String>,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace("%2C", ",").replace("%2c", ",");
            match key {
                "shard" => {
                    let shard = value
                        .parse()
                        .map_err(|_| format!("`{value}` is no shard"))?;
                    asked.shard = Some(shard);
                }
                "collect" | "collect[]" | "collect%5B%5D" | "collect%5b%5d" => {
                    for name in value.split(',').filter(|name| !name.is_empty()) {
                        if !families::COLLECTORS.iter().any(|(known, _)| *known == name) {
                            return Err(format!("there is no collector `{name}`"));
                        }
                        asked.collectors.push(name.to_owned());
                    }
                }
                _ => return Err(format!("`{key}` is neither shard nor collect")),
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use nexus_proto::time::Timestamp;

    use super::*;

    /// A source of two shards and no nodes.
    struct Empty;

    impl Source for Empty {
        fn page(
            &self,
            asked: Asked,
            format: Format,
        ) -> Pin<Box<dyn Future<Output = Result<NodesPage, String>> + Send + '_>> {
            let page = NodesPage::new(Vec::new(), &asked, format, Timestamp(1));
            Box::pin(async { Ok(page) })
        }

        fn shards(&self) -> u16 {
            2
        }

        fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(async {})
        }

        fn not_ready(&self) -> Option<String> {
            None
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_in_words() {
        use tower_service::Service as _;

        for (method, page, status, said) in [
            ("GET", "/metrics/nodes?shard=1", 200, "# EOF"),
            ("GET", "/metrics/nodes?shard=2", 404, "there is no shard 2"),
            ("GET", "/metrics/nodes?shard=x", 400, "`x` is no shard"),
            ("GET", "/metric", 404, "there is no such page"),
            ("POST", "/metrics", 405, "are read with GET"),
        ] {
            let request = axum::http::Request::builder()
                .method(method)
                .uri(page)
                .header(header::ACCEPT, "application/openmetrics-text")
                .body(Body::empty())
                .unwrap();
            let answer = router(Empty, Registry::default()).call(request).await;
            let answer = answer.unwrap();
            assert_eq!(answer.status(), status, "{method} {page}");
            let body = axum::body::to_bytes(answer.into_body(), 4096).await;
            let text = String::from_utf8(body.unwrap().to_vec()).unwrap();
            assert!(text.contains(said), "{method} {page}: {text}");
        }
    }

    #[test]
    fn reads_what_is_asked() {
        let asked = Asked::parse("shard=2&collect%5B%5D=cpu&collect=meminfo,loadavg").unwrap();
        assert_eq!(asked.shard, Some(2));
        assert_eq!(asked.collectors, ["cpu", "meminfo", "loadavg"]);
        assert_eq!(Asked::parse("").unwrap(), Asked::default());
        for bad in ["shard=x", "collect=nope", "frobnicate=1"] {
            assert!(Asked::parse(bad).is_err(), "{bad}");
        }
    }
}
