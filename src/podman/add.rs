//! Adds an image: reads its manifest, its config and its layers' tables of contents, and lets podman see it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::Store;
use super::apart::{For, Opened, Unsplit};
use super::open::{Listing, layer_error};
use super::records::{Blob, Image, Layer, Records};
use super::tar_splits::Staged;
use super::trees::{self, Prepared};
use super::{Error, files, lists, tar_splits};
use crate::blob::Digest;
use crate::fs::tree::Tree;
use crate::image::engine::Engine;
use crate::image::layer::OpenLayer;
use crate::image::options::ImageOptions;
use crate::image::tar_splits::keep_usable;
use crate::image::{self, Event, Report};
use crate::index::{Identity, Trust, time};
use crate::registry::{self, ImageRef, Reference, json};
use crate::threads::{self, Work};

/// What is needed of an image's config (OCI image specification 1.1, config.md).
#[derive(Deserialize)]
struct Config {
    created: Option<String>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// An image of which all is known.
struct Found {
    name: String,
    image: Arc<registry::Image>,
    config_bytes: Bytes,
    config_digest: Digest,
    config: Config,
    layers: Vec<OpenLayer>,
}

impl Store {
    /// `full`: all of its layers are read, so that podman can push them.
    ///
    /// # Errors
    /// Where the image cannot be had, or a layer of it not be served; the store is as it was, then.
    pub(super) async fn add(
        &self,
        source: ImageOptions,
        name: Option<String>,
        full: bool,
        report: &Report,
    ) -> Result<Listing, Error> {
        let name = name.map_or_else(|| name_of(&source.image), |name| given_name(&source.image, &name))?;
        let source = ImageOptions { cache_dir: "/".into(), cache_size: None, ..source };
        let engine = self.splitting_engine(&source)?;
        let (mut found, mut opened) = self.find(&engine, name, &source, full, report).await?;
        let splits = self.split(&engine, &mut found, &mut opened, full, report).await?;
        if let Some(reader) = opened.reader {
            reader.end().await;
        }
        let prepared = self.prepare(&mut found).await?;
        let mut records = self.records.lock().await;
        // Nothing waits in here but for the disk and for podman, and nothing may interrupt it.
        tokio::task::block_in_place(|| {
            let taken = self.take_in(&mut records, found, prepared, splits, source);
            self.close_left(&mut records);
            if !self.trees.left_over(&records).is_empty() {
                self.sweeping.wake();
            }
            taken
        })
    }

    async fn find(
        &self,
        engine: &Arc<Engine>,
        name: String,
        source: &ImageOptions,
        full: bool,
        report: &Report,
    ) -> Result<(Found, Opened<'_>), Error> {
        let image = engine.resolve(report).await?;
        // Progress that nobody hears is none.
        let _heard =
            report(&Event::Resolved { name: image.name.clone(), digest: image.digest, layers: image.layers.len() });
        let no_config = |why| Error::NoConfig { image: name.clone(), why };
        let config_bytes = engine.config_bytes(&image).await.map_err(no_config)?;
        let config_digest = Digest::of(&config_bytes);
        let config = read_config(&name, &config_bytes, image.layers.len())?;
        let image = Arc::new(image);
        let wanted = image.layers.iter().cloned().enumerate().collect();
        let (of, purpose) = ((&*name, source), For::Adding { full });
        let mut opened = self.open_apart(engine, of, (&image, wanted), purpose, report).await?;
        let results = std::mem::take(&mut opened.layers).into_iter();
        let layers =
            results.map(|(number, result)| result.map_err(|source| layer_error(&name, number, &image, source)));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok((Found { name, image, config_bytes, config_digest, config, layers }, opened))
    }

