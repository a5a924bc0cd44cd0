//! `mount -o remount`: what a mount was asked to be, and what of that can be changed.

use std::path::{Path, PathBuf};

use super::Error;
use super::state::{self, FoundState};
use super::unmount::find;
use crate::kernel::fusedev;
use crate::kernel::mounts::{self, Mount};
use crate::registry::ImageRef;

/// A mount that there is.
pub struct Present {
    mount: Mount,
    /// `None`: its state is gone.
    record: Option<state::Record>,
}

impl Present {
    /// What is mounted at `dir`.
    ///
    /// # Errors
    /// Where it is none of crfs.
    pub fn at(dir: &Path, state_dirs: &[PathBuf]) -> Result<Self, Error> {
        let asked = dir.to_owned();
        let mount = mounts::answered(dir, move || find(&asked))?;
        let (all, _silent) = state::found_where_answered(state_dirs);
        let record = all.into_iter().map(|FoundState { record, .. }| record).find(|record| record.describes(&mount));
        Ok(Self { mount, record })
    }

    /// Whether it shows what `text` means.
    #[must_use]
    pub fn is_of(&self, text: &str) -> bool {
        let options = self.record.as_ref().and_then(|record| record.options.as_ref());
        let is_image = |image: ImageRef| options.is_some_and(|options| options.image == image);
        self.mount.source == text || text.parse().is_ok_and(is_image)
    }

    /// What the mount table has as its source.
    #[must_use]
    pub fn source(&self) -> String {
        self.mount.source.to_string_lossy().into_owned()
    }

    /// What its options were when it was mounted.
    #[must_use]
    pub fn words(&self) -> Vec<PathBuf> {
        self.record.as_ref().map(|record| record.words.clone()).unwrap_or_default()
    }

    /// Changes what can be changed.
    ///
    /// # Errors
    /// Where this user may not, or another mount has come to its directory.
    pub fn change(&self, noexec: bool) -> Result<(), Error> {
        Ok(fusedev::remount(&self.mount, noexec)?)
    }
}
