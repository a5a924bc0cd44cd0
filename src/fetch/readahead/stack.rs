//! What is remembered of each kind: the newest comes first.

use std::collections::VecDeque;

/// Things of each kind that are remembered.
const REMEMBERED: usize = 256;

/// The newest first; the oldest are forgotten.
pub(super) struct Stack<T>(VecDeque<T>);

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Stack<T> {
    pub(super) fn push(&mut self, item: T) {
        self.0.push_front(item);
        self.0.truncate(REMEMBERED);
    }

    /// The newest.
    pub(super) fn top(&mut self) -> Option<&mut T> {
        self.0.front_mut()
    }

    pub(super) fn pop(&mut self) {
        self.0.pop_front();
    }

    /// Takes one out.
    pub(super) fn take(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let at = self.0.iter().position(is_it)?;
        self.0.remove(at)
    }
}
