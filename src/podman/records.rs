//! What a store holds: store.json, for crfs alone. All that podman reads follows from it.
//!
//! A layer's number is never given again: it stands in the inode numbers of all that is in the layer.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

pub(super) use self::pulled::{Pulled, PulledLayer};
use super::Error;
use crate::blob::Digest;
use crate::image::options::ImageOptions;
use crate::sys::outside;

mod pulled;

const VERSION: u32 = 1;

/// How the names of files begin that are not in their places yet.
const NEW: &str = ".new-";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Records {
    version: u32,
    /// The number of the next layer.
    next: u32,
    /// How often anything was changed.
    changes: u32,
    /// Where the last server had its cache, for commands that run without one.
    pub(super) cache: Option<CachePlace>,
    /// Who has the store besides its owner.
    pub(super) users: Vec<String>,
    /// Where podman's own stores are that may use what the store has.
    pub(super) podman: Vec<PathBuf>,
    pub(super) images: Vec<Image>,
    /// Images that were removed, as long as podman needs a layer of them: where that comes from. Nobody is told of them.
    #[serde(default)]
    pub(super) retired: Vec<Image>,
    /// Parents before their children.
    pub(super) layers: Vec<Layer>,
    /// Layers of this life of the mount that no image has any more by that number, as long as the kernel may know them: somebody may run from them.
    #[serde(default)]
    pub(super) left: Vec<Layer>,
    /// Images that podman pulls by itself, and of which it has asked for layers.
    #[serde(default)]
    pub(super) pulled: Vec<Pulled>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CachePlace {
    pub(super) dir: PathBuf,
    pub(super) size: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    /// The digest of its config; podman's image id.
    pub(super) id: Digest,
    pub(super) manifest: Digest,
    pub(super) names: Vec<String>,
    /// When it was built, as its config says it, in RFC 3339.
    pub(super) created: String,
    /// Bytes of manifest and config.
    pub(super) sizes: [u64; 2],
    /// The lowest first.
    pub(super) layers: Vec<Digest>,
    /// Where its layers come from.
    pub(super) source: ImageOptions,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    /// Its chain id, or what stands for it (ids.rs).
    pub(super) id: Digest,
    pub(super) parent: Option<Digest>,
    /// The upper half of its inode numbers.
    pub(super) number: u32,
    /// Its name in `l/`.
    pub(super) link: String,
    pub(super) diff_id: Digest,
    /// What it is made of.
    #[serde(default)]
    pub(super) blob: Option<Blob>,
    /// What its contents are, and who vouches for them: two layers are one where this is equal, and their parents are.
    pub(super) contents: String,
    /// What podman is told of it.
    pub(super) facts: Facts,
    /// The tar of which podman has the tar-split.
    #[serde(default)]
    pub(super) tar: Option<Tar>,
    /// What tells its tree from others: what the kernel was told of its nodes, by its number. `None`: nothing yet.
    #[serde(default)]
    pub(super) tree: Option<Digest>,
}

/// A layer as registries have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What podman is to make of a layer's tar-split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tar {
    /// Bytes of it.
    pub(super) len: u64,
    /// Whether its digest is the layer's diffID, and what was read had the blob's digest; else the tar-split is as the blob has it.
    pub(super) is_verified: bool,
}

/// What is found out when a layer is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Bytes of all files.
    pub(super) size: u64,
    /// Owners of anything in it.
    pub(super) users: Vec<u32>,
    pub(super) groups: Vec<u32>,
    /// Mode, user and group of its root.
    pub(super) root: [u32; 3],
}

impl Image {
    /// For messages.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("<none>", String::as_str)
    }
}

impl Default for Records {
    fn default() -> Self {
        Self {
            version: VERSION,
            next: 1,
            changes: 0,
            cache: None,
            users: Vec::new(),
            podman: Vec::new(),
            images: Vec::new(),
            retired: Vec::new(),
            layers: Vec::new(),
            left: Vec::new(),
            pulled: Vec::new(),
        }
    }
}