    /// Gives the tar-splits of layers of which podman has none that is known to be right, by their numbers: with `full` of all that can have one,
    /// which reads them whole, else of those that opening them has read whole.
    async fn split(
        &self,
        engine: &Arc<Engine>,
        found: &mut Found,
        opened: &mut Opened<'_>,
        full: bool,
        report: &Report,
    ) -> Result<BTreeMap<usize, Staged>, Error> {
        let wanted = self.wanted(&*self.records.lock().await, found)?;
        let refused = |number, source| layer_error(&found.name, number, &found.image, source);
        let mut made = std::mem::take(&mut opened.splits);
        if let Some(reader) = opened.reader.as_mut().filter(|_| full) {
            made = reader.split(&wanted, (engine.cache(), report)).await.map_err(|unsplit| match unsplit {
                Unsplit::Layer(number, source) => refused(number, source),
                Unsplit::Image(error) => error,
            })?;
        } else if opened.reader.is_none() {
            let split = match full {
                true => engine.split_each(&mut found.layers, &wanted, report).await,
                false => keep_usable(&mut found.layers).await,
            };
            split.map_err(|(number, source)| refused(number, source))?;
            // Also those that nobody wants: the layers stay for as long as the server.
            let splits = found.layers.iter_mut().map(|layer| layer.tar_split.take()?.ok()).enumerate();
            made.extend(splits.filter_map(|(number, split)| split.map(|split| (number, (split.file, split.tar_len)))));
        }
        made.retain(|number, _| wanted.contains_key(number));
        let stage = |(number, split)| Ok((number, Staged::new(&self.paths, split)?));
        tokio::task::block_in_place(|| made.into_iter().map(stage).collect())
    }

    /// The layers that are to have a tar-split, by their numbers and with their diffIDs.
    fn wanted(&self, records: &Records, found: &Found) -> Result<BTreeMap<usize, Digest>, Error> {
        let (mut wanted, mut seen) = (BTreeMap::new(), HashSet::new());
        for (number, candidate) in found.candidates().enumerate() {
            let diff_id = &candidate.diff_id;
            let donor = tar_splits::donor(records, &candidate.contents, diff_id);
            let has = donor.is_some_and(|donor| donor.is_verified() && self.paths.tar_split(&donor.id).exists());
            // What the image has twice takes part in the first.
            if !has && seen.insert((candidate.contents, *diff_id)) {
                wanted.insert(number, *diff_id);
            }
        }
        refuse_others(records, &found.name, &found.config_digest, &found.ids(records), &blobs(&found.layers))?;
        Ok(wanted)
    }

    /// Makes the trees of the layers that are not served yet: `None` for the others. With the records free: others may be building.
    async fn prepare(&self, found: &mut Found) -> Result<Vec<Option<Prepared>>, Error> {
        let records = self.records.lock().await.clone();
        let known = found.ids(&records).into_iter().zip(found.candidates());
        let tree = |(id, candidate): (_, Candidate)| self.trees.tree(candidate.same(&records, &id)?);
        let known: Vec<_> = known.map(tree).collect();
        let layers = std::mem::take(&mut found.layers);
        let preparing = threads::run(Work::Opening, move || {
            let prepared = prepare_each(&layers, known);
            (layers, prepared)
        });
        let lost = |lost| Error::from(image::Error::Merge { source: lost });
        let (layers, prepared) = preparing.await.map_err(lost)?;
        found.layers = layers;
        prepared.map_err(|(number, source)| layer_error(&found.name, number, &found.image, source))
    }

    fn take_in(
        &self,
        records: &mut Records,
        found: Found,
        prepared: Vec<Option<Prepared>>,
        mut splits: BTreeMap<usize, Staged>,
        source: ImageOptions,
    ) -> Result<Listing, Error> {
        let (ids, candidates): (_, Vec<_>) = (found.ids(records), found.candidates().collect());
        let Found { name, image, config_bytes, config_digest, config, layers } = found;
        let (mut changed, blobs, mut parent) = (records.clone(), blobs(&layers), None);
        let each = ids.iter().zip(candidates).zip(layers.into_iter().zip(prepared));
        for (number, ((id, candidate), (layer, prepared))) in each.enumerate() {
            let taken = self.take_layer(&mut changed, layer, prepared, candidate, *id, parent.replace(*id));
            taken.map_err(|source| layer_error(&name, number, &image, source))?;
        }
        let new = Image {
            id: config_digest,
            manifest: image.digest,
            names: vec![name],
            created: config.created.filter(|time| time::is_of_go(time)).unwrap_or_else(|| lists::EPOCH.to_owned()),
            sizes: [image.manifest.len() as u64, config_bytes.len() as u64],
            layers: ids,
            source,
        };
        refuse_others(records, new.name(), &new.id, &new.layers, &blobs)?;
        let splits = new.layers.iter().enumerate().filter_map(|(number, id)| Some((*id, splits.remove(&number)?)));
        self.take_tar_splits(&mut changed, splits, true)?;
        files::write_image(&self.paths, &new, &image.manifest, &config_bytes)?;
        changed.put(new);
        self.commit(records, changed)?;
        files::remove_other_tar_splits(&self.paths, records);
        self.sweeping.note(records);
        let added = records.images.iter().find(|image| image.id == config_digest);
        added.map(|image| self.listing(records, image)).ok_or(Error::NoImage { name: config_digest.to_string() })
    }

