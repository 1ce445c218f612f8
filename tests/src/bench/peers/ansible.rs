//! Ansible over OpenSSH to addresses of loopback, each of them a host to it.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Signal, kill_process};
use tokio::{net::TcpStream, process::Command, time::timeout};

use super::venv::Venv;
use crate::{
    fault::{Fault, Outcome},
    poll, port,
    process::Process,
    usage,
};

/// Where Debian has it; it wants to be called by its full name.
const SSHD: &str = "/usr/sbin/sshd";
/// Until it listens.
const START: Duration = Duration::from_secs(20);
/// A command that should be done long before.
const PATIENCE: Duration = Duration::from_secs(300);

/// An SSH server, and Ansible with its configuration; neither reads anything of the user's.
#[derive(Debug)]
pub struct Ansible {
    venv: Venv,
    dir: std::path::PathBuf,
    hosts: u8,
    _sshd: Process,
}

impl Ansible {
    /// Starts the server and writes the inventory.
    pub async fn start(venv: &Venv, dir: &Path, hosts: u8) -> Outcome<Self> {
        fs::create_dir_all(dir).map_err(Fault::io(dir.display()))?;
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            let made = keygen.arg(dir.join(key)).output().await;
            let made = made.map_err(Fault::io("ssh-keygen"))?;
            if !made.status.success() {
                let said = String::from_utf8_lossy(&made.stderr).into_owned();
                return Err(Fault::new(format!("ssh-keygen: {said}")));
            }
        }
        let port = port::free()?;
        let at = dir.display();
        let listen = (1..=hosts).map(|n| format!("ListenAddress 127.0.0.{n}:{port}\n"));
        let sshd = listen.collect::<String>()
            + &format!(
                "HostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 200\n"
            );
        let inventory = (1..=hosts).map(|n| format!("node-{n} ansible_host=127.0.0.{n}\n"));
        let inventory: String = inventory.collect();
        let config = format!(
            "[defaults]\ninventory = {at}/hosts\nforks = 50\nhost_key_checking = False\nremote_port = {port}\n\
             private_key_file = {at}/user\nlocal_tmp = {at}/tmp\nremote_tmp = {at}/remote\n\
             interpreter_python = {}\n\
             [ssh_connection]\npipelining = True\ncontrol_path_dir = {at}/cp\n\
             ssh_args = -F /dev/null -o ControlMaster=auto -o ControlPersist=60s\n\
             ssh_extra_args = -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR\n",
            venv.path("python").display(),
        );
        for (name, text) in [
            ("sshd_config", &sshd),
            ("hosts", &inventory),
            ("ansible.cfg", &config),
        ] {
            fs::write(dir.join(name), text).map_err(Fault::io(name))?;
        }
        // Its child without privileges has no other place to be.
        drop(fs::create_dir("/run/sshd"));
        let mut command = Command::new(SSHD);
        command
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"));
        let log = dir.join("sshd.log");
        let process = Process::start(&mut command, &log)?;
        poll::until("sshd", START, || async move {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await
        .map_err(|fault| process.explain(fault))?;
        Ok(Self {
            venv: venv.clone(),
            dir: dir.to_owned(),
            hosts,
            _sshd: process,
        })
    }

    /// `true` on all hosts.
    pub async fn run_true(&self) -> Outcome {
        let mut command = self.venv.program("ansible");
        command.args(["all", "-m", "command", "-a", "true"]);
        command
            .env("ANSIBLE_CONFIG", self.dir.join("ansible.cfg"))
            .env("ANSIBLE_HOME", self.dir.join("home"))
            .env("ANSIBLE_NOCOLOR", "1");
        let ended = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        let output = ended
            .map_err(|_| Fault::new("ansible does not end"))?
            .map_err(Fault::io("ansible"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let done = said.matches("| rc=0 >>").count();
        if output.status.success() && done == usize::from(self.hosts) {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Fault::new(format!("ansible: {said}{why}")))
    }
}

impl Drop for Ansible {
    /// Ends the connections that Ansible keeps for the next call, which belong to nobody.
    fn drop(&mut self) {
        let at = self.dir.display().to_string();
        for pid in usage::descendants() {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            if String::from_utf8_lossy(&line.unwrap_or_default()).contains(&at) {
                // It may have ended in between.
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
    }
}
