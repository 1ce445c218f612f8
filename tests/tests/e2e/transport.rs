//! What a collector asks of connections.

use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    poll,
};

#[tokio::test]
async fn a_collector_that_asks_for_post_quantum_keys_gets_them_or_says_no() {
    let mut fleet = Fleet::new(&["tls.key_exchange=post-quantum"])
        .await
        .unwrap();
    let token = fleet.token(&[]).await.unwrap();
    let mut agent = Agent::new(fleet.dir(), "alpha", &["tls.key_exchange=classical"]);
    let said = agent.enroll(&token).await.unwrap_err().to_string();
    let errors: Vec<_> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains("key exchange"), "{said}");

    agent.set("tls.key_exchange", "auto");
    fleet.join(agent).await.unwrap();
    let node = fleet.connected("alpha").await.unwrap();
    assert_eq!(node["key_exchange"], "X25519MLKEM768", "{node}");

    // An agent that was let in before is told as plainly, on both transports.
    for transport in ["quic", "tcp"] {
        let agent = &mut fleet.agents[0];
        agent.stop().await.unwrap();
        agent.set("tls.key_exchange", "classical");
        agent.set("transport", transport);
        let before = agent.log_text().len();
        agent.start().await.unwrap();
        let agent = &fleet.agents[0];
        poll::until_ok(&format!("word over {transport}"), SOON, || {
            let log = agent.log_text();
            // A log may begin anew with the program.
            let said = log.get(before..).unwrap_or(&log).to_owned();
            let told = said.contains(&format!("over {transport}: the peer accepts none"));
            std::future::ready(if told { Ok(()) } else { Err(said) })
        })
        .await
        .unwrap();
    }
}
