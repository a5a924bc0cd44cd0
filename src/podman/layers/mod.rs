//! podman's additional layer store: layers of images that podman pulls by itself, as far as they can be had without being read whole.
//!
//! ```text
//! overlay/layers/                    is never listed (fs/forest/asked.rs); ROOT/layers leads to it, for storage.conf's additionallayerstores
//!     <base64 of the reference>/     any reference of a registry
//!         <digest>/                  any digest: of a blob (podman up to 5.0), or of a table of contents (from 5.1 on)
//!             diff/                  the layer's view: its lookup opens what can be opened of the image, and waits for that (open.rs)
//!             info                   what podman is told of it
//!             blob                   as the registry has it, for `podman push` (blob.rs)
//!             use                    is never there: trying to make it counts a user, trying to remove <digest> counts one less (uses.rs)
//! ```
//!
//! A layer that is refused is not there, so that podman pulls it. Numbers follow from what is named, so that they are the same for the next server.

mod blob;
pub(super) mod held;
mod login;
mod open;
mod uses;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;

use self::blob::Blobs;
use self::open::Tries;
use super::records::{PulledLayer, Records};
use super::trees::LAYERS;
use super::{Error, Store};
use crate::blob::Digest;
use crate::fs::forest::asked::{Asked, Finding, ROOT};
use crate::fs::forest::{Made, root_of};
use crate::image::options::ImageOptions;
use crate::registry::ImageRef;

/// Names that podman has looked up and that the kernel knows: more than any podman needs. Further references are not there.
const MOST_NAMES: usize = 1 << 16;

/// How layers are found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerOptions {
    /// How images are reached; which one it is does not count.
    pub source: ImageOptions,
    /// How long podman waits for a layer.
    pub deadline: Duration,
}

/// What a number stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Reference(String),
    Layer(String, Digest),
    Info(Bytes),
    Blob { layer: u32, size: u64 },
}

/// A layer that podman may use.
#[derive(Debug, Clone)]
struct Shown {
    number: u32,
    /// What podman reads of it, and the number of that.
    info: (u64, Bytes),
    blob: (u64, u64),
}

/// Who answers podman's lookups.
pub(super) struct Layers {
    store: Weak<Store>,
    options: LayerOptions,
    /// The credential files besides that of what podman has handed over.
    own_logins: Vec<PathBuf>,
    /// Whoever changes that holds it.
    logins: AsyncMutex<()>,
    /// Layers that are open, by the numbers of their directories.
    shown: RwLock<HashMap<u64, Shown>>,
    /// What of the records has a name, whether or not the kernel knows it.
    pinned: RwLock<HashMap<u64, Name>>,
    /// What the kernel knows besides, and how often it was told.
    names: Mutex<HashMap<u64, (Name, u64)>>,
    tries: Tries,
    blobs: Blobs,
    /// Layers that podman uses.
    in_use: AtomicUsize,
    /// Since when nobody uses a layer.
    idle: Mutex<HashMap<u32, Instant>>,
}

impl Layers {
    /// Has the lookups below a store's `layers` answered.
    pub(super) fn answer(store: &Arc<Store>, mut options: LayerOptions) {
        let own_logins = options.source.auth_files.clone();
        options.source.auth_files.insert(0, store.paths.credentials());
        let layers = Arc::new(Self {
            store: Arc::downgrade(store),
            options,
            own_logins,
            logins: AsyncMutex::default(),
            shown: RwLock::default(),
            pinned: RwLock::default(),
            names: Mutex::default(),
            tries: Tries::default(),
            blobs: Blobs::default(),
            in_use: AtomicUsize::default(),
            idle: Mutex::default(),
        });
        store.trees.answer_by(Arc::clone(&layers) as Arc<dyn Asked>);
        // It is set once.
        let _first = store.layers.set(layers);
    }

    /// What a reference is, as podman names it.
    fn source(&self, reference: &str) -> Option<ImageOptions> {
        let image = image_of(reference)?;
        let cache_dir = "/".into();
        Some(ImageOptions { image, cache_dir, cache_size: None, ..self.options.source.clone() })
    }

    fn name(&self, number: u64) -> Option<Name> {
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        pinned.or_else(|| Some(self.names().get(&number)?.0.clone()))
    }

