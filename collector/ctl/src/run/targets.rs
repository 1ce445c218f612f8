//! Who is meant by `-l`, `--nodes` or `--all`, and whether the collector's answer is that.
//!
//! The collector knows which nodes there are, the operator which are meant. What it answers is held against
//! the words of the command line before anything is signed: every node must have been asked for, and every
//! word must mean exactly one node. Names are bound that way, because an agent refuses a job that calls it
//! by a name it does not have. Labels are kept by the collector alone: which nodes carry one is its word,
//! and the operator sees the names first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use nexus_pki::merkle::{Target, Tree};
use nexus_proto::{
    ids::{Incarnation, NodeId, is_node_name},
    operator::v1::{ListNodesRequest, Node},
    selector::Selector,
};

use crate::{
    cli::RunArgs,
    connection::Collector,
    fault::{Context as _, Fault, Outcome, one_line},
    nodes, terminal,
};

/// Targets that are shown by name before a job is signed.
const NAMED: usize = 10;

/// What the command line says of targets.
pub(crate) enum Wanted {
    Labels(String, Selector),
    Names(Vec<String>),
    All,
}

impl Wanted {
    pub(crate) fn from_args(args: &RunArgs) -> Outcome<Self> {
        match &args.selector {
            Some(selector) if selector.trim().is_empty() => {
                Err(Fault::usage("run -l", "the selector is empty").hint("--all means every node"))
            }
            Some(text) => Ok(Self::Labels(text.clone(), nodes::selector(text)?)),
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

    /// Whether the operator's own words name every target.
    pub(crate) fn names_all(&self) -> bool {
        matches!(self, Self::Names(_))
    }

    /// Holds the collector's answer against what was asked.
    fn check(&self, answer: Vec<Node>) -> Outcome<Checked> {
        let mut ids = BTreeSet::new();
        let mut known = Vec::with_capacity(answer.len());
        for node in answer {
            let node = Candidate::read(node)?;
            if !ids.insert(node.target.node) {
                return Err(untrue(format!("it lists {node} twice")));
            }
            known.push(node);
        }
        match self {
            Self::All => {}
            Self::Labels(_, selector) => {
                if let Some(other) = known.iter().find(|node| !selector.matches(&node.labels)) {
                    return Err(untrue(format!(
                        "it names {other}, whose labels do not match `{selector}`"
                    )));
                }
            }
            Self::Names(words) => {
                check_names(words, &known)?;
                if let Some(unfit) = known.iter().find(|node| !node.is_fit()) {
                    let why = format!("node {} is {}", unfit.target.name, unfit.state);
                    return Err(Fault::new("run", why)
                        .hint("a node takes no jobs in this state; leave it out"));
                }
            }
        }
        let (fit, unfit): (Vec<_>, Vec<_>) = known.into_iter().partition(Candidate::is_fit);
        Ok(Checked {
            targets: fit.into_iter().map(|node| node.target).collect(),
            left_out: unfit
                .into_iter()
                .map(|node| format!("{} ({})", node.target.name, node.state))
                .collect(),
        })
    }
}

/// As the job's record shows it.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(text, _) => f.write_str(text),
            Self::Names(names) => write!(f, "nodes {}", names.join(",")),
            Self::All => f.write_str("all nodes"),
        }
    }
}

/// The targets, at least one, each of them asked for.
pub(crate) async fn choose(collector: &mut Collector, wanted: &Wanted) -> Outcome<Tree> {
    let mut request = ListNodesRequest::default();
    match wanted {
        Wanted::Labels(text, _) => request.selector.clone_from(text),
        Wanted::Names(names) => request.names.clone_from(names),
        Wanted::All => {}
    }
    let checked = wanted.check(collector.nodes(request).await?)?;
    if !checked.left_out.is_empty() {
        terminal::warn(&format!("left out: {}", checked.left_out.join(", ")));
    }
    if checked.targets.is_empty() {
        return Err(Fault::new("run", format!("no node matches `{wanted}`"))
            .hint("`nexusctl get nodes -o wide` shows nodes and their labels"));
    }
    Tree::sorted(checked.targets).doing("choose the targets")
}

/// `2 nodes: db-1, web-1`, with ids where a name alone would not tell nodes apart.
pub(crate) fn shown(tree: &Tree) -> String {
    let mut names: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for target in tree.targets() {
        names.entry(&target.name).or_default().push(target.node);
    }
    let words = names.iter().flat_map(|(name, ids)| {
        ids.iter().map(move |id| match ids.len() {
            1 => (*name).to_owned(),
            _ => format!("{name} ({id})"),
        })
    });
    let mut text: Vec<_> = words.take(NAMED).collect();
    let more = tree.targets().len().saturating_sub(NAMED);
    if more > 0 {
        text.push(format!("… and {more} more"));
    }
    let nodes = terminal::counted(tree.count(), "node");
    format!("{nodes}: {}", text.join(", "))
}

/// The collector's answer, once it was found to be one to the question.
#[derive(Debug)]
struct Checked {
    targets: Vec<Target>,
    left_out: Vec<String>,
}

/// One node of the answer.
#[derive(Debug)]
struct Candidate {
    target: Target,
    state: String,
    labels: BTreeMap<String, String>,
}

