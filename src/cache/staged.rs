//! Contents of a layer that are stored while it is not known yet whether they are right: in a file without a name, which becomes the layer
//! file when they are.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::groups::Groups;
use super::presence::{self, Present};
use super::spool::Spool;
use super::store::{PAGE, Store};
use super::stored;

/// One layer whose contents may never be read takes no more than half of the cache from all others.
const MOST_OF_CACHE: u64 = 2;

/// How long the lock of a layer is waited for that others have just begun to use.
const PATIENCE: Duration = Duration::from_millis(100);

/// Tries to take the place of what was there before, when others do the same or look at it, and what is between them.
const TRIES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(1);

/// Keeps contents that were adopted from being removed or evicted, until they are opened.
pub struct Adopted {
    _data: File,
}

/// Contents that nobody sees.
pub struct Staged {
    spool: Spool,
    /// Bytes that they may take.
    limit: u64,
    /// How far they are stored: what comes behind what there was no room for is not.
    end: u64,
    is_full: bool,
}

impl Staged {
    /// `is_needed`: they may have to be kept all, whatever else has to go.
    pub(super) fn new(store: &Arc<Store>, is_needed: bool) -> io::Result<Self> {
        let limit = store.limits.limit / if is_needed { 1 } else { MOST_OF_CACHE };
        Ok(Self { spool: Spool::new(Some(store))?, limit, end: 0, is_full: false })
    }

    /// Puts bytes at their place in the layer file, behind all that came before, as long as there is room. Says whether there still is.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) -> bool {
        let end = at.saturating_add(bytes.len() as u64);
        self.is_full = self.is_full || self.spool.taken() > self.limit || self.spool.put(at, bytes).is_err();
        if !self.is_full {
            self.end = end;
        }
        !self.is_full
    }

    /// How far they are stored.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// They are right: they become the layer's contents, of which the first `checks` are there, in place of what nobody uses; or what another
    /// has that uses the layer, if as much is there. `None`: another uses less.
    ///
    /// The file gets its name before anything says that something is in it. A crash in between leaves what the next who opens the layer finds.
    pub(super) fn adopt(
        mut self,
        store: &Arc<Store>,
        layer: &Path,
        groups: &Groups,
        checks: u32,
    ) -> io::Result<Option<Adopted>> {
        // From the moment that it has a name it is in use.
        self.spool.file().set_len(groups.len())?;
        stored::keep(self.spool.file())?;
        for _ in 0..TRIES {
            let kept = match stored::kept(&store.dir, layer, checks) {
                Some(kept) => Some(kept),
                None => self.take_place(store, layer, groups, checks)?,
            };
            if let Some(_data) = kept {
                return Ok(Some(Adopted { _data }));
            }
            // Another removes what is there, or uses it for as long as it takes to see that it lacks something.
            thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// `None`: another came in between.
    fn take_place(
        &mut self,
        store: &Arc<Store>,
        layer: &Path,
        groups: &Groups,
        checks: u32,
    ) -> io::Result<Option<File>> {
        let (dir, path) = (&store.dir, layer.join("data"));
        if !dir.lacks(&path) {
            let Some(freed) = stored::remove(dir, layer, false) else { return Ok(None) };
            store.freed(freed);
        }
        let room = presence::len(groups).next_multiple_of(PAGE) + 4 * PAGE;
        let room = store.room(room).ok_or(io::ErrorKind::StorageFull)?;
        let present = Present::open(dir.open_or_create(&layer.join("present"))?, groups.clone(), PATIENCE)?;
        // Whoever finds the file waits for this lock before it looks for what is there.
        let held = present.lock(PATIENCE).ok_or(io::ErrorKind::WouldBlock)?;
        if !dir.link(self.spool.file(), &path)? {
            return Ok(None);
        }
        if !present.is_linked() {
            // Another removed what was there before, at the same time.
            drop(held);
            dir.remove(&path)?;
            return Ok(None);
        }
        self.spool.now_named();
        present.set_first(checks, store.clock())?;
        drop(room);
        Ok(Some(self.spool.file().try_clone()?))
    }
}
