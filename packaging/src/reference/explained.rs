//! What the messages of each part of the programs are about, and what to do: the words of `docs/reference/errors.md` that no
//! code can say.

/// Some files of the sources, and what their messages mean to whoever reads them.
pub(super) struct Topic {
    pub(super) title: &'static str,
    pub(super) advice: &'static str,
    /// What their paths begin with; of several topics the one that says more counts.
    pub(super) files: &'static [&'static str],
}

/// In the order of the page.
pub(super) const TOPICS: &[Topic] = &[
    Topic {
        title: "Command lines and configuration",
        advice: "A flag, a word or a key is not what the program takes; exit code 2. The hint says what was probably meant. `--help`, \
                 `config --defaults` and `check-config` tell the rest. A running agent warns of such a key and goes on without it; a \
                 collector does not start.",
        files: &[
            "agent/src/cli.rs",
            "agent/src/config.rs",
            "collector/src/cli.rs",
            "collector/src/config.rs",
            "collector/ctl/src/cli.rs",
            "collector/ctl/src/usage.rs",
            "collector/ctl/src/when.rs",
            "collector/ctl/src/thing.rs",
            "proto/runtime/src/command_line.rs",
            "proto/runtime/src/settings",
            "proto/src/ids.rs",
            "proto/src/time.rs",
        ],
    },
    Topic {
        title: "Files, keys and their owners",
        advice: "A file of keys or of trust cannot be read, is not what it should be, or others may read or write it. Look at owner and mode \
                 (folders 0700, files 0600) with `ls -ln`: most of these come from a copy, a restore or an editor run as another user. A \
                 key that others could read is best replaced: enrol anew, or log in anew.",
        files: &[
            "pki/src/files.rs",
            "pki/src/signing.rs",
            "collector/src/folder.rs",
            "collector/src/owner.rs",
            "agent/src/identity/owner.rs",
        ],
    },
    Topic {
        title: "Enrolment and join tokens",
        advice: "The machine does not become a node. What stands after `the collector refused` is the collector's reason; a token that has \
                 expired, is used up or was revoked is replaced by a new one (`nexusctl token create`). A machine that is a node already \
                 enrols again with `--force` only.",
        files: &[
            "agent/src/identity",
            "collector/src/enrolment",
            "collector/ctl/src/token.rs",
            "pki/src/token.rs",
            "pki/src/csr.rs",
        ],
    },
    Topic {
        title: "Operator codes and logging in",
        advice: "A code of `nexus-collector init` or `login-code` is good once and for 24 hours; make another one on the collector's machine. \
                 A signer policy that nobody vouches for is compared with another operator's (`nexusctl config`) before it is believed.",
        files: &[
            "collector/src/codes.rs",
            "collector/src/operator/login.rs",
            "collector/ctl/src/login.rs",
            "collector/ctl/src/profile.rs",
            "collector/ctl/src/session.rs",
            "collector/ctl/src/signers.rs",
            "collector/ctl/src/skew.rs",
            "pki/src/operator_code.rs",
        ],
    },
    Topic {
        title: "Reaching the other side",
        advice: "No connection comes about: a wrong address, a port that a firewall keeps shut, a program that does not run, or one that has no \
                 room now. Agents need 7460 over UDP or TCP, operators 7461 over TCP. Both go on trying; nothing is lost meanwhile.",
        files: &[
            "collector/ctl/src/dial.rs",
            "collector/ctl/src/connection.rs",
            "proto/transport/src/",
            "collector/src/ports.rs",
            "pki/src/tls",
        ],
    },
    Topic {
        title: "Certificates",
        advice: "The other side's certificate is not admitted. Look at the clocks first (`timedatectl`): a certificate of 24 hours forgives \
                 little. Then at whether both belong to one fleet: a collector that was initialised anew is another one. A node whose \
                 certificate ran out renews by itself for 30 days, and enrols anew after that.",
        files: &[
            "pki/src/admission.rs",
            "pki/src/authority.rs",
            "pki/src/certificate.rs",
            "pki/src/leaf.rs",
            "pki/src/",
            "pki/src/renewal.rs",
            "pki/src/spiffe.rs",
            "collector/src/identity.rs",
            "collector/src/trust.rs",
            "collector/src/refusals.rs",
        ],
    },
    Topic {
        title: "Sessions of agents",
        advice: "An agent and its collector do not get on with each other, or not yet; the agent's log says when it tries again. \
                 `quarantined` means that two machines show the same identity: enrol the copy anew. Versions that are more than one minor \
                 apart do not talk: upgrade the older one.",
        files: &["agent/src/session", "collector/src/sessions"],
    },
    Topic {
        title: "Signed jobs and signers",
        advice: "A job, token or policy is not signed as it must be, or not by whom this machine believes. Agents believe the signers they pinned \
                 when they enrolled and those whom these have signed in. `nexusctl login` renews the statement that the policy is \
                 current; agents refuse jobs when it is 30 days old.",
        files: &[
            "pki/src/dsse.rs",
            "pki/src/job.rs",
            "pki/src/merkle.rs",
            "pki/src/policy.rs",
        ],
    },
    Topic {
        title: "Why a node rejects a job",
        advice: "The run is in state `rejected`, with one of these as its reason (`nexusctl get runs`). Nothing was executed. The local policy is \
                 `/etc/nexus/policy.toml` on the node; it changes with the next job.",
        files: &["agent/src/admit.rs", "agent/src/local_policy.rs"],
    },
    Topic {
        title: "The helper",
        advice: "Jobs run as root by `nexus-agent-helper`. It does not start, does not serve whoever asked, or does not know yet whom to believe: \
                 `systemctl status nexus-agent-helper.socket nexus-agent-helper` and `journalctl -u nexus-agent-helper` say more. \
                 `nexus-agent pin TOKEN` mends a missing pin. See [The helper](../helper.md).",
        files: &["agent/src/helper"],
    },
    Topic {
        title: "Running programs",
        advice: "A job's program could not be started or watched on the node: no such file, not executable, no such user or folder, or no \
                 memory. The run is `failed`; it is `unknown` where nobody can tell whether the program ran to its end.",
        files: &["agent/src/exec", "agent/src/runs"],
    },
    Topic {
        title: "The agent's own state",
        advice: "Spool and ledger in `/var/lib/nexus/agent`. A full disk is the usual cause: what cannot be stored is told as an event once \
                 there is room. Damaged parts are put aside and the agent goes on. State of a newer version is left untouched: install \
                 that version again.",
        files: &[
            "agent/src/spool",
            "agent/src/ledger",
            "agent/src/trouble.rs",
        ],
    },
    Topic {
        title: "Metrics and inventory of a node",
        advice: "One source on the node cannot be read; all others are reported. `node_scrape_collector_success` is 0 for it. A mount that hangs \
                 shows as `node_filesystem_device_error`.",
        files: &["agent/src/sample", "agent/src/inventory"],
    },
    Topic {
        title: "The agent as a program",
        advice: "It cannot start or was told to do what it cannot do here. `journalctl -u nexus-agent` has the lines before.",
        files: &["agent/src/"],
    },
    Topic {
        title: "nexusctl: jobs",
        advice: "`run` names its targets before it signs anything, and refuses an answer with others. A lost connection does not end a job: \
                 `nexusctl wait JOB` and `nexusctl logs JOB` go on with it.",
        files: &[
            "collector/ctl/src/run",
            "collector/ctl/src/job.rs",
            "collector/src/jobs",
            "proto/src/job.rs",
        ],
    },
    Topic {
        title: "nexusctl: asking",
        advice: "A name, type, selector, label, statement or time is not what it should be, or there is no such thing. `nexusctl get TYPE` lists \
                 what there is, `nexusctl query --schema` the tables. A name that several nodes have is replaced by an id.",
        files: &[
            "collector/ctl/src/get.rs",
            "collector/ctl/src/describe.rs",
            "collector/ctl/src/label.rs",
            "collector/ctl/src/metrics",
            "collector/ctl/src/names.rs",
            "collector/ctl/src/nodes.rs",
            "collector/ctl/src/query.rs",
            "proto/src/selector",
        ],
    },
    Topic {
        title: "nexusctl: the audit chain",
        advice: "The chain does not fit what this machine saw before, or does not fit itself. Take it seriously: somebody may have changed what \
                 the collector keeps. Keep a copy of `audit.db` before anything else.",
        files: &["collector/ctl/src/audit.rs", "collector/store/src/audit.rs"],
    },
    Topic {
        title: "nexusctl: the demo and the terminal",
        advice: "The demo needs `nexus-collector` and `nexus-agent` beside `nexusctl`, and a folder it may write (`--dir`). Its logs lie in that \
                 folder.",
        files: &["collector/ctl/src/"],
    },
    Topic {
        title: "What the collector answers operators",
        advice: "The call was understood and refused (exit code 5: denied), or the collector cannot do it now. The request's id, which `--verbose` \
                 prints, is in the collector's log.",
        files: &["collector/src/operator", "collector/src/pages"],
    },
    Topic {
        title: "The collector as a program",
        advice: "It cannot be initialised, start or end as it should. Nothing was changed unless the message says so. `journalctl -u \
                 nexus-collector` has the lines before.",
        files: &["collector/src/"],
    },
    Topic {
        title: "The collector's files",
        advice: "SQLite files in `/var/lib/nexus/collector`. A full disk is called that; agents keep what they cannot send, and go on by themselves. \
                 A file of a newer version is left untouched: install that version again. What is damaged or missing is named: restore \
                 it from a backup.",
        files: &["collector/store/src/"],
    },
    Topic {
        title: "Metrics and records on the wire",
        advice: "Something a node sent cannot be read. It is put aside as a dead letter (`nexus_dead_letters_total`) and costs nothing else. \
                 Frequent ones mean a damaged machine or a program that is no agent.",
        files: &["proto/src/metrics", "proto/src/record"],
    },
    Topic {
        title: "Every program",
        advice: "The log cannot be written, a part of the program ended when it should not have, or it does not end in time.",
        files: &["proto/runtime/src/", "proto/src/"],
    },
];
