//! What podman pulls by: `crfs store auth-helper` hands it over, and it stays for as long as podman has images of the store's layers. So the layers can be
//! read after a restart as well.

use std::fs;
use std::io;
use std::time::Duration;

use super::Layers;
use crate::podman::records::replace;
use crate::podman::{Error, Store};
use crate::registry::Given;
use crate::sys::outside;

/// More than the file ever has.
const LARGEST: u64 = 4 << 20;

/// How long they stay without an image: podman hands them over before it asks for layers.
const LINGER: Duration = Duration::from_secs(60);

impl Store {
    /// Notes down what podman pulls by. A server without layers needs none.
    pub(in crate::podman) async fn take_credentials(&self, given: Given) -> Result<(), Error> {
        let Some(layers) = self.layers.get() else { return Ok(()) };
        let _turn = layers.logins.lock().await;
        let path = self.paths.credentials();
        let read = tokio::task::block_in_place(|| outside::read(&path, LARGEST));
        let before = match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|source| Error::File { path: path.clone(), source })?,
        };
        let kept = given.keep(&before, &layers.own_logins, self.common.hosts()).await;
        match kept.map_err(crate::image::Error::from)? {
            Some(text) => tokio::task::block_in_place(|| replace(&path, &text, 0o600)),
            None => Ok(()),
        }
    }
}

impl Layers {
    /// Forgets what podman has pulled by, where it has no image any more.
    pub(super) async fn forget_logins(&self, store: &Store) {
        let _turn = self.logins.lock().await;
        let path = store.paths.credentials();
        let forgotten = tokio::task::block_in_place(|| {
            let age = fs::symlink_metadata(&path)?.modified()?.elapsed();
            if age.is_ok_and(|age| age >= LINGER) { fs::remove_file(&path) } else { Ok(()) }
        });
        match forgotten {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "what podman has pulled by stays");
            }
            _ => {}
        }
    }
}
