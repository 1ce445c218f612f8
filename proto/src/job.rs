//! A job as the programs handle it: what runs, on how many nodes, within which bounds.
//!
//! The wire form (`agent.v1.Job`) is what an operator signs. It becomes a [`Job`] only by
//! [`Job::from_wire`], which checks every limit; [`Job::to_wire`] checks the same limits, so that nobody
//! signs what every agent would refuse. Whether the bytes were signed by someone who may is not known
//! here: `nexus_pki::job` parses only payloads whose signatures were verified.

use std::time::Duration;

use prost::{Message as _, bytes::Bytes};

use crate::{
    agent::v1 as wire,
    ids::{IdError, JobId},
    limits,
    time::Timestamp,
};

/// The longest timeout of one execution.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest wait between TERM and KILL.
pub const KILL_GRACE_MAX: Duration = Duration::from_secs(3600);
/// Bytes of a trust domain's name, as SPIFFE limits it.
const TRUST_DOMAIN_BYTES: usize = 255;
/// Bytes of a request id.
const REQUEST_ID_BYTES: usize = 128;
/// Bytes of a path: Linux' PATH_MAX without its NUL.
const PATH_BYTES: usize = 4095;
/// Bytes of a user's name (Linux' LOGIN_NAME_MAX without its NUL).
const USER_BYTES: usize = 255;

