//! Whatever a peer sends, nothing panics: a panic would be swallowed by the task it ends, and abort a released program.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    hostile::{headers, raw, raw_collector, upload},
    *,
};

/// What goes out on one connection.
#[derive(Debug, Clone)]
struct Sent {
    /// On a unidirectional stream: control, push, QPACK encoder or decoder, or none of them.
    aside: Vec<u8>,
    /// Of a call, or its answer.
    call: Vec<u8>,
    /// Bytes of it at a time.
    piece: usize,
}

/// Frames of all kinds, most of them whole, each stream cut anywhere; calls often begin with `head`.
fn sent(head: &[u8]) -> impl Strategy<Value = Sent> + use<> {
    fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), len)
    }
    fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, payload.len().try_into().unwrap()], payload].concat()
    }
    let frame = prop_oneof![
        4 => Just(head.to_vec()),
        4 => bytes(0..40).prop_map(|payload| framed(0, &payload)),
        4 => (0_u8..0x40, bytes(0..40)).prop_map(|(kind, payload)| framed(kind, &payload)),
        2 => bytes(0..60).prop_map(|section| framed(1, &[&[0, 0], &section[..]].concat())),
        1 => bytes(1..10),
        // A WebTransport stream, which has no length and no end.
        1 => Just(vec![0x40, 0x41, 0]),
    ];
    let frames = prop::collection::vec(frame, 0..5).prop_map(|frames| frames.concat());
    let frames = (frames, any::<prop::sample::Index>()).prop_map(|(mut frames, end)| {
        frames.truncate(end.index(frames.len() + 1));
        frames
    });
    let frames = frames.boxed();
    let begin = prop_oneof![Just(Vec::new()), Just(head.to_vec())];
    let call = (begin, frames.clone()).prop_map(|(begin, frames)| [begin, frames].concat());
    let aside = prop_oneof![
        2 => Just(Vec::new()),
        1 => frames.prop_map(|frames| [&[0], &frames[..]].concat()),
        1 => (0_u8..0x40, bytes(0..60)).prop_map(|(kind, rest)| [&[kind], &rest[..]].concat()),
    ];
    (aside, call, 1_usize..200).prop_map(|(aside, call, piece)| Sent { aside, call, piece })
}

impl Sent {
    /// Sends it; errors say that the peer has had enough.
    async fn go_out(&self, connection: &quinn::Connection, mut call: quinn::SendStream) {
        if !self.aside.is_empty()
            && let Ok(mut stream) = connection.open_uni().await
        {
            stream.write_all(&self.aside).await.ok();
        }
        for piece in self.call.chunks(self.piece) {
            if call.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        call.finish().ok();
    }
}

/// Tries many of `what`, with all tasks on this thread, whose panics count.
fn none_panics<T: std::fmt::Debug>(
    what: impl Strategy<Value = T>,
    runtime: &tokio::runtime::Runtime,
    each: impl AsyncFn(T),
) {
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&panics);
    let here = std::thread::current().id();
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == here {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        others(info);
    }));
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&what, |one| {
            runtime.block_on(async { timeout(LONG, each(one)).await.unwrap() });
            prop_assert_eq!(panics.load(Ordering::Relaxed), 0);
            Ok(())
        })
        .unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

#[test]
fn nothing_an_agent_sends_makes_a_collector_panic() {
    let runtime = runtime();
    let fleet = Fleet::new();
    let server = runtime.block_on(serve(&fleet, LOOPBACK, KeyExchange::Auto));
    none_panics(sent(&upload()), &runtime, async |sent| {
        let connection = raw(&fleet, server.at).await;
        let (call, mut answer) = connection.open_bi().await.unwrap();
        sent.go_out(&connection, call).await;
        // Until the answer's end, or the connection's.
        answer.read_to_end(1 << 20).await.ok();
        connection.close(0_u32.into(), b"");
    });
}

#[test]
fn nothing_a_collector_answers_makes_an_agent_panic() {
    let runtime = runtime();
    let fleet = Fleet::new();
    let leaf = fleet.agent(NodeId::random());
    let collector = runtime.block_on(async { raw_collector(&fleet) });
    let at = collector.local_addr().unwrap();
    let dialer = fleet.dialer(&leaf, at, Mode::Quic, KeyExchange::Auto);
    // :status 200
    let head = headers(&[&[0xd9]]);
    none_panics(sent(&head), &runtime, async |sent: Sent| {
        let collector = collector.clone();
        let played = spawn_detached("a hostile collector", async move {
            let connection = collector.accept().await.unwrap().await.unwrap();
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(&[0, 4, 0]).await.unwrap();
            if let Ok((answer, _question)) = connection.accept_bi().await {
                sent.go_out(&connection, answer).await;
                connection.closed().await;
            }
        });
        let connection = dialer.connect().await.unwrap();
        let mut client = AgentClient::new(connection.channel.clone());
        if let Ok(answer) = client.upload(tokio_stream::pending()).await {
            let mut acks = answer.into_inner();
            while let Ok(Some(_)) = acks.message().await {}
        }
        connection.close("enough");
        played.await.unwrap();
    });
}
