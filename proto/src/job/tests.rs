use proptest::prelude::*;

use super::*;

fn job() -> Job {
    Job {
        id: JobId::random(),
        trust_domain: "example.org".to_owned(),
        targets_root: [7; 32],
        target_count: 3,
        action: Action::Command {
            argv: vec!["uname".to_owned(), "-a".to_owned()],
            context: Context {
                env: vec![("LANG".to_owned(), "C".to_owned())],
                cwd: Some("/tmp".to_owned()),
                user: Some("nobody".to_owned()),
            },
            stdin: Bytes::from_static(b"in"),
        },
        timeout: Duration::from_secs(60),
        kill_grace: Duration::from_secs(5),
        output_limit_bytes: 1024,
        created: Timestamp(1_000),
        not_before: Timestamp(1_000),
        expires: Timestamp(61_000),
        policy_version: 1,
        request_id: "r-1".to_owned(),
        operator: "alice".to_owned(),
        idempotent: false,
    }
}

fn command(job: &mut Job) -> (&mut Vec<String>, &mut Context) {
    match &mut job.action {
        Action::Command { argv, context, .. } => (argv, context),
        Action::Script { .. } => unreachable!("the sample job is a command"),
    }
}

#[test]
fn comes_back_from_the_wire() {
    let command = job();
    assert_eq!(Job::decode(&command.encode().unwrap()).unwrap(), command);
    let script = Job {
        action: Action::Script {
            content: Bytes::from_static(b"#!/bin/sh\ntrue\n"),
            args: vec![String::new(), "ü".to_owned()],
            context: Context::default(),
        },
        ..job()
    };
    assert_eq!(Job::decode(&script.encode().unwrap()).unwrap(), script);
}

#[test]
fn no_output_limit_means_the_usual_one() {
    let mut wire = job().to_wire().unwrap();
    wire.output_limit_bytes = 0;
    assert_eq!(
        Job::from_wire(wire).unwrap().output_limit_bytes,
        limits::RUN_OUTPUT_BYTES
    );
}

#[test]
fn refuses_what_breaks_a_limit_on_both_ways() {
    type Break = fn(&mut Job);
    let breaks: &[(&str, Break)] = &[
        ("no domain", |job| job.trust_domain.clear()),
        ("long domain", |job| job.trust_domain = "a".repeat(256)),
        ("no target", |job| job.target_count = 0),
        ("too many targets", |job| {
            job.target_count = count(limits::JOB_TARGETS) + 1;
        }),
        ("no timeout", |job| job.timeout = Duration::ZERO),
        ("long timeout", |job| {
            job.timeout = TIMEOUT_MAX + Duration::from_millis(1);
        }),
        ("long grace", |job| {
            job.kill_grace = KILL_GRACE_MAX + Duration::from_millis(1);
        }),
        ("much output", |job| {
            job.output_limit_bytes = limits::RUN_OUTPUT_BYTES_MAX + 1;
        }),
        ("no policy", |job| job.policy_version = 0),
        ("expires when made", |job| job.expires = job.created),
        ("expires before it begins", |job| {
            job.not_before = job.expires.after(Duration::from_millis(1));
        }),
        ("forged log line", |job| job.request_id = "a\nb".to_owned()),
        ("long operator", |job| job.operator = "a".repeat(254)),
        ("no argv", |job| command(job).0.clear()),
        ("empty program", |job| {
            *command(job).0 = vec![String::new()];
        }),
        ("NUL in argument", |job| {
            command(job).0.push("a\0b".to_owned());
        }),
        ("too many arguments", |job| {
            *command(job).0 = vec!["a".to_owned(); limits::JOB_ARGS + 1];
        }),
        ("empty variable", |job| {
            command(job).1.env.push((String::new(), String::new()));
        }),
        ("= in variable", |job| {
            command(job).1.env.push(("A=B".to_owned(), String::new()));
        }),
        ("NUL in value", |job| {
            command(job).1.env.push(("A".to_owned(), "\0".to_owned()));
        }),
        ("variable twice", |job| {
            command(job)
                .1
                .env
                .push(("LANG".to_owned(), "de".to_owned()));
        }),
        ("relative folder", |job| {
            command(job).1.cwd = Some("tmp".to_owned());
        }),
        ("no user's name", |job| {
            command(job).1.user = Some("a:b".to_owned());
        }),
        ("empty script", |job| {
            job.action = Action::Script {
                content: Bytes::new(),
                args: Vec::new(),
                context: Context::default(),
            };
        }),
        ("too large altogether", |job| {
            command(job).0.push("a".repeat(limits::JOB_BYTES));
        }),
    ];
    for (name, make_bad) in breaks {
        let mut bad = job();
        make_bad(&mut bad);
        assert!(bad.to_wire().is_err(), "{name}");
        assert!(bad.encode().is_err(), "{name}");
    }
}

#[test]
fn refuses_wire_jobs_with_missing_parts() {
    let whole = job().to_wire().unwrap();
    for (wire, message) in [
        (
            wire::Job {
                action: None,
                ..whole.clone()
            },
            "the job has no action",
        ),
        (
            wire::Job {
                job_id: Bytes::new(),
                ..whole.clone()
            },
            "the job has no valid id",
        ),
        (
            wire::Job {
                targets_root: Bytes::from_static(b"short"),
                ..whole.clone()
            },
            "the job's targets root's length in bytes is 5, allowed is 32 to 32",
        ),
        (
            wire::Job {
                timeout_ms: u64::MAX,
                ..whole.clone()
            },
            "the job's timeout in ms is 18446744073709551615, allowed is 1 to 2592000000",
        ),
    ] {
        assert_eq!(Job::from_wire(wire).unwrap_err().to_string(), message);
    }
    let large = vec![0; limits::JOB_BYTES + 1];
    assert!(matches!(Job::decode(&large), Err(JobError::Bounds { .. })));
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ignored = Job::decode(&bytes);
    }

    #[test]
    fn every_command_comes_back(
        argv in proptest::collection::vec("[^\0]{1,12}", 1..8),
        value in "[^\0]{0,12}",
        stdin in proptest::collection::vec(any::<u8>(), 0..64),
        times in (0_i64..1_000_000, 0_i64..1_000_000, 1_i64..1_000_000),
    ) {
        let job = Job {
            action: Action::Command {
                argv,
                context: Context { env: vec![("A".to_owned(), value)], cwd: None, user: None },
                stdin: stdin.into(),
            },
            created: Timestamp(times.0),
            not_before: Timestamp(times.1),
            expires: Timestamp(times.0.max(times.1) + times.2),
            ..job()
        };
        prop_assert_eq!(Job::decode(&job.encode().unwrap()).unwrap(), job);
    }
}
