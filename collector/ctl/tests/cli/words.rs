//! What users read when something is not as they meant it.

use std::time::Duration;

use crate::{
    LIFE, World, code, err,
    fake::{self, Fake},
    out,
};

#[tokio::test]
async fn a_mangled_code_is_explained_without_its_parser() {
    let world = World::new(LIFE).await;
    for mangled in ["nxo_nonsense", "nxo_", "nxo_!"] {
        let output = world.run(&["login", mangled]).await;
        assert_eq!(code(&output), 1, "{}", err(&output));
        let said = err(&output);
        assert!(
            said.starts_with("error: read the code: the operator code"),
            "{said}"
        );
        assert!(
            !said.contains("rotobuf") && !said.contains("wire type"),
            "{said}"
        );
        assert!(said.contains("\nhint: copy it whole"), "{said}");
    }
}

#[tokio::test]
async fn a_token_is_revoked_by_itself_and_not_repeated() {
    let world = World::logged_in().await;
    let token = out(&world.run(&["token", "create"]).await);
    let token = token.trim_end();
    let id = world.fake.seen.lock().unwrap().tokens[0].id;
    let output = world.run(&["token", "revoke", token]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(err(&output), format!("token {id} revoked\n"));
    assert_eq!(world.fake.seen.lock().unwrap().revoked, [id]);
    let part = token.get(..token.len() - 9).unwrap();
    let output = world.run(&["token", "revoke", part]).await;
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(!err(&output).contains("nxt_"), "{}", err(&output));
}

#[tokio::test]
async fn a_job_is_described_by_the_beginning_of_its_id() {
    let world = World::logged_in().await;
    world.run(&["run", "--all", "--", "true"]).await;
    let job = world.seen_job().await;
    let short = format!("job/{}", job.get(..8).unwrap());
    let output = world.run(&["describe", &short, "-o", "json"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let statements = world.fake.seen.lock().unwrap().statements.clone();
    let last = statements.last().unwrap();
    assert!(last.contains(&format!("IN ('{job}')")), "{last}");
}

#[tokio::test]
async fn what_has_no_name_of_its_own_is_named_by_its_node() {
    let world = World::logged_in().await;
    let output = world.run(&["get", "events", "-o", "name"]).await;
    assert_eq!(out(&output), "event/web-1\n", "{}", err(&output));
}

#[tokio::test]
async fn the_future_is_not_known() {
    let world = World::logged_in().await;
    for args in [["get", "nodes"], ["get", "events"], ["query", "SELECT 1"]] {
        let time = "2099-01-01T00:00:00Z";
        let output = world.run(&[args[0], args[1], "--as-of", time]).await;
        assert_eq!(code(&output), 2, "{}", err(&output));
        assert!(
            err(&output).contains("2099-01-01T00:00:00.000Z lies ahead"),
            "{}",
            err(&output)
        );
    }
}

#[tokio::test]
async fn a_mistake_in_what_is_asked_is_told_with_what_could_be_meant() {
    let world = World::logged_in().await;
    let before = world.fake.seen.lock().unwrap().statements.len();
    for (args, why, hint) in [
        (
            &["token", "create", "--ttl", "4"][..],
            "`4` has no unit: write 4s, 4m, 4h or 4d",
            "see `nexusctl token create --help`",
        ),
        (
            &["describe", "alpha"],
            "there is no type `alpha`",
            "the node of that name is `node/alpha`; types are nodes, ",
        ),
        (
            &["get", "nodez"],
            "there is no type `nodez`",
            "did you mean `nodes`?",
        ),
        (
            &["get", "nodes", "--field-selector", "state=connectd"],
            "there is no state `connectd`; it is one of connected, disconnected, quarantined, revoked",
            "did you mean `connected`?",
        ),
    ] {
        let output = world.run(args).await;
        let said = err(&output);
        assert_eq!(code(&output), 2, "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
        assert!(
            said.contains(&format!("\nhint: {hint}")),
            "{args:?}: {said}"
        );
    }
    assert_eq!(world.fake.seen.lock().unwrap().statements.len(), before);
    let none = ["token", "create", "--ttl", "0"];
    let output = world.run(&none).await;
    assert!(err(&output).contains("must live"), "{}", err(&output));
}

#[tokio::test]
async fn help_says_when_run_asks() {
    let world = World::new(LIFE).await;
    let output = world.run(&["run", "--help"]).await;
    let said = out(&output);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "When it asks:",
        "standard input is no terminal",
        "the job runs at once",
    ] {
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_label_that_is_not_there_is_missed() {
    let world = World::logged_in().await;
    let output = world
        .run(&["label", "node/web-1", "rolle-", "role-", "--overwrite"])
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(err(&output), "warning: node web-1 has no label `rolle`\n");
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named_with_both_times() {
    let hours = Duration::from_secs(30 * 3600);
    for (at, words) in [
        (fake::now().after(hours), "is valid from "),
        (fake::now().before(hours), "expired at "),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start_at(at, &dir.path().join("pki"), LIFE).await;
        let world = World { dir, fake };
        let output = world.run(&["login", &world.fake.code()]).await;
        assert_eq!(code(&output), 4, "{}", err(&output));
        let said = err(&output);
        assert!(
            said.contains(words) && said.contains("clock says"),
            "{said}"
        );
        assert!(!said.contains("UNIX") && !said.contains("hint:"), "{said}");
    }
}