    fn names(&self) -> MutexGuard<'_, HashMap<u64, (Name, u64)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a name, which is known by that from now on. Numbers of other names are never given.
    fn number(&self, name: Name) -> Finding {
        let number = name.number();
        if self.pinned.read().unwrap_or_else(PoisonError::into_inner).get(&number) == Some(&name) {
            return Finding::There(number);
        }
        let mut names = self.names();
        match names.get(&number) {
            Some((known, _)) if *known == name => {}
            Some(_) => return Finding::Nothing,
            None if names.len() >= MOST_NAMES => return Finding::Nothing,
            None => drop(names.insert(number, (name, 0))),
        }
        Finding::There(number)
    }

    fn find_in_layer(&self, dir: u64, (reference, digest): (String, Digest), name: &[u8]) -> Finding {
        let Some(part) = Part::of(name) else { return Finding::Nothing };
        if let Some(number) = self.part(dir, part) {
            return Finding::There(number);
        }
        let Some(layers) = self.own() else { return Finding::Nothing };
        Finding::Later(
            async move {
                layers.look_for(reference, digest).await;
                layers.part(dir, part)
            }
            .boxed(),
        )
    }

    /// The number of a part of a layer that is open.
    fn part(&self, dir: u64, part: Part) -> Option<u64> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let Shown { number, info, blob } = shown.get(&dir)?;
        Some(match part {
            Part::Diff => root_of(*number),
            Part::Info => info.0,
            Part::Blob => blob.0,
        })
    }

    fn count_uses(&self, records: &Records) {
        let in_use = records.pulled.iter().flat_map(|pulled| &pulled.layers).filter(|layer| layer.uses > 0);
        self.in_use.store(in_use.count(), Ordering::Relaxed);
    }

    /// How many layers of images podman has pulled by itself and not released yet.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Itself, for work that outlives the question.
    fn own(&self) -> Option<Arc<Self>> {
        self.store.upgrade()?.layers.get().cloned()
    }

    /// Shows layers no more, until all are shown again.
    fn hide(&self, numbers: &HashSet<u32>) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|_, layer| !numbers.contains(&layer.number));
    }

    /// Shows what the records have, as far as that is open.
    pub(super) fn show(&self, store: &Store, records: &Records) {
        let (mut shown, mut pinned) = (HashMap::new(), HashMap::new());
        for pulled in &records.pulled {
            let reference = Name::Reference(pulled.reference.clone());
            pinned.insert(reference.number(), reference);
            for layer in &pulled.layers {
                for digest in [Some(layer.blob), layer.toc].into_iter().flatten() {
                    let dir = Name::Layer(pulled.reference.clone(), digest);
                    let info = Name::Info(info(layer, &digest));
                    let blob = Name::Blob { layer: layer.layer.number, size: layer.size };
                    let Name::Info(text) = &info else { continue };
                    let new = Shown {
                        number: layer.layer.number,
                        info: (info.number(), text.clone()),
                        blob: (blob.number(), layer.size),
                    };
                    if store.trees.is_open(layer.layer.number) {
                        shown.insert(dir.number(), new);
                    }
                    pinned.extend([dir, info, blob].map(|name| (name.number(), name)));
                }
            }
        }
        *self.pinned.write().unwrap_or_else(PoisonError::into_inner) = pinned;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        self.count_uses(records);
        let kept: HashSet<u32> = records.pulled_layers().map(|layer| layer.number).collect();
        self.blobs.keep(&kept);
    }
}

/// What is in a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Diff,
    Info,
    Blob,
}

impl Part {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"diff" => Some(Self::Diff),
            b"info" => Some(Self::Info),
            b"blob" => Some(Self::Blob),
            _ => None,
        }
    }
}

impl Name {
    /// The same in every process, and another for each name.
    fn number(&self) -> u64 {
        let text = match self {
            Self::Reference(reference) => format!("reference {reference}"),
            Self::Layer(reference, digest) => format!("layer {reference} {digest}"),
            Self::Info(text) => format!("info {}", Digest::of(text)),
            Self::Blob { layer, size } => format!("blob {layer} {size}"),
        };
        let first = Digest::of(text.as_bytes()).as_bytes().first_chunk().copied().unwrap_or_default();
        // The root's own is nobody else's.
        u64::from_le_bytes(first) | ROOT | 1
    }
}

/// What podman means. Short names and paths it does not send.
fn image_of(reference: &str) -> Option<ImageRef> {
    let image = reference.parse().ok()?;
    matches!(&image, ImageRef::Registry(_)).then_some(image)
}

