//! GET over plain HTTP/1.1, for the metrics pages.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use nexus_runtime::tasks::spawn_detached;
use tokio::net::TcpStream;

use crate::fault::{Context as _, Fault, Outcome};

/// A page that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest page that is read.
const LARGEST: usize = 64 * 1024 * 1024;

/// A page's status and text.
pub(super) async fn get(address: &str, path: &str) -> Outcome<(http::StatusCode, String)> {
    let what = format!("get http://{address}{path}");
    match tokio::time::timeout(TIMEOUT, fetch(address, path, &what)).await {
        Ok(page) => page,
        Err(_) => Err(Fault::new(
            what,
            format!("no answer within {}s", TIMEOUT.as_secs()),
        )),
    }
}

async fn fetch(address: &str, path: &str, what: &str) -> Outcome<(http::StatusCode, String)> {
    let stream = TcpStream::connect(address).await.doing(what)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .doing(what)?;
    let task = spawn_detached("demo http", async move { drop(connection.await) });
    let request = http::Request::get(path)
        .header(http::header::HOST, address)
        .body(Empty::<Bytes>::new())
        .doing(what)?;
    let response = sender.send_request(request).await.doing(what)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| Fault::new(what, error))?.to_bytes();
    task.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