impl Candidate {
    fn read(node: Node) -> Outcome<Self> {
        let what = || format!("choose node {}", node.name);
        if !is_node_name(&node.name) {
            return Err(untrue(format!("`{}` is no name of a node", node.name)));
        }
        Ok(Self {
            target: Target {
                node: NodeId::from_wire(&node.id).doing(what())?,
                incarnation: Incarnation::from_wire(&node.incarnation).doing(what())?,
                name: node.name,
            },
            state: one_line(&node.state),
            labels: node.labels.into_iter().collect(),
        })
    }

    /// A quarantined or revoked node takes no jobs.
    fn is_fit(&self) -> bool {
        !matches!(self.state.as_str(), "quarantined" | "revoked")
    }

    /// A word that is an id means that id, any other a name.
    fn is_meant_by(&self, word: &str) -> bool {
        match word.parse::<NodeId>() {
            Ok(id) => self.target.node == id,
            Err(_) => self.target.name == word,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.target.name, self.target.node)
    }
}

fn check_names(words: &[String], known: &[Candidate]) -> Outcome {
    for word in words {
        match known.iter().filter(|node| node.is_meant_by(word)).count() {
            1 => {}
            0 => return Err(untrue(format!("it leaves out `{word}`"))),
            several => return Err(untrue(format!("it has {several} nodes for `{word}`"))),
        }
    }
    let stranger = known
        .iter()
        .find(|node| !words.iter().any(|word| node.is_meant_by(word)));
    match stranger {
        None => Ok(()),
        Some(node) => Err(untrue(format!("it names {node}, which was not asked for"))),
    }
}

fn untrue(why: String) -> Fault {
    let what = "the collector's answer is not what was asked";
    Fault::new(what, why).hint("nothing was signed; find out whether the collector was taken over")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: &str, role: &str) -> Node {
        Node {
            id: NodeId::random().to_wire(),
            incarnation: Incarnation::random().to_wire(),
            name: name.to_owned(),
            state: state.to_owned(),
            labels: [("role".to_owned(), role.to_owned())].into(),
            ..Node::default()
        }
    }

    fn named(words: &[&str]) -> Wanted {
        Wanted::Names(words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn labelled(text: &str) -> Wanted {
        Wanted::Labels(text.to_owned(), Selector::parse(text).unwrap())
    }

    #[test]
    fn names_and_ids_mean_one_node_each() {
        let (a, b) = (node("a", "connected", "x"), node("b", "disconnected", "x"));
        let id = nodes::id_text(&b.id);
        let both = vec![a.clone(), b.clone()];
        let checked = named(&["a", &id]).check(both.clone()).unwrap();
        assert_eq!(checked.targets.len(), 2);
        // The same node by two words is one target.
        assert_eq!(
            named(&["b", &id]).check(vec![b.clone()]).unwrap().targets,
            [Candidate::read(b.clone()).unwrap().target]
        );
        for (words, answer, why) in [
            (vec!["a"], both.clone(), "names b ("),
            (vec!["a", "b"], vec![a.clone()], "leaves out `b`"),
            (vec!["a"], vec![a.clone(), a.clone()], "lists a ("),
            (
                vec!["a"],
                vec![a.clone(), node("a", "connected", "x")],
                "2 nodes for `a`",
            ),
            (vec![id.as_str()], vec![a.clone()], "leaves out"),
            (
                vec!["a"],
                vec![node("a\u{1b}[2J", "connected", "x")],
                "no name of a node",
            ),
            (vec!["a"], Vec::new(), "leaves out `a`"),
        ] {
            let fault = named(&words).check(answer).unwrap_err();
            assert!(fault.why.contains(why), "{words:?}: {fault}");
        }
    }

    #[test]
    fn labels_are_matched_here_too() {
        let (web, db) = (node("a", "connected", "web"), node("b", "connected", "db"));
        let wanted = labelled("role=web");
        assert_eq!(wanted.check(vec![web.clone()]).unwrap().targets.len(), 1);
        let fault = wanted.check(vec![web, db]).unwrap_err();
        assert!(
            fault.why.contains("labels do not match `role=web`"),
            "{fault}"
        );
    }

    #[test]
    fn what_takes_no_jobs_is_refused_by_name_and_left_out_of_sets() {
        let bad = node("b", "quarantined", "web");
        let nodes = vec![node("a", "connected", "web"), bad.clone()];
        for wanted in [labelled("role=web"), Wanted::All] {
            let checked = wanted.check(nodes.clone()).unwrap();
            assert_eq!(checked.targets.len(), 1);
            assert_eq!(checked.left_out, ["b (quarantined)"]);
        }
        let fault = named(&["b"]).check(vec![bad]).unwrap_err();
        assert_eq!(fault.why, "node b is quarantined");
    }

    #[test]
    fn names_stand_before_the_signature() {
        let tree = |count: usize| {
            let nodes = (0..count).map(|n| node(&format!("n{n:02}"), "connected", "x"));
            Tree::sorted(Wanted::All.check(nodes.collect()).unwrap().targets).unwrap()
        };
        assert_eq!(shown(&tree(1)), "1 node: n00");
        assert!(shown(&tree(12)).ends_with("n08, n09, … and 2 more"));
        let twins = vec![node("a", "connected", "x"), node("a", "connected", "x")];
        let twins = Tree::sorted(Wanted::All.check(twins).unwrap().targets).unwrap();
        let id = twins.targets()[0].node;
        assert!(
            shown(&twins).contains(&format!("a ({id})")),
            "{}",
            shown(&twins)
        );
    }
}