    /// Has a layer in the records by that id, and served: what was by that id already is kept where it is the same.
    fn take_layer(
        &self,
        records: &mut Records,
        layer: OpenLayer,
        prepared: Option<Prepared>,
        candidate: Candidate,
        id: Digest,
        parent: Option<Digest>,
    ) -> Result<(), image::Error> {
        let same = candidate.same(records, &id);
        let Candidate { contents, diff_id, blob, .. } = candidate;
        let blob = Some(Blob { digest: blob, size: layer.layer.size });
        let (same, number, facts, tree) = match same.and_then(|number| Some((number, self.trees.facts(number)?))) {
            Some((number, facts)) => (same, number, facts, None),
            None => {
                // It was open when the others were prepared.
                let again = || trees::prepare(&layer, self.trees.chain(records, parent.as_ref()).as_deref());
                let prepared = prepared.map_or_else(again, Ok)?;
                let tree = prepared.shape;
                // Of another tree the kernel may have been told by that number.
                let known = |number: u32| records.numbered(number).and_then(|layer| layer.tree);
                let same = same.filter(|number| known(*number).is_none_or(|known| known == tree));
                // A removed one may still be open. It goes on with what this comes from.
                let number = same.or_else(|| self.trees.number(&id, &contents, &tree));
                let number = number.unwrap_or_else(|| records.take_number(|number| self.trees.was_given(number)));
                (same, number, self.trees.plant(number, (id, contents.clone()), layer, prepared), Some(tree))
            }
        };
        self.openings.problems().remove(&id);
        let link = lists::link(&id, |link| records.layers.iter().any(|layer| layer.link == link && layer.id != id));
        let record = Layer { id, parent, number, link, diff_id, blob, contents, facts, tar: None, tree };
        match records.layers.iter_mut().find(|old| old.id == id) {
            Some(old) if same.is_some() => old.tree = tree.or(old.tree),
            // By another number: what runs goes on with what it has. A tar-split names files of the contents that it was made with.
            Some(old) => *old = record,
            None => records.layers.push(record),
        }
        Ok(())
    }
}

impl Found {
    fn candidates(&self) -> impl Iterator<Item = Candidate> {
        let diff_ids = &self.config.rootfs.diff_ids;
        self.layers.iter().zip(diff_ids).map(|(layer, diff_id)| Candidate::new(layer, diff_id, &self.image.digest))
    }

    /// The ids of its layers, the lowest first.
    fn ids(&self, records: &Records) -> Vec<Digest> {
        let mut ids = Vec::new();
        for (number, candidate) in self.candidates().enumerate() {
            let own = own_layer(records, &self.config_digest, number);
            ids.push(layer_id(records, &candidate, ids.last(), own));
        }
        ids
    }
}

/// The trees of layers, the lowest first, each above those below it; not of those of which one is known.
fn prepare_each(
    layers: &[OpenLayer],
    known: Vec<Option<Arc<Tree>>>,
) -> Result<Vec<Option<Prepared>>, (usize, image::Error)> {
    let (mut prepared, mut below) = (Vec::new(), Vec::new());
    for (number, (layer, known)) in layers.iter().zip(known).enumerate() {
        let new = match known {
            Some(tree) => {
                below.push(tree);
                None
            }
            None => {
                let new = trees::prepare(layer, Some(&below)).map_err(|error| (number, error))?;
                below.push(Arc::clone(&new.tree));
                Some(new)
            }
        };
        prepared.push(new);
    }
    Ok(prepared)
}

/// What a layer is, before it has an id.
struct Candidate {
    contents: String,
    blob: Digest,
    diff_id: Digest,
    trust: Trust,
}

impl Candidate {
    fn new(layer: &OpenLayer, diff_id: &Digest, image: &Digest) -> Self {
        Self { contents: contents(layer, image), blob: layer.layer.digest, diff_id: *diff_id, trust: layer.trust }
    }

    /// The number of the layer by that id, where that is the same.
    fn same(&self, records: &Records, id: &Digest) -> Option<u32> {
        records.layer(id).filter(|old| old.contents == self.contents).map(|old| old.number)
    }

