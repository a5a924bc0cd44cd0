//! Gives users of the machine root's store: for each a directory with a clone of the mount in which what root owns is the user's, and what others own
//! is one of the ids that the user's podman has (idmap.rs).
//!
//! ```text
//! ROOT/users/NAME/overlay                          the clone, and below it what shows without it (stubs.rs)
//! ROOT/users/NAME/{overlay-images,overlay-layers}  symlinks to root's
//! ```
//!
//! It is not in the user's home: a user who could put a symlink there would have root mount anywhere.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::Store;
use super::idmap::{Account, Map, mount_clone};
use super::paths::{Paths, make_dir};
use super::records::Records;
use super::stubs::{self, Stubs};
use super::{Error, places};
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::{self, Device, Mount};
use crate::sys::own::{EntryKind, OwnDir};

/// Root's own directories that a user's lead to.
const LINKED: [&str; 2] = ["overlay-images", "overlay-layers"];

impl Paths {
    /// A user's directory, for their storage.conf.
    #[must_use]
    pub fn of_user(&self, name: impl AsRef<Path>) -> PathBuf {
        self.users().join(name)
    }

    fn users(&self) -> PathBuf {
        self.root.join("users")
    }
}

impl Store {
    /// Gives the store to a user, from now on and after each start; or takes it away.
    pub(super) async fn share(&self, name: &str, stop: bool) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        tokio::task::block_in_place(|| {
            let mut changed = records.clone();
            if stop && records.users.iter().any(|user| user == name) {
                // There may be no such user any more.
                take_away(&self.paths, name)?;
                changed.users.retain(|user| user != name);
                return self.commit(&mut records, changed);
            }
            if !stop && self.layers.get().is_some() {
                // Whoever looks a layer up has it fetched with the credentials of this server's user.
                return Err(Error::LayersAreOwn { root: self.paths.root.clone() });
            }
            let account = Account::find(name)?;
            changed.users.retain(|user| *user != account.name);
            if stop {
                take_away(&self.paths, &account.name)?;
            } else {
                if let Some(device) = self.device.get() {
                    self.give(&records, *device, &account)?;
                }
                changed.users.push(account.name);
            }
            self.commit(&mut records, changed)
        })
    }

    /// Gives the store to all users again, after a start. One who cannot have it keeps no other from it.
    pub(super) fn share_again(&self, records: &Records) {
        let Some(device) = self.device.get() else { return };
        for name in &records.users {
            if let Err(error) = Account::find(name).and_then(|account| self.give(records, *device, &account)) {
                tracing::warn!(user = name, error = error.chain(), "a user does not have the store");
            }
        }
    }

    /// Makes what users have what the records say, in a process that goes on with the mount of another. Who has the store keeps it: what is mounted there
    /// needs nobody but the mount that it is a clone of.
    pub(super) fn share_on(&self, records: &Records) {
        let Some(device) = self.device.get() else { return };
        for name in &records.users {
            let shared = Account::find(name).and_then(|account| match is_given(&self.paths, &account, *device)? {
                true => self.reach_stubs(records, &account),
                false => self.give(records, *device, &account),
            });
            if let Err(error) = shared {
                tracing::warn!(user = name, error = error.chain(), "a user does not have the store");
            }
        }
        // Of one to whom it was being given, or from whom it was being taken, when the other process died.
        let Ok(users) = OwnDir::open(&self.paths.users()).and_then(|dir| dir.list()) else { return };
        for user in users.iter().filter(|entry| entry.kind == EntryKind::Directory) {
            let is_theirs = records.users.iter().any(|name| *user.name == **name);
            if let Err(error) = if is_theirs { Ok(()) } else { take_away(&self.paths, &user.name) } {
                tracing::warn!(error = error.chain(), "a user's part of the store stays");
            }
        }
    }

    fn reach_stubs(&self, records: &Records, account: &Account) -> Result<(), Error> {
        let overlay = self.paths.of_user(&account.name).join("overlay");
        let stubs = Stubs::below(&overlay, Some(account.map()?));
        let stubs = stubs.map_err(|source| Error::File { path: overlay, source })?;
        stubs.write(records);
        self.stubs.add(account.name.clone(), stubs);
        Ok(())
    }

    fn give(&self, records: &Records, device: Device, account: &Account) -> Result<(), Error> {
        let map = account.map()?;
        let dir = self.paths.of_user(&account.name);
        let overlay = dir.join("overlay");
        unmount(&overlay, Detach::Lazily)?;
        make_dirs(&self.paths, account, &overlay).map_err(|source| Error::File { path: overlay.clone(), source })?;
        for name in LINKED {
            link(&self.paths.root.join(name), &dir.join(name))?;
        }
        let stubs = open_stubs(&overlay, &map)?;
        stubs.write(records);
        self.stubs.add(account.name.clone(), stubs);
        mount_clone(&self.paths.mount(), device, &overlay, &map)
    }
}

/// Those of the users who had the store before; by the names of the users. Nobody serves now.
pub(super) fn stubs_again(paths: &Paths, records: &Records) -> BTreeMap<String, Stubs> {
    let stubs_of = |name: &String| -> Result<Stubs, Error> {
        let overlay = paths.of_user(name).join("overlay");
        unmount(&overlay, Detach::Lazily)?;
        open_stubs(&overlay, &Account::find(name)?.map()?)
    };
    // One who cannot have them is told of when the store is given to them.
    records.users.iter().filter_map(|name| Some((name.clone(), stubs_of(name).ok()?))).collect()
}

