//! A router between agent and collector that translates addresses, and loses its mappings in mid-session.

use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
};

use super::{
    cable::Cable,
    network::{FALLBACK, nothing_lost_soon, on, shows},
};

async fn behind_a_router(cable: &Cable, transport: &str) -> Fleet {
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let transport_is = format!("transport={transport}");
    let settings = ["interval=1s", transport_is.as_str()];
    let agent = Agent::new(fleet.dir(), "alpha", &settings).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, transport, SOON).await;
    fleet
}

async fn runs_a_job(fleet: &Fleet) {
    let (said, document) = fleet
        .job(&["--all"], &["echo", "through there"])
        .await
        .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        document["runs"][0]["stdout"], "through there\n",
        "{document}"
    );
}

#[tokio::test]
async fn a_session_outlives_the_mapping_it_began_with() {
    let cable = Cable::by_router();
    let fleet = behind_a_router(&cable, "quic").await;
    shows(&fleet, "address", "10.77.0.2:40", FALLBACK).await;
    cable.forget_mappings(50_000);
    runs_a_job(&fleet).await;
    shows(&fleet, "address", "10.77.0.2:50", FALLBACK).await;
    cable.readdress("10.77.0.3");
    runs_a_job(&fleet).await;
    shows(&fleet, "address", "10.77.0.3:50", FALLBACK).await;
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");
    nothing_lost_soon(&fleet).await;
}

#[tokio::test]
async fn over_tcp_a_session_is_back_soon_after_its_mapping_is_gone() {
    let cable = Cable::by_router();
    let fleet = behind_a_router(&cable, "tcp").await;
    cable.forget_mappings(50_000);
    shows(&fleet, "address", "10.77.0.2:50", SOON).await;
    on(&fleet, "tcp", FALLBACK).await;
    runs_a_job(&fleet).await;
    nothing_lost_soon(&fleet).await;
}
