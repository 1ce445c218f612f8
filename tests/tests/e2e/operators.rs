//! A collector and its operators, before any node has joined.

use nexus_tests::{collector::Collector, ctl::Ctl, process};
use serde_json::Value;
use tempfile::TempDir;

struct Fleet {
    dir: TempDir,
    collector: Collector,
    ctl: Ctl,
}

async fn fleet() -> Fleet {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::create(dir.path(), &["trust_domain=e2e.test", "query.timeout=2s"]);
    let collector = collector.await.unwrap();
    let ctl = Ctl::logged_in(dir.path(), &collector).await.unwrap();
    Fleet {
        dir,
        collector,
        ctl,
    }
}

fn rows(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[tokio::test]
async fn a_code_lets_one_operator_in_once() {
    let fleet = fleet().await;
    assert!(rows(&fleet.ctl.json(&["get", "nodes"]).await.unwrap()).is_empty());
    assert_eq!(
        rows(&fleet.ctl.json(&["get", "shards"]).await.unwrap()).len(),
        4
    );

    let elsewhere = fleet.dir.path().join("second");
    std::fs::create_dir(&elsewhere).unwrap();
    let again = Ctl::logged_in(&elsewhere, &fleet.collector)
        .await
        .unwrap_err()
        .to_string();
    assert!(again.contains("error: "), "{again}");
    let denied = Ctl::new(&elsewhere).run(&["get", "nodes"]).await.unwrap();
    assert_ne!(denied.code, 0, "{denied:?}");
}

#[tokio::test]
async fn a_second_operator_needs_someone_to_vouch_for_the_signers() {
    let fleet = fleet().await;
    let code = async || {
        let mut command = fleet.collector.command().await.unwrap();
        let output = process::run(command.args(["login-code", "--name", "bob"]), b"");
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.lines().last().unwrap().to_owned()
    };
    let known = fleet.ctl.json(&["config"]).await.unwrap();
    let elsewhere = fleet.dir.path().join("second");
    std::fs::create_dir(&elsewhere).unwrap();
    let bob = Ctl::new(&elsewhere);
    let address = &fleet.collector.endpoints().operators;
    let said = bob
        .run(&["login", &code().await, "--address", address])
        .await
        .unwrap();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("--policy-sha256"), "{said:?}");
    assert_ne!(bob.run(&["get", "nodes"]).await.unwrap().code, 0);

    let code = code().await;
    let digest = known["policy_sha256"].as_str().unwrap();
    let login = ["login", &code, "--address", address];
    bob.ok(&[&login[..], &["--policy-sha256", digest]].concat())
        .await
        .unwrap();
    let config = bob.json(&["config"]).await.unwrap();
    assert_eq!(config["operator"], "bob");
    assert_eq!(config["policy_sha256"], known["policy_sha256"]);
    bob.ok(&["get", "nodes"]).await.unwrap();
}

#[tokio::test]
async fn a_query_is_one_read_only_statement_over_the_views() {
    let fleet = fleet().await;
    let one = fleet.ctl.json(&["query", "SELECT 1 AS one"]).await.unwrap();
    assert_eq!(one, serde_json::json!([{"one": 1}]));
    let secret = fleet.dir.path().join("stolen.db");
    let attach = format!("ATTACH '{}' AS x", secret.display());
    let into = format!("VACUUM INTO '{}'", secret.display());
    for sql in [
        "DELETE FROM nodes",
        "CREATE TABLE t (a)",
        "SELECT 1; SELECT 2",
        "PRAGMA database_list",
        "PRAGMA query_only = 0",
        "SELECT * FROM sqlite_master",
        "SELECT load_extension('x')",
        "SELECT writefile('x', 'y')",
        "SELECT readfile('/etc/passwd')",
        "BEGIN",
        &attach,
        &into,
    ] {
        let said = fleet.ctl.run(&["query", sql]).await.unwrap();
        assert_eq!(
            (said.code == 0, said.out.as_str()),
            (false, ""),
            "{sql}: {said:?}"
        );
        assert!(said.err.starts_with("error: "), "{sql}: {said:?}");
    }
    assert!(!secret.exists());
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let said = fleet.ctl.run(&["query", endless]).await.unwrap();
    assert_ne!(said.code, 0, "{said:?}");
    // It did not take the collector with it.
    fleet.ctl.ok(&["query", "SELECT 1"]).await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_what_was_done() {
    let mut fleet = fleet().await;
    fleet.ctl.ok(&["token", "create"]).await.unwrap();
    let tokens = fleet.ctl.json(&["get", "tokens"]).await.unwrap();
    assert_eq!(rows(&tokens).len(), 1);
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    assert_eq!(fleet.ctl.json(&["get", "tokens"]).await.unwrap(), tokens);
    fleet.ctl.ok(&["audit", "verify"]).await.unwrap();
    fleet.collector.stop().await.unwrap();
    let said = fleet
        .ctl
        .run(&["get", "nodes", "--timeout", "2s"])
        .await
        .unwrap();
    assert_eq!(said.code, 4, "{said:?}");
}

#[tokio::test]
async fn one_request_id_stands_in_both_programs_logs() {
    let fleet = fleet().await;
    let said = fleet.ctl.run(&["-v", "get", "nodes"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let id = said
        .err
        .split(|c: char| !c.is_ascii_hexdigit() && c != '-')
        .find(|w| w.len() == 36);
    let id = id.unwrap_or_else(|| panic!("no request id in {said:?}"));
    assert!(
        fleet.collector.log_text().contains(id),
        "{id}: {}",
        fleet.collector.log_text()
    );
}

#[tokio::test]
async fn formats_say_the_same() {
    let fleet = fleet().await;
    let sql = "SELECT 'a,b' AS text, 2 AS number, NULL AS absent";
    let out = |format: &'static str| {
        let ctl = fleet.ctl.clone();
        async move { ctl.ok(&["query", sql, "-o", format]).await.unwrap() }
    };
    let row = serde_json::json!({"text": "a,b", "number": 2, "absent": null});
    assert_eq!(
        serde_json::from_str::<Value>(&out("json").await).unwrap(),
        serde_json::json!([row])
    );
    assert_eq!(
        serde_json::from_str::<Value>(out("jsonl").await.trim()).unwrap(),
        row
    );
    assert_eq!(
        out("csv").await.lines().collect::<Vec<_>>(),
        ["text,number,absent", "\"a,b\",2,"]
    );
    let table = out("table").await;
    assert!(table.starts_with("TEXT"), "{table}");
    let bare = fleet.ctl.ok(&["query", sql, "--no-headers"]).await.unwrap();
    assert_eq!(bare.lines().count(), table.lines().count() - 1);
}

#[tokio::test]
async fn a_rewritten_audit_row_is_found() {
    let mut fleet = fleet().await;
    fleet.ctl.ok(&["token", "create"]).await.unwrap();
    fleet.ctl.ok(&["audit", "verify"]).await.unwrap();
    fleet.collector.stop().await.unwrap();
    let path = fleet.collector.dir().join("audit.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(7)
        .position(|window| window == b"allowed")
        .unwrap();
    bytes[at..at + 7].copy_from_slice(b"refused");
    std::fs::write(&path, bytes).unwrap();
    fleet.collector.start().await.unwrap();
    let said = fleet.ctl.run(&["audit", "verify"]).await.unwrap();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.starts_with("error: "), "{said:?}");
}
