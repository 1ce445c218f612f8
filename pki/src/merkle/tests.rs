use std::collections::BTreeSet;

use nexus_proto::{agent::v1 as wire, ids::Incarnation};
use proptest::prelude::*;

use super::*;

fn targets(count: usize) -> Vec<Target> {
    let nodes: BTreeSet<NodeId> = std::iter::repeat_with(NodeId::random).take(count).collect();
    nodes
        .into_iter()
        .enumerate()
        .map(|(index, node)| Target {
            node,
            name: format!("host-{index}"),
            incarnation: Incarnation::random(),
        })
        .collect()
}

/// RFC 9162, 2.1.1, as it is written there: split at the largest power of two below the length.
fn root_by_definition(leaves: &[[u8; 32]]) -> [u8; 32] {
    if let [leaf] = leaves {
        return *leaf;
    }
    let split = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(split);
    inner(&root_by_definition(left), &root_by_definition(right))
}

#[test]
fn every_leaf_of_every_small_tree_proves_itself_and_nothing_else() {
    for count in 1..=40 {
        let tree = Tree::new(targets(count)).unwrap();
        let leaves: Vec<[u8; 32]> = tree.targets().iter().map(Target::hash).collect();
        let root = tree.root();
        assert_eq!(root, root_by_definition(&leaves), "{count} leaves");
        for (index, target) in tree.targets().iter().enumerate() {
            let proof = tree.proof(index).unwrap();
            verify(&root, tree.count(), target, &proof).unwrap();
            assert_eq!(tree.proof_of(target.node).unwrap(), proof);
            for other in (0..count).filter(|other| *other != index) {
                // Another's place with one's own path, and another's proof whole.
                let moved = wire::InclusionProof {
                    index: other as u64,
                    ..proof.clone()
                };
                assert!(verify(&root, tree.count(), target, &moved).is_err());
                let theirs = tree.proof(other).unwrap();
                assert!(verify(&root, tree.count(), target, &theirs).is_err());
            }
            for wrong in [0, tree.count() * 2, u64::MAX] {
                assert!(verify(&root, wrong, target, &proof).is_err() || wrong == tree.count());
            }
        }
        assert!(tree.proof(count).is_none());
        assert!(tree.proof_of(NodeId::random()).is_none());
    }
}

#[test]
fn tampered_proofs_fail() {
    for count in [1, 2, 3, 7, 8, 40] {
        let tree = Tree::new(targets(count)).unwrap();
        let root = tree.root();
        for (index, target) in tree.targets().iter().enumerate() {
            let proof = tree.proof(index).unwrap();
            let fails = |proof: &wire::InclusionProof| {
                assert!(verify(&root, tree.count(), target, proof).is_err());
            };
            for at in 0..proof.path.len() {
                let mut altered = proof.clone();
                let mut hash = altered.path[at].to_vec();
                hash[at % 32] ^= 1;
                altered.path[at] = hash.into();
                fails(&altered);
                let mut without = proof.clone();
                without.path.remove(at);
                fails(&without);
                let mut short = proof.clone();
                short.path[at] = short.path[at].slice(..31);
                fails(&short);
            }
            let mut longer = proof.clone();
            longer.path.push(root.to_vec().into());
            fails(&longer);
            longer.path = vec![root.to_vec().into(); 65];
            fails(&longer);
            let mut other_root = root;
            other_root[31] ^= 0x80;
            assert!(matches!(
                verify(&other_root, tree.count(), target, &proof),
                Err(MerkleError::Root(_))
            ));
            for changed in [
                Target {
                    name: "other".to_owned(),
                    ..target.clone()
                },
                Target {
                    node: NodeId::random(),
                    ..target.clone()
                },
                Target {
                    incarnation: Incarnation::random(),
                    ..target.clone()
                },
            ] {
                assert!(verify(&root, tree.count(), &changed, &proof).is_err());
            }
        }
    }
}

#[test]
fn an_inner_node_is_no_leaf() {
    // Without the prefixes the concatenation of two hashes could be passed off as a leaf.
    let tree = Tree::new(targets(2)).unwrap();
    let hashes: Vec<[u8; 32]> = tree.targets().iter().map(Target::hash).collect();
    assert_ne!(tree.root(), sha256(&hashes.concat()));
    assert_eq!(
        tree.root(),
        sha256(&[&[1][..], &hashes[0], &hashes[1]].concat())
    );
}

#[test]
fn order_is_part_of_it() {
    let sorted = targets(3);
    let mut turned = sorted.clone();
    turned.reverse();
    assert!(matches!(
        Tree::new(turned.clone()),
        Err(MerkleError::Order(_))
    ));
    assert_eq!(
        Tree::sorted(turned).unwrap().root(),
        Tree::new(sorted.clone()).unwrap().root()
    );
    let twice = vec![sorted[0].clone(), sorted[0].clone()];
    assert!(matches!(Tree::sorted(twice), Err(MerkleError::Order(_))));
    assert!(matches!(Tree::new(Vec::new()), Err(MerkleError::Count(0))));
}

#[test]
fn comes_back_from_the_wire() {
    let tree = Tree::new(targets(5)).unwrap();
    let wire: Vec<wire::Target> = tree.targets().iter().map(Target::to_wire).collect();
    let again = Tree::from_wire(&wire).unwrap();
    assert_eq!(again.targets(), tree.targets());
    assert_eq!(again.root(), tree.root());
    for bad in [
        wire::Target {
            name: String::new(),
            ..wire[0].clone()
        },
        wire::Target {
            name: "a".repeat(254),
            ..wire[0].clone()
        },
        wire::Target {
            incarnation: prost::bytes::Bytes::new(),
            ..wire[0].clone()
        },
    ] {
        assert!(Target::from_wire(&bad).is_err());
    }
}

proptest! {
    #[test]
    fn parts_cannot_flow_into_each_other(one in "[a-c]{1,4}", other in "[a-c]{1,4}") {
        let node = NodeId::random();
        let incarnation = Incarnation::random();
        let hash = |name: &str| Target { node, name: name.to_owned(), incarnation }.hash();
        prop_assert_eq!(hash(&one) == hash(&other), one == other);
    }

    #[test]
    fn never_panics(
        count in any::<u64>(),
        index in any::<u64>(),
        path in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 31..34), 0..70),
    ) {
        let proof = wire::InclusionProof {
            index,
            path: path.into_iter().map(Into::into).collect(),
        };
        let target = targets(1).remove(0);
        prop_assert!(verify(&[0; 32], count, &target, &proof).is_err());
    }
}