/// Whether a user has what is mounted now.
fn is_given(paths: &Paths, account: &Account, device: Device) -> Result<bool, Error> {
    let overlay = paths.of_user(&account.name).join("overlay");
    let found = mounts::at(&overlay).map_err(|source| Error::File { path: overlay, source })?;
    Ok(found.is_some_and(|mount| mount.is_stores() && mount.device == device))
}

fn open_stubs(overlay: &Path, map: &Map) -> Result<Stubs, Error> {
    let opened = Stubs::open(overlay, Some(map.clone()));
    opened.map_err(|source| Error::File { path: overlay.to_owned(), source })
}

/// The user's directory is root's, who mounts there, and only the user's group may enter it. Of other users' they see nothing.
fn make_dirs(paths: &Paths, account: &Account, overlay: &Path) -> io::Result<()> {
    let dir = paths.of_user(&account.name);
    for (made, mode) in [(paths.users().as_path(), 0o711), (&dir, 0o750), (overlay, 0o755)] {
        make_dir(made, mode)?;
        // Also of one that was there.
        fs::set_permissions(made, Permissions::from_mode(mode))?;
    }
    chown(&dir, None, Some(account.gid))
}

/// Takes all users' clones away that are not in use: they keep the server from ending, and would be dead after it.
pub(super) fn take_clones_away(paths: &Paths, how: Detach) {
    let Ok(users) = OwnDir::open(&paths.users()).and_then(|dir| dir.list()) else { return };
    for user in users.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        if let Err(error) = unmount(&paths.of_user(&user.name).join("overlay"), how) {
            tracing::warn!(error = error.chain(), "a user's part of the store stays");
        }
    }
}

/// Where podman may keep what users have themselves: they may use what the store has. One who is gone uses nothing.
pub(super) fn podman_roots(records: &Records) -> Result<Vec<PathBuf>, Error> {
    let mut roots = Vec::new();
    for name in &records.users {
        match Account::find(name) {
            Ok(account) => roots.extend(places::of_account(&account)?),
            Err(Error::User { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(roots)
}

fn link(target: &Path, link: &Path) -> Result<(), Error> {
    match symlink(target, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::File { path: link.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn take_away(paths: &Paths, name: impl AsRef<Path>) -> Result<(), Error> {
    let dir = paths.of_user(&name);
    unmount(&dir.join("overlay"), Detach::Lazily)?;
    match remove_dirs(&paths.users(), name.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::File { path: dir, source: error }),
        _ => Ok(()),
    }
}

/// Removes what `make_dirs` and `link` have made for a user.
fn remove_dirs(users: &Path, name: &Path) -> io::Result<()> {
    let users = OwnDir::open(users)?;
    let user = users.enter(name)?;
    for link in LINKED {
        user.remove_known(link, EntryKind::Symlink)?;
    }
    if let Ok(overlay) = user.enter("overlay") {
        stubs::remove_all(&overlay)?;
        user.remove_empty("overlay")?;
    }
    users.remove_empty(name)
}

/// Takes away whatever crfs has mounted there.
fn unmount(dir: &Path, how: Detach) -> Result<(), Error> {
    let is_ours = || mounts::at(dir).map(|mount| mount.is_some_and(|mount| mount.is_stores()));
    while is_ours().map_err(|source| Error::File { path: dir.to_owned(), source })? {
        fusedev::unmount(dir, how, Mount::is_stores)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::remove::tests::store;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_who_is_gone_can_be_taken_the_store_from() {
        let dir = tempfile::tempdir().unwrap();
        let gone = "no-user-of-this-machine";
        let mut records = Records::default();
        records.users.push(gone.into());
        assert_eq!(podman_roots(&records).unwrap(), Vec::<PathBuf>::new(), "they use nothing");
        let store = store(dir.path(), &records);
        store.share(gone, true).await.unwrap();
        assert!(Records::read(&store.paths.records()).unwrap().users.is_empty());
        assert!(matches!(store.share(gone, true).await, Err(Error::User { .. })), "a name that is mistyped is said");
    }

    #[test]
    fn a_users_directory_goes_but_for_what_is_not_of_crfs() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), None);
        let mut records = Records::default();
        let layer = crate::podman::records::tests::layer(&mut records, "one", None);
        records.layers.push(layer);
        let make = |name: &str| {
            let overlay = paths.of_user(name).join("overlay");
            make_dir(&overlay, 0o755).unwrap();
            for name in LINKED {
                link(&dir.path().join(name), &overlay.with_file_name(name)).unwrap();
            }
            Stubs::open(&overlay, None).unwrap().write(&records);
            overlay
        };
        make("ann");
        take_away(&paths, "ann").unwrap();
        assert!(!paths.of_user("ann").exists());
        let theirs = make("bob").join("work/file");
        fs::create_dir(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "").unwrap();
        assert!(take_away(&paths, "bob").is_err());
        assert!(theirs.exists() && !paths.of_user("bob").join(LINKED[0]).exists());
        take_away(&paths, "nobody").unwrap();
    }
}