    /// Whether it can stand in the place of a layer, for all images that have that: they name the same blob, which was read whole and vouches for this.
    fn succeeds(&self, old: &Layer) -> bool {
        self.trust == Trust::Blob && old.blob.is_some_and(|blob| blob.digest == self.blob)
    }
}

/// The layer that the store has in that place of that image.
fn own_layer<'a>(records: &'a Records, image: &Digest, number: usize) -> Option<&'a Layer> {
    let image = records.images.iter().find(|known| known.id == *image)?;
    records.layer(image.layers.get(number)?)
}

fn blobs(layers: &[OpenLayer]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.layer.digest).collect()
}

/// The id of a layer: that of the image's own layer where it is the same or succeeds it, else its chain id, unless the store has other contents by that.
fn layer_id(records: &Records, candidate: &Candidate, parent: Option<&Digest>, own: Option<&Layer>) -> Digest {
    let Candidate { contents, diff_id, .. } = candidate;
    let is_it = |own: &&Layer| own.contents == *contents || candidate.succeeds(own);
    let own = own.filter(|own| own.parent.as_ref() == parent && own.diff_id == *diff_id).filter(is_it);
    if let Some(own) = own {
        return own.id;
    }
    let chain_id = lists::chain_id(parent, diff_id);
    let is_other = records.layer(&chain_id).is_some_and(|layer| layer.contents != *contents);
    if is_other { lists::other_id(&chain_id, contents) } else { chain_id }
}

/// An image id stands for one set of blobs, and for what vouches for their contents.
fn refuse_others(records: &Records, name: &str, id: &Digest, layers: &[Digest], blobs: &[Digest]) -> Result<(), Error> {
    let Some(old) = records.images.iter().find(|image| image.id == *id && image.layers != layers) else {
        return Ok(());
    };
    let blob_of = |layer| records.layer(layer).and_then(|layer| layer.blob).map(|blob| blob.digest);
    let (image, id, name) = (name.to_owned(), *id, old.name().to_owned());
    match old.layers.iter().map(blob_of).eq(blobs.iter().copied().map(Some)) {
        true => Err(Error::OtherVouchers { image, id, name }),
        false => Err(Error::OtherLayers { image, id, name }),
    }
}

fn read_config(image: &str, bytes: &[u8], layers: usize) -> Result<Config, Error> {
    let refused = |reason: String| Error::Config { image: image.to_owned(), reason };
    let config: Config = json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
    match config.rootfs.diff_ids.len() {
        0 => Err(refused("the image has no layers".to_owned())),
        named if named == layers => Ok(config),
        named => Err(refused(format!("it names {named} layers, and the manifest {layers}"))),
    }
}

/// What a layer's contents follow from. What nothing vouches for belongs to one image alone.
pub(super) fn contents(layer: &OpenLayer, image: &Digest) -> String {
    let blob = layer.layer.digest;
    match (layer.trust, layer.identity) {
        (Trust::Unverified, _) | (_, None) => format!("{blob} unverified of {image}"),
        (_, Some(Identity::Toc(toc))) => format!("{blob} toc {toc}"),
        (_, Some(Identity::Own)) => format!("{blob} own"),
        (_, Some(Identity::Ztoc(ztoc))) => format!("{blob} ztoc {ztoc}"),
    }
}

/// The name that podman shows, and runs it by.
pub(super) fn name_of(image: &ImageRef) -> Result<String, Error> {
    let local = |path: &std::path::Path, tag: Option<&str>| {
        // Layouts hold tags and whole names.
        if let Some(name) = tag.filter(|name| name.contains(['/', ':'])) {
            return given_name(image, name);
        }
        let last = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        given_name(image, &format!("localhost/{last}:{}", tag.unwrap_or("latest")))
    };
    match image {
        ImageRef::Registry(reference) => Ok(registry_name(reference)),
        ImageRef::Layout { dir, tag } => local(dir, tag.as_deref()),
        ImageRef::Archive { file, tag } => local(file, tag.as_deref()),
        ImageRef::DockerArchive { name: Some(name), .. } if !name.starts_with('@') => Ok(name.clone()),
        ImageRef::DockerArchive { file, .. } => local(file, None),
    }
}

fn registry_name(reference: &Reference) -> String {
    let name = format!("{}/{}", reference.registry, reference.repository);
    match (&reference.digest, &reference.tag) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, tag) => format!("{name}:{}", tag.as_deref().unwrap_or("latest")),
    }
}

