//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use clap_complete::Shell;

use crate::{output::Format, terminal::When, thing::Thing, when::parse_span};

/// Know and drive every machine you own.
#[derive(Debug, Parser)]
#[command(
    name = "nexusctl",
    version,
    max_term_width = 100,
    propagate_version = false
)]
pub struct Cli {
    /// Client configuration [default: ~/.config/nexus/client.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "NEXUSCTL_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Say on standard error what is being done, with the request's id
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: When,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a collector and agents on this machine and show them at work
    Demo(DemoArgs),
    /// Turn a one-time operator code into keys of your own
    Login(LoginArgs),
    /// List things: nodes jobs runs tokens identities shards collectors events audit
    Get(GetArgs),
    /// Everything about one thing
    Describe(DescribeArgs),
    /// Ask the fleet in SQL (one read-only SQLite statement)
    Query(QueryArgs),
    /// A metric of a node over time, as a chart or as points
    Metrics(MetricsArgs),
    /// Run a command or script on nodes
    Run(Box<RunArgs>),
    /// What a job wrote
    Logs(LogsArgs),
    /// Wait until a job has ended
    Wait(WaitArgs),
    /// Stop a job
    Cancel(CancelArgs),
    /// Tokens that let nodes join
    #[command(subcommand, arg_required_else_help = true)]
    Token(TokenCommand),
    /// Set (k=v) and remove (k-) labels of nodes
    Label(LabelArgs),
    /// The audit chain
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
    /// Show which files and collector are used
    Config(ConfigArgs),
    /// Print a shell's completion script
    Completion {
        /// bash, zsh, fish …
        shell: Shell,
    },
    /// Print the version
    Version(ConfigArgs),
}

/// How rows are printed.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Format of the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// Leave out the header line
    #[arg(long)]
    pub no_headers: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for everything the demo makes [default: ~/.local/state/nexus-demo]
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// How many agents
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u32, 1000>)]
    pub agents: u32,
    /// Stop everything after the tour
    #[arg(long)]
    pub once: bool,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The code `nexus-collector init` or `login-code` printed, @FILE, or - for standard input
    pub code: String,
    /// Reach the collector here instead of where the code says (repeatable)
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<String>,
    /// Believe this signer policy and no other: policy_sha256 of another operator's `nexusctl config`
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    pub policy_sha256: Option<[u8; 32]>,
    /// Give up after this long
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = parse_span)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// TYPE or TYPE/NAME
    #[arg(value_name = "TYPE[/NAME]")]
    pub thing: String,
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Labels of nodes, such as `role=web,zone in (a,b),!canary`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Fields, such as `state=connected,name!=web-1`
    #[arg(long, value_name = "SELECTOR")]
    pub field_selector: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = number::<u32, U32_MAX>)]
    pub limit: Option<u32>,
    /// As it was then: RFC 3339, now, or an age such as -10m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub as_of: Option<String>,
    /// Give up after this long
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = parse_span)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// TYPE/NAME, or TYPE followed by NAME
    #[arg(value_name = "TYPE/NAME")]
    pub thing: String,
    /// Name or id
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Give up after this long
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = parse_span)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The statement, or - for standard input
    #[arg(
        value_name = "SQL",
        required_unless_present = "schema",
        conflicts_with = "schema"
    )]
    pub sql: Option<String>,
    /// List the tables and columns there are
    #[arg(long)]
    pub schema: bool,
    /// As it was then: RFC 3339, now, or an age such as -10m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub as_of: Option<String>,
    /// At most so many rows
    #[arg(long, value_name = "N", value_parser = number::<u64, { u64::MAX }>)]
    pub limit: Option<u64>,
    /// Give up after this long [default: the collector's]
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexusctl metrics node/web-1 node_load1 --range 6h
  nexusctl metrics node/web-1 'node_cpu_seconds_total{mode=\"idle\"}' --rate
  nexusctl metrics node/web-1 node_memory_MemAvailable_bytes --from 7d --step 1h -o csv")]
