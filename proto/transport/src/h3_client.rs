//! Calls over one QUIC connection, each on a stream of its own.

use bytes::Bytes;
use http::{Request, Response};
use nexus_proto::limits;
use nexus_runtime::tasks::spawn_detached;
use tokio::task::AbortHandle;
use tonic::{Status, body::Body};

use crate::{
    body::{Incoming, transmit},
    fault::{Closed, status_of},
    h3_wire::{Opener, Watch, Wire},
};

type SendRequest = h3::client::SendRequest<Opener, Bytes>;

/// Makes calls on a connection. The connection ends when the last clone and the last call have.
#[derive(Clone)]
pub(crate) struct Calls {
    sender: SendRequest,
    connection: quinn::Connection,
}

/// Speaks HTTP/3 on `connection`, and waits until the peer does too: a collector does once it has admitted us.
pub(crate) async fn start(connection: quinn::Connection) -> Result<Calls, Closed> {
    let watch = Watch::new(&connection);
    let heard = watch.heard.clone();
    let wire = Wire::new(connection.clone(), watch);
    let built = h3::client::builder()
        .max_field_section_size(limits::PREFACE_BYTES.try_into().unwrap_or(u64::MAX))
        .send_grease(false)
        .build(wire)
        .await;
    let (mut driver, sender) = built.map_err(|error| match connection.close_reason() {
        Some(reason) => Closed::of_quic(&reason),
        None => Closed::of_error(&error),
    })?;
    spawn_detached("http3-client", async move { driver.wait_idle().await });
    tokio::select! {
        () = heard.cancelled() => Ok(Calls { sender, connection }),
        error = connection.closed() => Err(Closed::of_quic(&error)),
    }
}

/// Stops the upload of a call whose answer nobody waits for any more.
struct Upload {
    task: AbortHandle,
    _sender: SendRequest,
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Calls {
    pub(crate) async fn call(mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let head = Request::from_parts(parts, ());
        let opened = self.sender.send_request(head).await;
        let stream = opened.map_err(|error| status_of(&error, &self.connection))?;
        let (send, mut recv) = stream.split();
        // A peer that has read enough may end our half; its answer says the rest.
        let task = spawn_detached(
            "http3-upload",
            async move { transmit(body, send).await.ok() },
        );
        let upload = Upload {
            task: task.abort_handle(),
            _sender: self.sender,
        };
        let answered = recv.recv_response().await;
        let response = answered.map_err(|error| status_of(&error, &self.connection))?;
        Ok(response.map(|()| Body::new(Incoming::new(recv, self.connection, upload))))
    }
}
