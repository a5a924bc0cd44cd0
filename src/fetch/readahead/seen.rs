//! A set of files.

use super::files::Node;

/// A set of nodes, a bit for each up to the greatest: somebody may read every file of a large image.
#[derive(Default)]
pub(super) struct Seen(Vec<u64>);

impl Seen {
    /// Whether it was not there before.
    pub(super) fn insert(&mut self, node: Node) -> bool {
        let Ok(word) = usize::try_from(node / 64) else { return false };
        if self.0.len() <= word {
            self.0.resize(word.saturating_add(1), 0);
        }
        let is_new = !self.contains(node);
        self.0.get_mut(word).into_iter().for_each(|word| *word |= 1 << (node % 64));
        is_new
    }

    pub(super) fn contains(&self, node: Node) -> bool {
        let word = usize::try_from(node / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word & (1 << (node % 64)) != 0)
    }
}