pub struct MetricsArgs {
    /// node/NAME (or node NAME), then a metric, such as node_load1 or 'node_cpu_seconds_total{mode=\"idle\"}'
    #[arg(value_name = "node/NAME METRIC", required = true, num_args = 1..=3)]
    pub words: Vec<String>,
    /// How far back, from --to
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "1h",
        value_parser = parse_span,
        conflicts_with = "from"
    )]
    pub range: Duration,
    /// From then: RFC 3339, or an age such as -10m or 7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Until then [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// One point for each such span [default: in a chart a column, else as fine as points are kept]
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    pub step: Option<Duration>,
    /// How fast a counter rises, per second
    #[arg(long)]
    pub rate: bool,
    /// Give up after this long
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = parse_span)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
When it asks:
  Before a job is signed, its targets are named. With -l and --all it then asks whether to go on, and anything but yes ends it \
  with exit code 1. It does not ask with --nodes, whose words name the targets, nor with --yes. It does not ask either where \
  standard input is no terminal, as in a script, in cron or behind a pipe: the job runs at once. --dry-run shows who would \
  run what, and runs nothing.")]
pub struct RunArgs {
    /// Nodes with these labels, such as `role=web,zone in (a,b),!canary`
    #[arg(short = 'l', long, value_name = "SELECTOR", group = "targets")]
    pub selector: Option<String>,
    /// Nodes of these names or ids
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "targets", value_parser = NonEmptyStringValueParser::new())]
    pub nodes: Vec<String>,
    /// Every node
    #[arg(long, group = "targets")]
    pub all: bool,
    /// Run this script (- for standard input); what follows -- are its arguments
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// How long each execution may take
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = parse_span)]
    pub timeout: Duration,
    /// How long absent nodes are waited for
    #[arg(long, value_name = "SPAN", default_value = "60s", value_parser = parse_span)]
    pub expires: Duration,
    /// How long this command waits for the job's end [default: as long as it takes]
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    pub wait: Option<Duration>,
    /// Run as this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Set a variable of the environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Run in this folder
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Show who would run what, and run nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask on a terminal whether to go on (see below)
    #[arg(short, long)]
    pub yes: bool,
    /// Let control characters in the nodes' output reach the terminal
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub output: OutputArgs,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job's id, or enough of its beginning
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Only what this node wrote
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Stay until the job has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Let control characters in the nodes' output reach the terminal
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The job's id, or enough of its beginning
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Give up after this long [default: as long as it takes]
    #[arg(long, visible_alias = "wait", value_name = "SPAN", value_parser = parse_span)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The job's id, or enough of its beginning
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new join token
    Create(TokenCreateArgs),
    /// Make a token useless
    Revoke {
        /// The token's id
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u32, U32_MAX>)]
    pub uses: u32,
    /// How long it is good for
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = parse_span)]
    pub ttl: Duration,
    /// A label the nodes will have (repeatable)
    #[arg(long, value_name = "K=V")]
    pub label: Vec<String>,
    /// Where nodes reach the collector [default: what the collector advertises] (repeatable)
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LabelArgs {
    /// node/NAME (or node NAME), then k=v to set and k- to remove
    #[arg(value_name = "node/NAME k=v k2-", required = true, num_args = 1.., allow_hyphen_values = false)]
    pub words: Vec<String>,
    /// Replace values that differ
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Recompute the whole chain and compare it with what was seen before
    Verify {
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `TYPE/NAME` or `TYPE NAME…` names.
pub struct Named {
    /// The type.
    pub thing: Thing,
    /// The names, none for all.
    pub names: Vec<String>,
}

/// 64 hexadecimal digits.
fn parse_sha256(text: &str) -> Result<[u8; 32], String> {
    let why = || format!("`{text}` is no SHA-256 of 64 hexadecimal digits");
    let mut digest = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return Err(why());
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let pair = str::from_utf8(pair).map_err(|_| why())?;
        if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(why());
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| why())?;
    }
    Ok(digest)
}

const U32_MAX: u64 = 4_294_967_295;

/// A number from 1 to `MOST`.
fn number<T: TryFrom<u64>, const MOST: u64>(text: &str) -> Result<T, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=MOST).contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("`{text}` is no whole number from 1 to {MOST}"))
}
