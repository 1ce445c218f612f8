//! A helper that cannot start, as systemd sees it: its socket stays for when it can.

use super::scene::{AGENT, HELPER, Scene};

const SOCKET: &str = "nexus-agent-helper.socket";
const SETTINGS: &str = "/etc/nexus/agent.toml";
/// Knocks more often than any of systemd's limits lets pass, and waits for each answer.
const KNOCK: &str = r#"perl -MSocket -e '
    for (1 .. 60) {
        socket(my $door, PF_UNIX, SOCK_STREAM, 0) or die $!;
        connect($door, sockaddr_un("/run/nexus/helper.sock")) or die "knock $_: $!";
        sysread($door, my $nothing, 1);
    }'"#;

#[tokio::test]
async fn a_helper_that_cannot_start_keeps_its_socket_for_when_it_can() {
    let scene = Scene::with_node().await;
    let machine = &scene.machine;
    // Of a job that takes too much memory, the others hear nothing.
    for unit in [AGENT, HELPER] {
        assert_eq!(machine.show(unit, "OOMPolicy").await, "continue", "{unit}");
    }
    // What others than root could have written, it does not start with.
    machine.write(SETTINGS, 0o644, "");
    machine.ok(&format!("chown nexus-agent {SETTINGS}")).await;
    machine.ok(KNOCK).await;
    machine.shows(HELPER, "ActiveState", "failed").await;
    assert_eq!(machine.show(HELPER, "Result").await, "exit-code");
    assert_eq!(machine.show(SOCKET, "ActiveState").await, "active");
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["state"], "failed", "{run}");
    let reason = run["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the helper cannot be reached"), "{run}");
    machine.ok(&format!("chown root {SETTINGS}")).await;
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["stdout"], "0\n", "{run}");
}