/// `--name`: completed as podman completes it.
fn given_name(image: &ImageRef, name: &str) -> Result<String, Error> {
    let refused = |reason: String| Error::Name { image: image.to_string(), text: name.to_owned(), reason };
    match name.parse::<ImageRef>() {
        Ok(ImageRef::Registry(reference)) => Ok(registry_name(&reference)),
        Ok(_) => Err(refused("it is a path".to_owned())),
        Err(error) => Err(refused(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::records::tests::{image, layer};

    fn name(image: &str) -> Result<String, Error> {
        name_of(&image.parse().unwrap())
    }

    #[test]
    fn names_are_those_that_podman_runs_images_by() {
        let digest = Digest::of(b"");
        let cases = [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1".to_owned()),
            (&format!("quay.io/a:1@{digest}"), format!("quay.io/a@{digest}")),
            ("oci:/srv/Sink-gz", "localhost/sink-gz:latest".to_owned()),
            ("oci-archive:/srv/a.tar:1.2", "localhost/a.tar:1.2".to_owned()),
            ("oci-archive:/srv/a.tar:alpine:3", "docker.io/library/alpine:3".to_owned()),
            ("oci:/srv/a:ghcr.io/o/b:1", "ghcr.io/o/b:1".to_owned()),
            ("docker-archive:/srv/a.tar:alpine:3", "docker.io/library/alpine:3".to_owned()),
        ];
        for (image, expected) in cases {
            assert_eq!(name(image).unwrap(), expected);
        }
        let error = name("oci:/srv/a b").unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
    }

    fn candidate(contents: &str, blob: &str, trust: Trust) -> Candidate {
        let blob = Digest::of(format!("blob of {blob}").as_bytes());
        Candidate { contents: contents.into(), blob, diff_id: Digest::of(b"d"), trust }
    }

    #[test]
    fn a_blob_that_was_read_whole_succeeds_what_was_less_sure_of_it() {
        let mut records = Records::default();
        let base = layer(&mut records, "base", None);
        let mut own = layer(&mut records, "own", Some("base"));
        own.contents = "own ztoc".into();
        let mut taken = layer(&mut records, "taken", Some("base"));
        taken.id = lists::chain_id(Some(&base.id), &own.diff_id);
        records.put(image("i", &["a:1"], &["base", "own"]));
        records.layers.extend([base.clone(), own.clone(), taken.clone()]);
        let id = |new: &Candidate| layer_id(&records, new, Some(&base.id), own_layer(&records, &Digest::of(b"i"), 1));
        assert_eq!(id(&candidate("own ztoc", "own", Trust::Soci)), own.id, "although that is not its chain id");
        assert_eq!(id(&candidate("own own", "own", Trust::Blob)), own.id);
        assert_eq!(id(&candidate("taken", "taken", Trust::Blob)), taken.id);
        for trust in [Trust::Manifest, Trust::Soci, Trust::Unverified] {
            assert_ne!(id(&candidate("own toc", "own", trust)), own.id, "somebody else vouches: {trust:?}");
        }
        assert_ne!(id(&candidate("other own", "other", Trust::Blob)), own.id);
        let refused = |blobs: &[&str]| {
            let blobs: Vec<_> = blobs.iter().map(|blob| Digest::of(format!("blob of {blob}").as_bytes())).collect();
            let refused = refuse_others(&records, "b:1", &Digest::of(b"i"), &[base.id, taken.id], &blobs);
            refused.unwrap_err().to_string()
        };
        assert!(refused(&["base", "own"]).contains("of the same blobs"));
        assert!(refused(&["base", "taken"]).contains("of other blobs"));
    }

    #[test]
    fn a_config_must_name_every_layer() {
        let diff = Digest::of(b"");
        let config = format!(r#"{{"rootfs": {{"diff_ids": ["{diff}"]}}}}"#);
        assert!(read_config("a", config.as_bytes(), 1).is_ok());
        let reason = |bytes: &[u8], layers| read_config("a", bytes, layers).err().unwrap().to_string();
        assert!(reason(config.as_bytes(), 2).contains("names 1 layers, and the manifest 2"));
        assert!(reason(br#"{"rootfs": {"diff_ids": []}}"#, 0).contains("no layers"));
        assert!(reason(b"{}", 1).contains("rootfs"));
    }
}