impl Records {
    /// Those of a store; none where nothing was added yet.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = match outside::read(path, u64::MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(|source| Error::File { path: path.to_owned(), source })?,
        };
        let wrong = |source| Error::Records { path: path.to_owned(), source };
        let records: Self = serde_json::from_slice(&text).map_err(wrong)?;
        if records.version != VERSION {
            return Err(wrong(serde::de::Error::custom(format!("version {} is unknown", records.version))));
        }
        let numbers: HashSet<u32> = records.layers.iter().map(|layer| layer.number).collect();
        if numbers.len() < records.layers.len() {
            return Err(wrong(serde::de::Error::custom("two layers have one number")));
        }
        Ok(records)
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Records { path: path.to_owned(), source })?;
        replace(path, &text, 0o600)
    }

    pub(super) const fn changes(&self) -> u32 {
        self.changes
    }

    pub(super) const fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// `is_taken`: by a layer that the records do not have (any more).
    pub(super) fn take_number(&mut self, is_taken: impl Fn(u32) -> bool) -> u32 {
        let mut all = self.layers.iter().chain(self.pulled_layers()).map(|layer| layer.number).collect::<HashSet<_>>();
        all.extend(self.left.iter().map(|layer| layer.number));
        let taken = |number: &u32| is_taken(*number) || all.contains(number);
        let number = (self.next..u32::MAX).find(|number| !taken(number)).unwrap_or(u32::MAX);
        self.next = number.saturating_add(1);
        number
    }

    /// Remembers where podman's own stores are.
    pub(super) fn know_podman(&mut self, roots: &[PathBuf]) {
        let new: Vec<PathBuf> = roots.iter().filter(|root| !self.podman.contains(root)).cloned().collect();
        self.podman.extend(new);
    }

    pub(super) fn layer(&self, id: &Digest) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.id == *id)
    }

    /// All that can be read by that id: what images have by it now, and what is left of others.
    pub(super) fn all_of(&self, id: &Digest) -> impl Iterator<Item = &Layer> {
        let all = self.layers.iter().chain(&self.left).chain(self.pulled_layers());
        all.filter(move |layer| layer.id == *id)
    }

    /// What has that number, also if it is only left.
    pub(super) fn numbered(&self, number: u32) -> Option<&Layer> {
        self.layers.iter().chain(&self.left).chain(self.pulled_layers()).find(|layer| layer.number == number)
    }

    /// Remembers what tells the tree of a layer from others.
    pub(super) fn set_tree(&mut self, number: u32, tree: Digest) {
        let pulled = self.pulled.iter_mut().flat_map(|pulled| &mut pulled.layers).map(|layer| &mut layer.layer);
        let layers = self.layers.iter_mut().chain(&mut self.left).chain(pulled);
        layers.filter(|layer| layer.number == number).for_each(|layer| layer.tree = Some(tree));
    }

    /// Keeps what these records do not have any more of those before them, where the kernel may know it.
    pub(super) fn leave(&mut self, before: &Self, is_known: impl Fn(u32) -> bool) {
        let has = |layers: &[Layer], number| layers.iter().any(|layer| layer.number == number);
        self.left.retain(|layer| !has(&self.layers, layer.number));
        let gone = |layer: &&Layer| {
            !has(&self.layers, layer.number) && !has(&self.left, layer.number) && is_known(layer.number)
        };
        let gone: Vec<_> = before.layers.iter().filter(gone).cloned().collect();
        self.left.extend(gone);
    }

    /// The same as before, but for the numbers that were given meanwhile: the kernel may have heard of them.
    pub(super) const fn keep_numbers(&mut self, of: &Self) {
        if self.next < of.next {
            self.next = of.next;
        }
    }

    /// Whether any image has that layer.
    pub(super) fn is_used(&self, layer: &Digest) -> bool {
        self.images.iter().any(|image| image.layers.contains(layer))
    }

    /// Those that were removed, too.
    pub(super) fn all_images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().chain(&self.retired)
    }

    /// Forgets the removed images without which every layer has an image to come from.
    pub(super) fn forget_retired(&mut self) {
        let mut retired = std::mem::take(&mut self.retired);
        let is_left = |layer: &Digest| self.all_of(layer).next().is_some() && !self.is_used(layer);
        retired.retain(|image| image.layers.iter().any(is_left));
        self.retired = retired;
    }

    /// The links of the layers below one, the next one first.
    pub(super) fn links_below(&self, layer: &Layer) -> Vec<&str> {
        let next = |layer: &&Layer| self.layer(layer.parent.as_ref()?);
        std::iter::successors(next(&layer), next).map(|layer| layer.link.as_str()).collect()
    }

    /// Adds an image, or what is new of one; a name that another image had is its from now on.
    pub(super) fn put(&mut self, new: Image) {
        for image in &mut self.images {
            image.names.retain(|name| !new.names.contains(name));
        }
        match self.images.iter_mut().find(|image| image.id == new.id) {
            Some(image) => {
                let mut names = std::mem::take(&mut image.names);
                names.extend(new.names);
                *image = Image { names, ..new };
            }
            None => self.images.push(new),
        }
    }
}

