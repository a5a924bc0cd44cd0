//! How many steps this thread has taken, in tests alone: what costs no more than so many, whatever the shape of a layer, is held to it without a clock.
//!
//! A step is a record of an index, a number or a byte of the cache's disk, or a check that is looked at.

#[cfg(test)]
thread_local! {
    static TAKEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// One step more.
#[inline]
pub(crate) fn take() {
    #[cfg(test)]
    TAKEN.with(|taken| taken.set(taken.get() + 1));
}

/// How many it takes.
#[cfg(test)]
pub(crate) fn of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = TAKEN.with(std::cell::Cell::get);
    let done = work();
    (done, TAKEN.with(std::cell::Cell::get) - before)
}
