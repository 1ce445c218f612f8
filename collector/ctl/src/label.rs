//! `nexusctl label node/X k=v k2-`

use std::collections::{BTreeMap, HashMap};

use nexus_proto::{
    operator::v1::{ListNodesRequest, SetLabelsRequest},
    selector::{check_key, check_value},
};

use crate::{
    cli::LabelArgs,
    connection::{Collector, no_such_node},
    fault::{Fault, Outcome},
    session::Session,
    terminal,
    thing::Thing,
};

/// What is to change, on whom.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    nodes: Vec<String>,
    set: BTreeMap<String, String>,
    remove: Vec<String>,
}

pub(crate) async fn label(session: &Session, args: &LabelArgs) -> Outcome {
    let change = read(&args.words)?;
    let mut collector = session.connect().await?;
    let mut changed = Vec::new();
    for node in change.nodes {
        warn_of_missing(&mut collector, &node, &change.remove).await?;
        let request = collector.request(SetLabelsRequest {
            node,
            set: change.set.clone().into_iter().collect::<HashMap<_, _>>(),
            remove: change.remove.clone(),
            overwrite: args.overwrite,
        });
        let answer = collector
            .client
            .set_labels(request)
            .await
            .map_err(no_such_node)?
            .into_inner();
        changed.extend(answer.node);
    }
    let mut style = session.style(&args.output);
    if style.format == crate::output::Format::Table {
        style.format = crate::output::Format::Wide;
    }
    crate::get::print_nodes(style, changed)
}

/// A label that is not there is no reason to fail, but it may be mistyped.
async fn warn_of_missing(collector: &mut Collector, name: &str, remove: &[String]) -> Outcome {
    if remove.is_empty() {
        return Ok(());
    }
    let request = ListNodesRequest {
        names: vec![name.to_owned()],
        ..ListNodesRequest::default()
    };
    for node in collector.nodes(request).await? {
        for key in remove.iter().filter(|key| !node.labels.contains_key(*key)) {
            terminal::warn(&format!("node {} has no label `{key}`", node.name));
        }
    }
    Ok(())
}

fn read(words: &[String]) -> Outcome<Change> {
    let is_change = |word: &str| word.contains('=') || word.ends_with('-');
    let first_change = words
        .iter()
        .position(|word| is_change(word))
        .unwrap_or(words.len());
    let (things, changes) = words.split_at_checked(first_change).unwrap_or((words, &[]));
    let (first, rest) = things.split_first().ok_or_else(|| {
        Fault::usage("label", "no node is named").hint("nexusctl label node/web-1 role=web")
    })?;
    let (thing, nodes) = Thing::parse_named(first, rest)
        .map_err(|fault| fault.hint("nexusctl label node NAME KEY=VALUE … KEY-"))?;
    if thing != Thing::Nodes {
        return Err(Fault::usage("label", "only nodes have labels"));
    }
    if nodes.is_empty() {
        return Err(
            Fault::usage("label", "no node is named").hint("nexusctl label node/web-1 role=web")
        );
    }
    let mut change = Change {
        nodes,
        ..Change::default()
    };
    for word in changes {
        add(&mut change, word)?;
    }
    if change.set.is_empty() && change.remove.is_empty() {
        return Err(Fault::usage("label", "there is no k=v or k- to apply"));
    }
    Ok(change)
}

fn add(change: &mut Change, word: &str) -> Outcome {
    let fault = |why: &dyn std::fmt::Display| Fault::usage(format!("label `{word}`"), why);
    if let Some((key, value)) = word.split_once('=') {
        check_key(key)
            .and_then(|()| check_value(value))
            .map_err(|error| fault(&error))?;
        if change
            .set
            .insert(key.to_owned(), value.to_owned())
            .is_some()
        {
            return Err(fault(&"the key is given twice"));
        }
    } else if let Some(key) = word.strip_suffix('-') {
        check_key(key).map_err(|error| fault(&error))?;
        change.remove.push(key.to_owned());
    } else {
        return Err(fault(&"it is neither k=v nor k-"));
    }
    if let Some(key) = change
        .remove
        .iter()
        .find(|key| change.set.contains_key(*key))
    {
        return Err(fault(&format!("`{key}` is both set and removed")));
    }
    Ok(())
}

/// `--label k=v`, repeated.
pub(crate) fn pairs(words: &[String]) -> Outcome<BTreeMap<String, String>> {
    let mut change = Change::default();
    for word in words {
        if !word.contains('=') {
            return Err(Fault::usage(format!("label `{word}`"), "it is not K=V"));
        }
        add(&mut change, word)?;
    }
    Ok(change.set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Outcome<Change> {
        read(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn reads_changes() {
        let change = words("node/web-1 role=web old- empty=").unwrap();
        assert_eq!(change.nodes, ["web-1"]);
        assert_eq!(change.set.len(), 2);
        assert_eq!(change.remove, ["old"]);
        assert_eq!(words("nodes a b x=y").unwrap().nodes, ["a", "b"]);
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        for text in [
            "node/a",
            "a=b",
            "node a=b",
            "job/a b=c",
            "node/a b=c b-",
            "node/a ö=x",
            "node/a b=c b=d",
        ] {
            assert!(words(text).is_err(), "{text}");
        }
        assert!(pairs(&["a-".to_owned()]).is_err());
    }
}