/// Puts a file in the place of another, so that a reader sees either, and a power cut leaves either.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        let mut file = new_file().tempfile_in(dir_of(path))?;
        file.write_all(bytes)?;
        put(file, path, mode)
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Whether a name is that of a file that is not in its place yet: tempfile adds six letters or digits.
pub(super) fn is_unfinished(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(NEW));
    rest.is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|letter| letter.is_ascii_alphanumeric()))
}

/// How a file is made, for its owner alone, that is to be put in its place.
pub(super) fn new_file() -> tempfile::Builder<'static, 'static> {
    let mut new = tempfile::Builder::new();
    new.prefix(NEW);
    new
}

/// Puts a file that was written in the place of another.
pub(super) fn put(file: NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    // Whatever the umask was.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_dir_of(path)
}

pub(super) fn sync_dir_of(path: &Path) -> io::Result<()> {
    File::open(dir_of(path))?.sync_all()
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::registry::{Places, Platform};

    pub(in super::super) fn source() -> ImageOptions {
        ImageOptions {
            image: "docker.io/library/a:1".parse().unwrap(),
            platform: Platform { os: "linux".into(), architecture: "amd64".into(), variant: None },
            auth_files: Vec::new(),
            places: Places::default(),
            cache_dir: "/c".into(),
            cache_size: None,
            io_deadline: Duration::from_secs(1),
            whole_layer_below: 0,
            insecure_unverified_toc: false,
            memory_limit: u64::MAX,
            soci: None,
        }
    }

    pub(in super::super) fn image(id: &str, names: &[&str], layers: &[&str]) -> Image {
        Image {
            id: Digest::of(id.as_bytes()),
            manifest: Digest::of(b"m"),
            names: names.iter().map(ToString::to_string).collect(),
            created: "2020-01-02T03:04:05Z".into(),
            sizes: [10, 20],
            layers: layers.iter().map(|layer| Digest::of(layer.as_bytes())).collect(),
            source: source(),
        }
    }

    pub(in super::super) fn layer(records: &mut Records, id: &str, parent: Option<&str>) -> Layer {
        Layer {
            id: Digest::of(id.as_bytes()),
            parent: parent.map(|parent| Digest::of(parent.as_bytes())),
            number: records.take_number(|_| false),
            link: id.to_uppercase(),
            diff_id: Digest::of(b"d"),
            blob: Some(Blob { digest: Digest::of(format!("blob of {id}").as_bytes()), size: 5 }),
            contents: id.into(),
            facts: Facts { size: 7, users: vec![0, 5], groups: vec![0], root: [0o711, own().0, own().1] },
            tar: None,
            tree: None,
        }
    }

    /// An owner that every test may give a file.
    fn own() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.json");
        let mut records = Records::read(&path).unwrap();
        assert_eq!(records, Records::default());
        let one = layer(&mut records, "one", None);
        records.layers.push(one);
        records.put(image("i", &["a:1"], &["one"]));
        records.write(&path).unwrap();
        assert_eq!(Records::read(&path).unwrap(), records);
        assert_eq!(records.take_number(|number| number < 5), 5, "2 to 4 are of layers that are open");
        assert_eq!(records.take_number(|_| false), 6);
        fs::write(&path, r#"{"version": 1}"#).unwrap();
        assert!(Records::read(&path).unwrap_err().to_string().contains("store.json"));
    }

    /// As versions wrote them that did not keep removed images.
    #[test]
    fn older_records_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.json");
        let mut records = Records::default();
        records.put(image("i", &["a:1"], &[]));
        let mut text = serde_json::to_value(&records).unwrap();
        text.as_object_mut().unwrap().remove("retired").unwrap();
        fs::write(&path, text.to_string()).unwrap();
        assert_eq!(Records::read(&path).unwrap(), records);
    }

    #[test]
    fn a_removed_image_is_kept_for_layers_that_no_other_has() {
        let mut records = Records::default();
        for (id, parent) in [("a", None), ("b", Some("a"))] {
            let new = layer(&mut records, id, parent);
            records.layers.push(new);
        }
        records.put(image("i", &["i:1"], &["a"]));
        records.retired = vec![image("j", &[], &["a", "b"]), image("k", &[], &["a", "gone"])];
        records.forget_retired();
        let left: Vec<_> = records.all_images().map(|image| image.id).collect();
        assert_eq!(left, [Digest::of(b"i"), Digest::of(b"j")]);
        records.layers.pop();
        records.forget_retired();
        assert!(records.retired.is_empty(), "its other layer is an image's");
    }

    /// Who runs from a layer that was replaced or removed goes on with it.
    #[test]
    fn a_layer_that_the_kernel_may_know_is_left() {
        let mut before = Records::default();
        for id in ["gone", "unknown", "kept"] {
            let new = layer(&mut before, id, None);
            before.layers.push(new);
        }
        let numbers = |layers: &[Layer]| layers.iter().map(|layer| layer.number).collect::<Vec<_>>();
        let mut records = before.clone();
        let mut other = layer(&mut records, "gone", None);
        other.contents = "other".into();
        records.layers = vec![other, before.layers[2].clone()];
        records.leave(&before, |number| number != 2);
        assert_eq!((numbers(&records.layers), numbers(&records.left)), (vec![4, 3], vec![1]));
        assert_eq!(records.all_of(&Digest::of(b"gone")).count(), 2);
        records.retired = vec![image("i", &[], &["gone"])];
        records.set_tree(1, Digest::of(b"tree"));
        let (next, mut back) = (records.clone(), before.clone());
        records.layers = before.layers.clone();
        records.leave(&next, |_| true);
        assert_eq!(numbers(&records.left), [4], "what is there again is not left");
        records.forget_retired();
        assert_eq!(records.retired.len(), 1, "it says where a layer comes from");
        back.keep_numbers(&next);
        assert_eq!(back.take_number(|_| false), 5, "a number is given once, also where that was undone");
    }

    #[test]
    fn a_name_is_one_images_and_an_image_may_have_several() {
        let mut records = Records::default();
        records.put(image("i", &["a:1"], &[]));
        records.put(image("i", &["a:2"], &[]));
        records.put(image("j", &["a:1"], &[]));
        let names: Vec<_> = records.images.iter().map(|image| image.names.clone()).collect();
        assert_eq!(names, [vec!["a:2"], vec!["a:1"]]);
    }

    #[test]
    fn links_below_a_layer_have_the_next_first() {
        let mut records = Records::default();
        for (id, parent) in [("a", None), ("b", Some("a")), ("c", Some("b"))] {
            let new = layer(&mut records, id, parent);
            records.layers.push(new);
        }
        assert_eq!(records.links_below(&records.layers[2]), ["B", "A"]);
        assert!(records.links_below(&records.layers[0]).is_empty());
    }
}
