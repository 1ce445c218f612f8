//! Who is meant by `-l`, `--nodes` or `--all`.

use std::fmt;

use nexus_pki::merkle::Target;
use nexus_proto::{
    ids::{Incarnation, NodeId},
    operator::v1::{ListNodesRequest, Node},
};

use crate::{
    cli::RunArgs,
    connection::Collector,
    fault::{Context as _, Fault, Outcome},
    nodes, terminal,
};

/// What the command line says of targets.
pub(crate) enum Wanted {
    Labels(String),
    Names(Vec<String>),
    All,
}

impl Wanted {
    pub(crate) fn from_args(args: &RunArgs) -> Outcome<Self> {
        match &args.selector {
            Some(selector) if selector.trim().is_empty() => {
                Err(Fault::usage("run -l", "the selector is empty").hint("--all means every node"))
            }
            Some(selector) => {
                nodes::check_selectors(Some(selector), None)?;
                Ok(Self::Labels(selector.clone()))
            }
            None if args.all => Ok(Self::All),
            None if args.nodes.is_empty() => {
                Err(Fault::usage("run", "it is not said on which nodes")
                    .hint("give -l SELECTOR, --nodes A,B or --all"))
            }
            None => {
                let bare = |name: &String| name.strip_prefix("node/").unwrap_or(name).to_owned();
                Ok(Self::Names(args.nodes.iter().map(bare).collect()))
            }
        }
    }
}

/// As the job's record shows it.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(selector) => f.write_str(selector),
            Self::Names(names) => write!(f, "nodes {}", names.join(",")),
            Self::All => f.write_str("all nodes"),
        }
    }
}

/// The targets, at least one.
pub(crate) async fn choose(collector: &mut Collector, wanted: &Wanted) -> Outcome<Vec<Target>> {
    let mut request = ListNodesRequest::default();
    match wanted {
        Wanted::Labels(selector) => request.selector = selector.clone(),
        Wanted::Names(names) => request.names = names.clone(),
        Wanted::All => {}
    }
    let nodes = collector.nodes(request).await?;
    let named = matches!(wanted, Wanted::Names(_));
    let (fit, unfit): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| named || is_fit(node));
    if !unfit.is_empty() {
        let names: Vec<_> = unfit
            .iter()
            .map(|n| format!("{} ({})", n.name, n.state))
            .collect();
        terminal::warn(&format!("left out: {}", names.join(", ")));
    }
    if fit.is_empty() {
        return Err(Fault::new("run", format!("no node matches `{wanted}`"))
            .hint("`nexusctl get nodes -o wide` shows nodes and their labels"));
    }
    let mut targets = fit.into_iter().map(target).collect::<Outcome<Vec<_>>>()?;
    targets.sort_by_key(|target| target.node);
    targets.dedup_by_key(|target| target.node);
    Ok(targets)
}

/// A quarantined or revoked node takes no jobs; it must be named to be tried.
fn is_fit(node: &Node) -> bool {
    !matches!(node.state.as_str(), "quarantined" | "revoked")
}

fn target(node: Node) -> Outcome<Target> {
    let what = || format!("choose node {}", node.name);
    Ok(Target {
        node: NodeId::from_wire(&node.id).doing(what())?,
        incarnation: Incarnation::from_wire(&node.incarnation).doing(what())?,
        name: node.name,
    })
}
