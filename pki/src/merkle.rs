//! The Merkle tree over a job's targets, hashed as RFC 9162 (section 2.1) does with SHA-256.
//!
//! A leaf is `SHA-256(0x00 || entry)` where entry is the node's id, its name and its incarnation, each
//! preceded by its length as 4 big-endian bytes; an inner node is `SHA-256(0x01 || left || right)`.
//! Leaves stand in strictly rising order of node ids, so that each node is at most once in a tree. The
//! operator signs root and count; an agent gets its index and path and proves that it was meant.

use nexus_proto::{
    agent::v1 as wire,
    ids::{IdError, Incarnation, NodeId},
    limits,
};

use crate::sha256;

/// The longest path: that of a tree as large as its count can say.
const PATH_MAX: usize = 64;

/// A set of targets that makes no tree, or a proof that proves nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MerkleError {
    /// No target, or too many.
    #[error("a job has 1 to {max} targets, not {0}", max = limits::JOB_TARGETS)]
    Count(usize),
    /// Not in strictly rising order.
    #[error("the targets are not sorted by node id, or {0} is listed twice")]
    Order(NodeId),
    /// An id that is none.
    #[error("a target's id")]
    Id(#[from] IdError),
    /// A name that is none.
    #[error("the target {0} has a name of {1} bytes, allowed are 1 to {max}", max = limits::NAME_BYTES)]
    Name(NodeId, usize),
    /// There is no such leaf.
    #[error("the tree has {count} leaves, there is none at index {index}")]
    Index {
        /// Which leaf.
        index: u64,
        /// Leaves in the tree.
        count: u64,
    },
    /// The path is not as long as the tree is high at that leaf, or has a hash of another length.
    #[error("the inclusion proof has no valid shape")]
    Shape,
    /// The target is not in the signed tree.
    #[error("the inclusion proof does not lead to the signed root: this job is not for {0}")]
    Root(NodeId),
}

/// A node a job is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The node.
    pub node: NodeId,
    /// Its name when the operator chose it.
    pub name: String,
    /// The life of its state folder when the operator chose it.
    pub incarnation: Incarnation,
}

impl Target {
    /// From the wire.
    pub fn from_wire(target: &wire::Target) -> Result<Self, MerkleError> {
        let node = NodeId::from_wire(&target.node_id)?;
        if !(1..=limits::NAME_BYTES).contains(&target.name.len()) {
            return Err(MerkleError::Name(node, target.name.len()));
        }
        Ok(Self {
            node,
            name: target.name.clone(),
            incarnation: Incarnation::from_wire(&target.incarnation)?,
        })
    }

    /// To the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::Target {
        wire::Target {
            node_id: self.node.to_wire(),
            name: self.name.clone(),
            incarnation: self.incarnation.to_wire(),
        }
    }

    fn hash(&self) -> [u8; 32] {
        let mut bytes = vec![0];
        for part in [
            self.node.as_bytes().as_slice(),
            self.name.as_bytes(),
            self.incarnation.as_bytes().as_slice(),
        ] {
            // Names are far shorter than 4 GiB; one that were not would hash as if it were cut,
            // and `Target` comes from `from_wire` or a node table with the same limit.
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        sha256(&bytes)
    }
}

