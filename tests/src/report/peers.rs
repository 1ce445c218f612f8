//! Ours beside others, as ratios: what was measured in one run on one machine can be compared where seconds cannot.

use super::{
    line::{Line, human},
    push,
};

/// Of these there is more than one kind within a figure.
const KINDS: [&str; 4] = ["targets", "part", "question", "jobs"];

/// The table: each figure of a peer beside the largest fleet of ours that the same figure was measured with.
pub(super) fn section(page: &mut String, lines: &[Line]) {
    let pairs: Vec<(&Line, &Line)> = lines
        .iter()
        .filter(|line| !line.is_ours())
        .filter_map(|peer| Some((ours(peer, lines)?, peer)))
        .collect();
    if pairs.is_empty() {
        return;
    }
    push(
        page,
        "\n## Beside others\n\nMeasured in the same run. The ratio is theirs by ours: above 1, ours takes less.\n\n\
         | figure | ours | theirs | | ratio |\n| --- | ---: | ---: | --- | ---: |\n",
    );
    for (ours, peer) in pairs {
        let row = format!(
            "| {} {} | {} ({}) | {} ({}) | {} | {} |\n",
            peer.bench,
            peer.figure,
            human(ours.value, &ours.unit),
            size(ours),
            human(peer.value, &peer.unit),
            size(peer),
            peer.subject,
            ratio(peer.value, ours.value),
        );
        push(page, &row.replace(" ()", ""));
    }
}

fn ours<'a>(peer: &Line, lines: &'a [Line]) -> Option<&'a Line> {
    let same = lines.iter().filter(|line| {
        line.is_ours()
            && (&line.bench, &line.figure) == (&peer.bench, &peer.figure)
            && KINDS
                .iter()
                .all(|kind| line.params.contains_key(*kind) == peer.params.contains_key(*kind))
    });
    // What has a name of its own beside the program is a part of it.
    same.max_by_key(|line| {
        let agents = line.params.get("agents").and_then(|value| value.as_u64());
        (agents, line.subject == "nexus")
    })
}

fn size(line: &Line) -> String {
    let told = ["agents", "targets"].iter().filter_map(|name| {
        let value = line.params.get(*name)?;
        Some(format!("{value} {name}"))
    });
    told.collect::<Vec<_>>().join(", ")
}

fn ratio(theirs: f64, ours: f64) -> String {
    match theirs / ours {
        ratio if !ratio.is_finite() => "–".to_owned(),
        ratio if ratio >= 10.0 => format!("{ratio:.0}"),
        ratio => format!("{ratio:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stands_beside_what_did_the_same() {
        let line = |subject: &str, value: f64, params: &str| {
            let text = format!(
                "{{\"bench\":\"fanout\",\"figure\":\"wall_seconds\",\"subject\":\"{subject}\",\"value\":{value},\
                 \"unit\":\"seconds\",\"params\":{params}}}"
            );
            Line::parse(&text).unwrap()
        };
        let lines = [
            line("nexus", 9.0, r#"{"agents": 1000}"#),
            line("nexus", 0.25, r#"{"targets": 50}"#),
            line("salt", 3.0, r#"{"targets": 10}"#),
        ];
        let mut page = String::new();
        section(&mut page, &lines);
        assert!(
            page.contains(
                "| fanout wall_seconds | 250 ms (50 targets) | 3 s (10 targets) | salt | 12 |"
            ),
            "{page}"
        );
        assert_eq!(page.matches("| fanout").count(), 1, "{page}");
    }
}
