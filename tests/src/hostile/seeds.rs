//! Real inputs, made by the programs' own encoders: where fuzzing begins.

mod documents;

use std::{fs, path::Path, time::Duration};

use nexus_agent::helper::inside as agent;
use nexus_pki::{
    csr::PrivateKey,
    operator_code::OperatorCode,
    token::{self, JoinToken},
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{NodeId, TokenId},
};
use nexus_runtime::settings;
use nexus_store::inside;
use prost::{Message as _, bytes::Bytes};

use super::{
    csr::pkcs8,
    fixture::{DOMAIN, NOW, ROOT, fleet},
};

/// An input with the names of its target and its file.
pub type Seed = (&'static str, String, Vec<u8>);

/// All of them.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, choice: u8, content: &[u8]| {
        let number = seeds.len();
        let name = format!("seed-{number:03}");
        seeds.push((target, name, [&[choice], content].concat()));
    };
    words(&mut add);
    requests(&mut add);
    documents::envelopes(&mut add);
    documents::frames(&mut add);
    documents::records(&mut add);
    configs(&mut add);
    statements(&mut add);
    streams(&mut add);
    chunks(&mut add);
    helpers(&mut add);
    seeds
}

/// Writes them below `corpus`, a folder a target.
pub fn write(corpus: &Path) -> std::io::Result<()> {
    for (target, name, input) in all() {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), input)?;
    }
    Ok(())
}