/// The whole tree, with every level kept: a root and a proof for each leaf cost no further hashing.
#[derive(Debug, Clone)]
pub struct Tree {
    targets: Vec<Target>,
    /// From the leaves up to the root, each half as long (rounded up) as the one before.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Tree {
    /// Over targets in strictly rising order of node ids.
    pub fn new(targets: Vec<Target>) -> Result<Self, MerkleError> {
        if !(1..=limits::JOB_TARGETS).contains(&targets.len()) {
            return Err(MerkleError::Count(targets.len()));
        }
        for target in &targets {
            if !(1..=limits::NAME_BYTES).contains(&target.name.len()) {
                return Err(MerkleError::Name(target.node, target.name.len()));
            }
        }
        for (one, next) in targets.iter().zip(targets.iter().skip(1)) {
            if one.node >= next.node {
                return Err(MerkleError::Order(next.node));
            }
        }
        let mut level: Vec<[u8; 32]> = targets.iter().map(Target::hash).collect();
        let mut levels = Vec::new();
        while level.len() > 1 {
            let above = level
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => inner(left, right),
                    // The last of an odd level rises as it is, which gives RFC 9162's tree.
                    [alone] => *alone,
                    _ => unreachable!("chunks of 2 have 1 or 2 elements"),
                })
                .collect();
            levels.push(std::mem::replace(&mut level, above));
        }
        levels.push(level);
        Ok(Self { targets, levels })
    }

    /// Sorts, then builds; a node listed twice is an error.
    pub fn sorted(mut targets: Vec<Target>) -> Result<Self, MerkleError> {
        targets.sort_by_key(|target| target.node);
        Self::new(targets)
    }

    /// From the wire, in the order given.
    pub fn from_wire(targets: &[wire::Target]) -> Result<Self, MerkleError> {
        if targets.len() > limits::JOB_TARGETS {
            return Err(MerkleError::Count(targets.len()));
        }
        Self::new(
            targets
                .iter()
                .map(Target::from_wire)
                .collect::<Result<_, _>>()?,
        )
    }

    /// The leaves, in order.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// How many leaves it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::try_from(self.targets.len()).unwrap_or(u64::MAX)
    }

    /// The root's hash.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        self.levels
            .last()
            .and_then(|level| level.first())
            .copied()
            .unwrap_or_else(|| unreachable!("a tree has at least one leaf"))
    }

    /// The proof for the leaf at `index`; `None` when there is none.
    #[must_use]
    pub fn proof(&self, index: usize) -> Option<wire::InclusionProof> {
        self.targets.get(index)?;
        let mut path = Vec::new();
        let mut at = index;
        for level in &self.levels {
            if let Some(sibling) = level.get(at ^ 1) {
                path.push(sibling.to_vec().into());
            }
            at >>= 1;
        }
        // The root is alone on its level and so has no sibling to push.
        Some(wire::InclusionProof {
            index: u64::try_from(index).unwrap_or(u64::MAX),
            path,
        })
    }

    /// The proof for a node; `None` when it is no target.
    #[must_use]
    pub fn proof_of(&self, node: NodeId) -> Option<wire::InclusionProof> {
        self.targets
            .binary_search_by_key(&node, |target| target.node)
            .ok()
            .and_then(|index| self.proof(index))
    }
}

/// Checks that `target` is a leaf of the tree with this root and count (RFC 9162, 2.1.3.2).
pub fn verify(
    root: &[u8; 32],
    count: u64,
    target: &Target,
    proof: &wire::InclusionProof,
) -> Result<(), MerkleError> {
    if proof.index >= count {
        return Err(MerkleError::Index {
            index: proof.index,
            count,
        });
    }
    if proof.path.len() > PATH_MAX {
        return Err(MerkleError::Shape);
    }
    let mut index = proof.index;
    let mut last = count - 1;
    let mut hash = target.hash();
    for sibling in &proof.path {
        let sibling: &[u8; 32] = sibling
            .as_ref()
            .try_into()
            .map_err(|_| MerkleError::Shape)?;
        if last == 0 {
            return Err(MerkleError::Shape);
        }
        if index & 1 == 1 || index == last {
            hash = inner(sibling, &hash);
            // Levels on which the last node had no sibling and rose as it was.
            while index & 1 == 0 && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            hash = inner(&hash, sibling);
        }
        index >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(MerkleError::Shape);
    }
    if hash != *root {
        return Err(MerkleError::Root(target.node));
    }
    Ok(())
}

fn inner(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut bytes = [0; 65];
    let (mark, hashes) = bytes.split_at_mut(1);
    mark.fill(1);
    let (one, other) = hashes.split_at_mut(32);
    one.copy_from_slice(left);
    other.copy_from_slice(right);
    sha256(&bytes)
}

#[cfg(test)]
mod tests;
