//! One copy of each key for all hosts that show it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::SeriesKey;

/// Keys that the decoders of many hosts share: thousands of hosts of one kind have nearly all of
/// their series in common. It is asked when series are defined, not for every report. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct KeyPool {
    keys: Arc<Mutex<Keys>>,
}

#[derive(Debug, Default)]
struct Keys {
    set: HashSet<Arc<SeriesKey>>,
    /// How many there may be before those that nobody else holds are looked for.
    sweep_at: usize,
}

/// Keys below which sweeping is not worth its while.
const SWEEP_AT_LEAST: usize = 1024;

impl KeyPool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The pool's copy of this key.
    #[must_use]
    pub fn share(&self, key: SeriesKey) -> Arc<SeriesKey> {
        // Whatever a panic left of a set of keys is a set of keys.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.set.get(&key) {
            return Arc::clone(known);
        }
        if keys.set.len() >= keys.sweep_at.max(SWEEP_AT_LEAST) {
            keys.set.retain(|key| Arc::strong_count(key) > 1);
            keys.sweep_at = keys.set.len() * 2;
        }
        let key = Arc::new(key);
        keys.set.insert(Arc::clone(&key));
        key
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set
            .len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keys_and_forgets_the_unused() {
        let pool = KeyPool::new();
        let key = |i: usize| SeriesKey::new("a", &[("i", &i.to_string())]);
        let kept = pool.share(key(0));
        assert!(Arc::ptr_eq(&kept, &pool.share(key(0))));
        for i in 1..10 * SWEEP_AT_LEAST {
            let _dropped = pool.share(key(i));
        }
        assert!(pool.len() <= SWEEP_AT_LEAST);
        assert!(Arc::ptr_eq(&kept, &pool.share(key(0))));
    }
}