type Add<'a> = &'a mut dyn FnMut(&'static str, u8, &[u8]);

/// Three reports of two series, and pieces that are sealed when they are read.
fn chunks(add: Add<'_>) {
    let report = |step: u8, value: u8| {
        let mut bytes = vec![step, 10, 2];
        for (form, byte) in [(0x10, value), (0x21, 7)] {
            bytes.push(form);
            bytes.extend([0, 0, 0, 0, 0, byte, 0, 0]);
        }
        bytes
    };
    let reports = [report(20, 1), report(20, 9), report(5, 4)].concat();
    add("chunk", 6, &reports);
    for (choice, body) in inside::chunks::examples() {
        add("chunk", choice, &body);
    }
}

fn join_token() -> JoinToken {
    JoinToken {
        id: TokenId::random(),
        root_sha256: ROOT,
        policy_digest: fleet().policy.digest(),
        addresses: vec!["collector.fleet.test:7460".to_owned()],
        labels: [("role".to_owned(), "web".to_owned())].into(),
        created: NOW,
        expires: NOW.after(Duration::from_secs(3600)),
        uses: 5,
        trust_domain: DOMAIN.to_owned(),
    }
}

fn words(add: Add<'_>) {
    let token = token::create(&fleet().key, &join_token()).expect("a token");
    add("words", b'0', token.to_string().as_bytes());
    add("words", b'1', &token.to_bytes());
    let addresses = vec!["[::1]:7461".to_owned()];
    let code = OperatorCode::generate("ann", DOMAIN, ROOT, addresses, NOW).expect("a code");
    add("words", b'2', code.encode().as_bytes());
    for text in [
        "role=web,zone in (a,b),tier notin (x, y),!canary,example.com/x!=1",
        "a==b,c",
        "k in (,x)",
    ] {
        add("words", b'3', text.as_bytes());
    }
    add("words", b'4', br"name=web-1,state!=connected,id=a\,b\=c\\");
    add(
        "words",
        b'5',
        b"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    );
    add("words", b'6', NOW.to_string().as_bytes());
    add("words", b'6', NodeId::random().to_string().as_bytes());
    for id in [
        format!("spiffe://{DOMAIN}/agent/{}", NodeId::random()),
        format!("spiffe://{DOMAIN}/collector/eu/c1"),
        format!("spiffe://{DOMAIN}/operator/ann"),
    ] {
        add("words", b'7', id.as_bytes());
    }
}

fn requests(add: Add<'_>) {
    let key = PrivateKey::from_pkcs8(&pkcs8()).expect("a key");
    let request = key.csr().expect("a request");
    add("csr", 0, &request);
    // An outer header of three bytes, then what is signed, with one of three bytes or fewer.
    let info = request.get(3..).unwrap_or_default();
    let length = match info.get(1).copied().unwrap_or_default() {
        0x81 => usize::from(info.get(2).copied().unwrap_or_default()) + 3,
        short => usize::from(short) + 2,
    };
    add("csr", 2, info.get(..length).unwrap_or_default());
    add("csr", 1, &[0, 2, 0x30, 0]);
    add("csr", 3, &[0, 0, 90, 1]);
    add("csr", 3, &[1, 1, 0, 128, 0, 0, 20, 3]);
}

fn helpers(add: Add<'_>) {
    use super::helper::{examples, greeted};
    let (asked, said) = examples();
    for message in &asked {
        let parted = documents::part(&message.encode_to_vec());
        add(
            "helper",
            0,
            &[&[0], message.encode_to_vec().as_slice()].concat(),
        );
        add("helper", 1, &[&[3], greeted(&parted).as_slice()].concat());
        add("helper", 2, &[&[0], parted.as_slice()].concat());
    }
    let frames: Vec<u8> = said.iter().flat_map(agent::frame).collect();
    add("helper", 3, &[&[5], frames.as_slice()].concat());
    for message in &said {
        add(
            "helper",
            0,
            &[&[0], message.encode_to_vec().as_slice()].concat(),
        );
    }
    let parts = said
        .iter()
        .map(|said| documents::part(&said.encode_to_vec()));
    let parts: Vec<_> = parts.collect();
    add("helper", 4, &[[0].as_slice(), &parts.concat()].concat());
    // All that is written, and then the end.
    let followed = parts.get(3..).unwrap_or_default();
    add("helper", 4, &[[0].as_slice(), &followed.concat()].concat());
}

fn configs(add: Add<'_>) {
    let agent = settings::print_defaults(nexus_agent::config::KEYS);
    let collector = settings::print_defaults(nexus_collector::inside::keys());
    let strip = |text: &str| -> String {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.flat_map(|line| [line, "\n"]).collect()
    };
    add("config", 0, strip(&agent).as_bytes());
    add("config", 1, strip(&collector).as_bytes());
    add(
        "config",
        0,
        b"interval = \"5s\"\nlog.format = \"json\"\n\0[spool]\nage = \"1h 30m\"\n\0NAME=web-1\nSPOOL_METRICS_BYTES=128MiB\0transport=tcp\naddresses=a:1,[::1]:2",
    );
    add(
        "config",
        0,
        b"intervall = \"5s\"\n[spool]\nage = 5\n[nope]\nx = 1\ny = [\n",
    );
    add(
        "config",
        1,
        b"shards = 9\nadvertise.agents = [\"a:1\", 2]\n\0\0LIMITS_CONNECTIONS=x",
    );
    add(
        "config",
        2,
        b"addresses = [\"a.example:7461\", \"[::1]:7461\"]\n",
    );
    add("config", 2, b"addresses = []\n");
}

fn statements(add: Add<'_>) {
    for sql in [
        "SELECT name, state FROM nodes WHERE name LIKE 'web%' ORDER BY 1",
        "SELECT node, count(*) FROM packages GROUP BY node HAVING count(*) > 0",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "WITH packages AS (SELECT name FROM nodes) SELECT * FROM packages",
        "SELECT l.key, j.value FROM labels l, json_each('[1,2]') j",
        "SELECT value, labels FROM metric_history WHERE node = 'web-1' AND name = 'node_load1'",
        "SELECT name, row_number() OVER (PARTITION BY state ORDER BY name) FROM nodes",
        "ATTACH 'x' AS y",
        "PRAGMA writable_schema = 1",
        "CREATE TEMP VIEW v AS SELECT 1",
        "INSERT INTO nodes VALUES (1) RETURNING *",
        "SELECT * FROM sqlite_schema",
        "SELECT * FROM temp.nexus_permitted",
        "WITH nodes AS (SELECT * FROM node_history) SELECT * FROM nodes",
        "SELECT printf('%.*c', 9000000, 'x')",
        "VACUUM INTO 'x'",
        "SELECT 1; SELECT 2",
    ] {
        for choice in [0, 2, 4] {
            add("sql", choice, sql.as_bytes());
        }
    }
    // SELECT * FROM nodes; WITH x AS ( SELECT * FROM packages ) SELECT count(*) FROM x
    for words in [
        [0_u8, 1, 2, 3].as_slice(),
        &[16, 18, 17, 8, 0, 1, 2, 5, 9, 0, 10, 2, 18],
        &[0, 1, 2, 77],
        &[59, 13],
    ] {
        for choice in [1, 3, 5] {
            add("sql", choice, words);
        }
    }
}

fn streams(add: Add<'_>) {
    use super::stream::{frame, headers};
    let message = wire::RenewRequest {
        csr_der: Bytes::from_static(b"abc"),
    }
    .encode_to_vec();
    let length = u32::try_from(message.len())
        .unwrap_or_default()
        .to_be_bytes();
    let message = [&[0], length.as_slice(), &message].concat();
    let call = [headers("Renew"), frame(0, &message)].concat();
    let unknown = [frame(0x21, b"x"), call.clone(), frame(1, b"\0\0")].concat();
    for choice in [1, 2, 3] {
        add("stream", choice, &call);
        add("stream", choice, &unknown);
    }
    add("stream", 0, &[&[9, 3], unknown.as_slice()].concat());
    add(
        "stream",
        0,
        &[
            20, 0, 0x40, 1, 0x41, 0, 0, 2, 7, 7, 0x80, 0, 0, 1, 3, 1, 1, 1,
        ],
    );
    // A control stream with SETTINGS, a QPACK encoder's, a push stream.
    add("stream", 4, &[0, 4, 2, 6, 0x40]);
    add("stream", 4, &[2, 0x3f, 0xe1, 0x1f]);
    add("stream", 4, &[1, 0]);
    add("stream", 5, &frame(0, &message));
    add("stream", 6, &message);
    // A compressed message, and one that announces more than any may have.
    add("stream", 6, &[1, 0, 0, 0, 1, 0]);
    add("stream", 6, &[0, 0xff, 0xff, 0xff, 0xff, 0]);
    let block = headers("Renew");
    add("stream", 7, block.get(5..).unwrap_or_default());
}
