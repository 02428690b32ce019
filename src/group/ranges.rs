//! A set of numbers kept as ranges: small while the numbers are close together, as acknowledgements are.

/// Disjoint, ordered, never touching.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet(Vec<(u64, u64)>);

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges it takes.
    #[must_use]
    pub const fn ranges(&self) -> usize {
        self.0.len()
    }

    /// Whether `n` is in it.
    #[must_use]
    pub fn contains(&self, n: u64) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < n);
        self.0.get(at).is_some_and(|&(first, _)| first <= n)
    }

    /// Adds `n`; says whether it was new.
    pub fn insert(&mut self, n: u64) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < n);
        if self.0.get(at).is_some_and(|&(first, _)| first <= n) {
            return false;
        }
        let joins_before =
            at.checked_sub(1).filter(|&before| self.0.get(before).is_some_and(|r| r.1.checked_add(1) == Some(n)));
        let joins_after = self.0.get(at).is_some_and(|r| n.checked_add(1) == Some(r.0));
        match (joins_before, joins_after) {
            (Some(before), true) => {
                let (_, last) = self.0.remove(at);
                if let Some(range) = self.0.get_mut(before) {
                    range.1 = last;
                }
            }
            (Some(before), false) => {
                if let Some(range) = self.0.get_mut(before) {
                    range.1 = n;
                }
            }
            (None, true) => {
                if let Some(range) = self.0.get_mut(at) {
                    range.0 = n;
                }
            }
            (None, false) => self.0.insert(at, (n, n)),
        }
        true
    }

    /// Removes `n`; says whether it was there.
    pub fn remove(&mut self, n: u64) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < n);
        let Some((first, last)) = self.0.get(at).copied().filter(|&(first, _)| first <= n) else { return false };
        let before = (first < n).then(|| (first, n.saturating_sub(1)));
        let after = (n < last).then(|| (n.saturating_add(1), last));
        self.0.splice(at..=at, before.into_iter().chain(after));
        true
    }

    /// Forgets every number up to and including `n`.
    pub fn remove_through(&mut self, n: u64) {
        let gone = self.0.partition_point(|&(_, last)| last <= n);
        self.0.drain(..gone);
        if let Some(range) = self.0.first_mut() {
            range.0 = range.0.max(n.saturating_add(1));
        }
    }

    /// Keeps the first `most` ranges; says how many numbers went with the others.
    pub fn truncate(&mut self, most: usize) -> u64 {
        let gone = self.0.get(most..).unwrap_or_default().iter().map(|&(first, last)| last - first + 1).sum();
        self.0.truncate(most);
        gone
    }

    /// The set for keeping: 16 bytes a range, little-endian first and last.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|&(first, last)| [first.to_le_bytes(), last.to_le_bytes()]).flatten().collect()
    }

    /// What [`Self::to_bytes`] made; `None` when it did not.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        let (pairs, odd) = chunks.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() {
            return None;
        }
        let ranges: Vec<_> = pairs.iter().map(|[a, b]| (u64::from_le_bytes(*a), u64::from_le_bytes(*b))).collect();
        let ordered = ranges.iter().all(|r| r.0 <= r.1)
            && ranges
                .windows(2)
                .all(|pair| matches!(pair, [a, b] if a.1.checked_add(1).is_some_and(|next| next < b.0)));
        ordered.then_some(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(steps in proptest::collection::vec((0..3_u8, 0..40_u64), 0..200)) {
            let (mut ranges, mut model) = (RangeSet::new(), BTreeSet::new());
            for (what, n) in steps {
                match what {
                    0 => prop_assert_eq!(ranges.insert(n), model.insert(n)),
                    1 => prop_assert_eq!(ranges.remove(n), model.remove(&n)),
                    _ => {
                        ranges.remove_through(n / 4);
                        model.retain(|&m| m > n / 4);
                    }
                }
                for n in 0..41 {
                    prop_assert_eq!(ranges.contains(n), model.contains(&n));
                }
                prop_assert_eq!(RangeSet::from_bytes(&ranges.to_bytes()), Some(ranges.clone()));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_set_are_refused() {
        let bytes = |pairs: &[(u64, u64)]| RangeSet(pairs.to_vec()).to_bytes();
        assert!(RangeSet::from_bytes(&bytes(&[(1, 2), (4, 4)])).is_some());
        for bad in [&[(2, 1)][..], &[(1, 2), (3, 4)], &[(5, 6), (1, 2)]] {
            assert_eq!(RangeSet::from_bytes(&bytes(bad)), None, "{bad:?}");
        }
        assert_eq!(RangeSet::from_bytes(&[0; 15]), None);
        assert_eq!(RangeSet::from_bytes(&[0; 8]), None);
    }
}