/// What podman is told of a layer that it asks for by that digest.
fn info(PulledLayer { layer, blob, size, compression, .. }: &PulledLayer, asked: &Digest) -> Bytes {
    let told = if asked == blob {
        json!({
            "compressed-diff-digest": blob, "compressed-size": size, "compression": compression,
            "diff-digest": layer.diff_id, "diff-size": layer.facts.size,
        })
    } else {
        json!({
            "toc-digest": asked, "compression": compression, "diff-size": -1,
            "flags": {"expected-layer-diffid": layer.diff_id},
        })
    };
    told.to_string().into()
}

impl Asked for Layers {
    fn made(&self, number: u64) -> Option<Made> {
        if number == ROOT {
            return Some(Made::Dir { entries: Default::default(), lasting: false });
        }
        Some(match self.name(number)? {
            Name::Reference(_) | Name::Layer(..) => Made::Dir { entries: Default::default(), lasting: false },
            Name::Info(text) => Made::File(text),
            Name::Blob { size, .. } => Made::Remote(size),
        })
    }

    fn find(&self, dir: u64, name: &[u8]) -> Finding {
        if dir == ROOT {
            let text = BASE64_STANDARD.decode(name).ok().and_then(|text| String::from_utf8(text).ok());
            let reference = text.filter(|text| image_of(text).is_some());
            return reference.map_or(Finding::Nothing, |reference| self.number(Name::Reference(reference)));
        }
        match self.name(dir) {
            Some(Name::Reference(reference)) => {
                let digest = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
                digest.map_or(Finding::Nothing, |digest| self.number(Name::Layer(reference, digest)))
            }
            Some(Name::Layer(reference, digest)) => self.find_in_layer(dir, (reference, digest), name),
            _ => Finding::Nothing,
        }
    }

    fn create(&self, dir: u64, name: &[u8]) -> BoxFuture<'static, ()> {
        match self.name(dir) {
            Some(Name::Layer(reference, digest)) if name == b"use" => self.count(reference, digest, true),
            _ => std::future::ready(()).boxed(),
        }
    }

    fn remove(&self, dir: u64, name: &[u8]) -> BoxFuture<'static, ()> {
        let digest = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
        match (self.name(dir), digest) {
            (Some(Name::Reference(reference)), Some(digest)) => self.count(reference, digest, false),
            _ => std::future::ready(()).boxed(),
        }
    }

    fn read(&self, number: u64, offset: u64, size: u32) -> BoxFuture<'static, Option<Bytes>> {
        match (self.name(number), self.own()) {
            (Some(Name::Blob { layer, .. }), Some(layers)) => layers.read_blob(layer, offset, size).boxed(),
            _ => std::future::ready(None).boxed(),
        }
    }

    fn remember(&self, number: u64) {
        if let Some((_, known)) = self.names().get_mut(&number) {
            *known = known.saturating_add(1);
        }
    }

    fn forget(&self, number: u64, times: u64) {
        let mut names = self.names();
        if let Some((_, known)) = names.get_mut(&number) {
            *known = known.saturating_sub(times);
            if *known == 0 {
                names.remove(&number);
            }
        }
    }
}

impl Store {
    /// Makes what podman is told of: a symlink to the directory in the mount, which is there without a mount as well. Nothing may be mounted yet.
    ///
    /// # Errors
    /// Where users have the store, too: what they look up would be fetched with the credentials of this server's user.
    pub(super) fn make_layers_place(&self) -> Result<(), Error> {
        let root = self.paths.root.clone();
        let records = self.records.try_lock();
        if records.is_ok_and(|records| !records.users.is_empty()) {
            return Err(Error::LayersAreOwn { root });
        }
        let (name, link) = (OsStr::from_bytes(LAYERS), self.paths.layers());
        let make = || {
            self.stubs.make_dir(name)?;
            match symlink(Path::new("overlay").join(name), &link) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.is_symlink() => Ok(()),
                made => made,
            }
        };
        make().map_err(|source| Error::File { path: link.clone(), source })
    }

    /// Lets podman find what the records have of images that it pulls.
    pub(super) fn show_pulled(&self, records: &Records) {
        if let Some(layers) = self.layers.get() {
            layers.show(self, records);
        }
    }
}

#[cfg(test)]
mod tests;
