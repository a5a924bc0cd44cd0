//! Contents of a layer that are stored while it is not known yet whether they are right: in a file without a name, which becomes the layer
//! file when they are.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::groups::Groups;
use super::presence::{self, Present};
use super::space::PAGE;
use super::spool::Spool;
use super::store::Store;
use super::stored;

/// One layer whose contents may never be read takes no more than half of the cache from all others.
const MOST_OF_CACHE: u64 = 2;

/// How long the lock of a layer is waited for that others have just begun to use.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long others are waited for who remove what was there before, or use it to see that it lacks something; and how long where the contents
/// cannot be had again in parts. Each look takes some of that.
const CONTEST: Duration = Duration::from_millis(300);
const CONTEST_OF_NEEDED: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);

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
    /// has that uses the layer, if as much is there. `None`: another uses less. `is_needed`: they cannot be had again in parts.
    ///
    /// The file gets its name before anything says that something is in it. A crash in between leaves what the next who opens the layer finds.
    pub(super) fn adopt(
        mut self,
        store: &Arc<Store>,
        layer: &Path,
        groups: &Groups,
        checks: u32,
        is_needed: bool,
    ) -> io::Result<Option<Adopted>> {
        // From the moment that it has a name it is in use.
        self.spool.file().set_len(groups.len())?;
        stored::keep(self.spool.file())?;
        let room = presence::len(groups).next_multiple_of(PAGE) + 4 * PAGE;
        let _room = store.room(room).ok_or(io::ErrorKind::StorageFull)?;
        let (start, patience) = (Instant::now(), if is_needed { CONTEST_OF_NEEDED } else { CONTEST });
        loop {
            if let Some(_data) = stored::kept(&store.dir, layer, checks) {
                return Ok(Some(Adopted { _data }));
            }
            match self.take_place(store, layer, groups, checks) {
                Ok(true) => return Ok(Some(Adopted { _data: self.spool.file().try_clone()? })),
                // A directory that another has just removed, or a lock.
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {
                    return Err(error);
                }
                Ok(false) | Err(_) if start.elapsed() >= patience => return Ok(None),
                Ok(false) | Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// `false`: another is there.
    fn take_place(&mut self, store: &Arc<Store>, layer: &Path, groups: &Groups, checks: u32) -> io::Result<bool> {
        let (dir, path) = (&store.dir, layer.join("data"));
        if !dir.lacks(&path) {
            let Some(freed) = stored::remove(dir, layer, false) else { return Ok(false) };
            store.freed(freed);
        }
        let open = || Present::open(dir.open_or_create(&layer.join("present"))?, groups.clone(), PATIENCE);
        let mut present = open()?;
        {
            // Whoever finds the file waits for this lock before it looks for what is there.
            let _held = present.lock(PATIENCE).ok_or(io::ErrorKind::WouldBlock)?;
            if !dir.link(self.spool.file(), &path)? {
                return Ok(false);
            }
            self.spool.now_named();
            if present.is_linked() {
                present.set_first(checks, store.clock())?;
                return Ok(true);
            }
        }
        // Another removed it together with what was there before. Nobody does any more: the file is in use.
        present = open()?;
        let _held = present.lock(PATIENCE).ok_or(io::ErrorKind::WouldBlock)?;
        present.set_first(checks, store.clock())?;
        Ok(present.is_linked() && presence::is_linked(self.spool.file()))
    }
}
