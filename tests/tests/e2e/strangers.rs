//! Strangers who connect and say nothing, or next to nothing.

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    strangers::{self, Params},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

/// Of each kind, on each port.
const EACH: usize = 200;
/// The beginning of a TLS record that never ends.
const BEGINNING: [u8; 6] = [22, 3, 1, 2, 0, 1];

#[tokio::test]
async fn silence_and_half_a_handshake_hold_up_nobody_and_are_ended() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let endpoints = fleet.collector.endpoints();
    let mut strangers = Vec::new();
    for port in [&endpoints.agents, &endpoints.operators] {
        for number in 0..2 * EACH {
            let mut stream = TcpStream::connect(port).await.unwrap();
            if number % 2 == 0 {
                stream.write_all(&BEGINNING).await.unwrap();
            }
            strangers.push(stream);
        }
    }
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(fleet.node("alpha").await.unwrap()["state"], "connected");
    poll::until_ok("the strangers' end", SOON, || {
        let open = strangers
            .iter()
            .filter(|stream| {
                let read = stream.try_read(&mut [0; 16]);
                matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            })
            .count();
        std::future::ready(if open == 0 {
            Ok(())
        } else {
            Err(format!("{open} are open"))
        })
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn strangers_who_come_again_and_again_keep_nobody_out() {
    let params = Params {
        strangers: 1500,
        addresses: 100,
        calls: 30,
    };
    let report = strangers::run(&params, &|_| {}).await.unwrap();
    assert!(report.made >= 1500, "{report:?}");
    // They were really there.
    assert!(report.present[params.calls / 2] > 500, "{report:?}");
}