/// A job that breaks a limit or lacks a part.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JobError {
    /// The payload is no encoded Job.
    #[error("the job's payload is no valid message")]
    Encoding(#[source] prost::DecodeError),
    /// The job's id is none.
    #[error("the job has no valid id")]
    Id(#[source] IdError),
    /// A part that every job has is missing.
    #[error("the job has no {0}")]
    Missing(&'static str),
    /// A number or length outside its bounds.
    #[error("the job's {what} is {value}, allowed is {min} to {max}")]
    Bounds {
        /// Which part.
        what: &'static str,
        /// What it is.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A text that cannot mean what it should.
    #[error("the job's {what} `{text}` {why}")]
    Text {
        /// Which part.
        what: &'static str,
        /// The text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The job ends before it may begin.
    #[error("the job expires at {expires}, which is not after {what} {begin}")]
    Window {
        /// Its end.
        expires: Timestamp,
        /// Which moment it must be after.
        what: &'static str,
        /// That moment.
        begin: Timestamp,
    },
}

/// What an operator asks nodes to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Chosen by the signer.
    pub id: JobId,
    /// The trust domain of the nodes it is for.
    pub trust_domain: String,
    /// Merkle root over the sorted targets.
    pub targets_root: [u8; 32],
    /// How many targets the tree has, 1 to [`limits::JOB_TARGETS`].
    pub target_count: u64,
    /// What runs.
    pub action: Action,
    /// Bound of each execution.
    pub timeout: Duration,
    /// Between TERM and KILL once an execution has timed out or was cancelled.
    pub kill_grace: Duration,
    /// Output kept of a run, stdout and stderr together.
    pub output_limit_bytes: u64,
    /// When it was signed, by the signer's clock.
    pub created: Timestamp,
    /// No execution starts before this.
    pub not_before: Timestamp,
    /// No execution starts at or after this.
    pub expires: Timestamp,
    /// The signer policy the signer held.
    pub policy_version: u64,
    /// The request's name through every program's log; may be empty.
    pub request_id: String,
    /// Who signed, for the reader; the key decides.
    pub operator: String,
    /// An execution whose end is not known may be repeated.
    pub idempotent: bool,
}

/// What runs on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A program with arguments, found by PATH, without a shell.
    Command {
        /// The program and its arguments; at least the program.
        argv: Vec<String>,
        /// Where and as whom.
        context: Context,
        /// What the program reads; empty: nothing.
        stdin: Bytes,
    },
    /// A script with a `#!` line, written to a private file and executed.
    Script {
        /// The file's bytes.
        content: Bytes,
        /// Arguments after the script's own name.
        args: Vec<String>,
        /// Where and as whom.
        context: Context,
    },
}

/// The surroundings of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Added to the environment, in order; names are unique.
    pub env: Vec<(String, String)>,
    /// Absolute working folder; `None`: the root folder.
    pub cwd: Option<String>,
    /// User to run as; `None`: root where the helper runs it, the agent's own user otherwise.
    pub user: Option<String>,
}

impl Job {
    /// Reads a signed payload. Call it only for bytes whose signatures hold (`nexus_pki::job`).
    pub fn decode(payload: &[u8]) -> Result<Self, JobError> {
        check_bounds("size in bytes", payload.len(), 1, limits::JOB_BYTES)?;
        Self::from_wire(wire::Job::decode(payload).map_err(JobError::Encoding)?)
    }

    /// The payload to sign.
    pub fn encode(&self) -> Result<Bytes, JobError> {
        Ok(self.to_wire()?.encode_to_vec().into())
    }

    /// From the wire, with every limit checked.
    pub fn from_wire(job: wire::Job) -> Result<Self, JobError> {
        let root = job.targets_root.as_ref();
        let parsed = Self {
            id: JobId::from_wire(&job.job_id).map_err(JobError::Id)?,
            targets_root: root.try_into().map_err(|_| JobError::Bounds {
                what: "targets root's length in bytes",
                value: count(root.len()),
                min: 32,
                max: 32,
            })?,
            trust_domain: job.trust_domain,
            target_count: job.target_count,
            action: Action::from_wire(
                job.action
                    .and_then(|action| action.kind)
                    .ok_or(JobError::Missing("action"))?,
            ),
            timeout: Duration::from_millis(job.timeout_ms),
            kill_grace: Duration::from_millis(job.kill_grace_ms),
            output_limit_bytes: match job.output_limit_bytes {
                0 => limits::RUN_OUTPUT_BYTES,
                limit => limit,
            },
            created: Timestamp(job.created_ms),
            not_before: Timestamp(job.not_before_ms),
            expires: Timestamp(job.expires_ms),
            policy_version: job.policy_version,
            request_id: job.request_id,
            operator: job.operator,
            idempotent: job.idempotent,
        };
        parsed.check()?;
        Ok(parsed)
    }

    /// To the wire; a job beyond a limit is refused here, before anyone signs it.
    pub fn to_wire(&self) -> Result<wire::Job, JobError> {
        self.check()?;
        let job = wire::Job {
            job_id: self.id.to_wire(),
            trust_domain: self.trust_domain.clone(),
            targets_root: Bytes::copy_from_slice(&self.targets_root),
            target_count: self.target_count,
            action: Some(wire::Action {
                kind: Some(self.action.to_wire()),
            }),
            timeout_ms: millis(self.timeout),
            kill_grace_ms: millis(self.kill_grace),
            output_limit_bytes: self.output_limit_bytes,
            created_ms: self.created.as_ms(),
            not_before_ms: self.not_before.as_ms(),
            expires_ms: self.expires.as_ms(),
            policy_version: self.policy_version,
            request_id: self.request_id.clone(),
            operator: self.operator.clone(),
            idempotent: self.idempotent,
        };
        check_bounds("size in bytes", job.encoded_len(), 1, limits::JOB_BYTES)?;
        Ok(job)
    }

    fn check(&self) -> Result<(), JobError> {
        check_bounds(
            "trust domain's length in bytes",
            self.trust_domain.len(),
            1,
            TRUST_DOMAIN_BYTES,
        )?;
        bounds(
            "number of targets",
            self.target_count,
            1,
            count(limits::JOB_TARGETS),
        )?;
        bounds(
            "timeout in ms",
            millis(self.timeout),
            1,
            millis(TIMEOUT_MAX),
        )?;
        bounds(
            "kill grace in ms",
            millis(self.kill_grace),
            0,
            millis(KILL_GRACE_MAX),
        )?;
        bounds(
            "output limit in bytes",
            self.output_limit_bytes,
            1,
            limits::RUN_OUTPUT_BYTES_MAX,
        )?;
        bounds("policy version", self.policy_version, 1, u64::MAX)?;
        for (what, begin) in [
            ("its creation at", self.created),
            ("its beginning at", self.not_before),
        ] {
            if self.expires <= begin {
                return Err(JobError::Window {
                    expires: self.expires,
                    what,
                    begin,
                });
            }
        }
        check_word("request id", &self.request_id, REQUEST_ID_BYTES)?;
        check_word("operator", &self.operator, limits::NAME_BYTES)?;
        self.action.check()
    }
}

impl Action {
    /// Its surroundings.
    #[must_use]
    pub fn context(&self) -> &Context {
        match self {
            Self::Command { context, .. } | Self::Script { context, .. } => context,
        }
    }

    fn from_wire(kind: wire::action::Kind) -> Self {
        match kind {
            wire::action::Kind::Command(command) => Self::Command {
                argv: command.argv,
                context: Context::from_wire(command.env, command.cwd, command.user),
                stdin: command.stdin,
            },
            wire::action::Kind::Script(script) => Self::Script {
                content: script.content,
                args: script.args,
                context: Context::from_wire(script.env, script.cwd, script.user),
            },
        }
    }

    fn to_wire(&self) -> wire::action::Kind {
        let context = self.context();
        let (env, cwd, user) = (
            context
                .env
                .iter()
                .map(|(name, value)| wire::EnvVar {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
            context.cwd.clone().unwrap_or_default(),
            context.user.clone().unwrap_or_default(),
        );
        match self {
            Self::Command { argv, stdin, .. } => wire::action::Kind::Command(wire::Command {
                argv: argv.clone(),
                env,
                cwd,
                user,
                stdin: stdin.clone(),
            }),
            Self::Script { content, args, .. } => wire::action::Kind::Script(wire::Script {
                content: content.clone(),
                args: args.clone(),
                env,
                cwd,
                user,
            }),
        }
    }

    fn check(&self) -> Result<(), JobError> {
        match self {
            Self::Command { argv, .. } => {
                check_bounds("number of arguments", argv.len(), 1, limits::JOB_ARGS)?;
                if argv.first().is_some_and(String::is_empty) {
                    return Err(JobError::Missing("program"));
                }
                check_arguments(argv)?;
            }
            Self::Script { content, args, .. } => {
                check_bounds(
                    "script's size in bytes",
                    content.len(),
                    1,
                    limits::JOB_BYTES,
                )?;
                check_bounds("number of arguments", args.len(), 0, limits::JOB_ARGS)?;
                check_arguments(args)?;
            }
        }
        self.context().check()
    }
}

impl Context {
    fn from_wire(env: Vec<wire::EnvVar>, cwd: String, user: String) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            env: env.into_iter().map(|var| (var.name, var.value)).collect(),
            cwd: some(cwd),
            user: some(user),
        }
    }

    fn check(&self) -> Result<(), JobError> {
        check_bounds(
            "number of environment variables",
            self.env.len(),
            0,
            limits::JOB_ARGS,
        )?;
        let mut names = std::collections::HashSet::new();
        for (name, value) in &self.env {
            if name.is_empty() {
                return Err(JobError::Missing("name for an environment variable"));
            }
            if name.contains(['=', '\0']) {
                return Err(text(
                    "environment variable's name",
                    name,
                    "holds `=` or NUL",
                ));
            }
            if value.contains('\0') {
                return Err(text("environment variable", name, "holds NUL"));
            }
            if !names.insert(name) {
                return Err(text("environment variable", name, "is given twice"));
            }
        }
        if let Some(cwd) = &self.cwd {
            check_bounds("working folder's length in bytes", cwd.len(), 1, PATH_BYTES)?;
            if !cwd.starts_with('/') {
                return Err(text("working folder", cwd, "is not absolute"));
            }
            if cwd.contains('\0') {
                return Err(text("working folder", cwd, "holds NUL"));
            }
        }
        if let Some(user) = &self.user {
            check_bounds("user's length in bytes", user.len(), 1, USER_BYTES)?;
            if user.contains(['\0', ':', '\n', '/']) {
                return Err(text("user", user, "is no user's name"));
            }
        }
        Ok(())
    }
}

fn check_arguments(arguments: &[String]) -> Result<(), JobError> {
    match arguments.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(text("argument", argument, "holds NUL")),
        None => Ok(()),
    }
}

/// Texts that go to logs and tables: short, and without anything that could forge a line.
fn check_word(what: &'static str, word: &str, max: usize) -> Result<(), JobError> {
    if word.len() > max {
        return Err(JobError::Bounds {
            what,
            value: count(word.len()),
            min: 0,
            max: count(max),
        });
    }
    if word.chars().any(char::is_control) {
        return Err(text(what, word, "holds control characters"));
    }
    Ok(())
}

fn check_bounds(what: &'static str, len: usize, min: usize, max: usize) -> Result<(), JobError> {
    bounds(what, count(len), count(min), count(max))
}

fn bounds(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), JobError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(JobError::Bounds {
            what,
            value,
            min,
            max,
        })
    }
}

fn text(what: &'static str, text: &str, why: &'static str) -> JobError {
    JobError::Text {
        what,
        text: text.escape_debug().take(80).collect(),
        why,
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
