//! Adds an image: reads its manifest, its config and its layers' tables of contents, and lets podman see it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::open::{Listing, Store, layer_error};
use super::records::{Blob, Image, Layer, Records};
use super::tar_splits::Staged;
use super::{Error, files, podman, tar_splits, trees};
use crate::blob::Digest;
use crate::fs::view::View;
use crate::index::{Identity, Trust};
use crate::mount::image::Engine;
use crate::mount::layer::OpenLayer;
use crate::mount::options::ImageOptions;
use crate::mount::{Event, Report};
use crate::registry::{self, ImageRef};

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
        let engine = if full { self.full_engine(&source)? } else { self.engine(&source)? };
        let mut found = Self::find(&engine, name, report).await?;
        let splits = if full { self.split(&engine, &mut found, report).await? } else { BTreeMap::new() };
        let mut records = self.records.lock().await;
        // Nothing waits in here but for the disk and for podman, and nothing may interrupt it.
        tokio::task::block_in_place(|| self.take_in(&mut records, found, splits, source))
    }

    async fn find(engine: &Arc<Engine>, name: String, report: &Report) -> Result<Found, Error> {
        let image = engine.resolve().await?;
        // Progress that nobody hears is none.
        let _heard =
            report(&Event::Resolved { name: image.name.clone(), digest: image.digest, layers: image.layers.len() });
        let no_config = || Error::NoConfig { image: name.clone() };
        let config_digest = image.config.as_ref().ok_or_else(no_config)?.digest;
        let config_bytes = engine.config_bytes(&image).await.ok_or_else(no_config)?;
        let config = read_config(&name, &config_bytes, image.layers.len())?;
        let image = Arc::new(image);
        let wanted = image.layers.iter().cloned().enumerate().collect();
        let results = engine.open_each(&image, wanted, report).await;
        let opened = results
            .into_iter()
            .map(|(number, result)| result.map_err(|source| layer_error(&name, number, &image, source)));
        let layers = opened.collect::<Result<_, _>>()?;
        Ok(Found { name, image, config_bytes, config_digest, config, layers })
    }

    /// Has those layers read whole of which podman has no tar-split that is known to be right. Gives those of them that can have one, by their
    /// numbers.
    async fn split(
        &self,
        engine: &Arc<Engine>,
        found: &mut Found,
        report: &Report,
    ) -> Result<BTreeMap<usize, Staged>, Error> {
        let wanted = self.wanted(&*self.records.lock().await, found)?;
        let split = engine.split_each(&mut found.layers, &wanted, report).await;
        split.map_err(|(number, source)| layer_error(&found.name, number, &found.image, source))?;
        // Also those that nobody wants: the layers stay for as long as the server.
        let made = found.layers.iter_mut().map(|layer| layer.tar_split.take()).enumerate();
        let made = made.filter(|(number, _)| wanted.contains_key(number));
        let made = made.filter_map(|(number, split)| Some((number, split?.ok()?)));
        let stage = |(number, split)| Ok((number, Staged::new(&self.paths, split)?));
        tokio::task::block_in_place(|| made.map(stage).collect())
    }

    /// The layers that are to be read whole, by their numbers and with their diffIDs.
    fn wanted(&self, records: &Records, found: &Found) -> Result<BTreeMap<usize, Digest>, Error> {
        let (mut wanted, mut seen, mut ids) = (BTreeMap::new(), HashSet::new(), Vec::new());
        for (number, (layer, diff_id)) in found.layers.iter().zip(&found.config.rootfs.diff_ids).enumerate() {
            let contents = contents(layer, &found.image.digest);
            ids.push(layer_id(records, &contents, ids.last(), diff_id));
            let donor = tar_splits::donor(records, &contents, diff_id);
            let has = donor.is_some_and(|donor| donor.is_verified() && self.paths.tar_split(&donor.id).exists());
            // What the image has twice takes part in the first.
            if !has && seen.insert((contents, *diff_id)) {
                wanted.insert(number, *diff_id);
            }
        }
        refuse_others(records, &found.name, &found.config_digest, &ids)?;
        Ok(wanted)
    }

    fn take_in(
        &self,
        records: &mut Records,
        found: Found,
        mut splits: BTreeMap<usize, Staged>,
        source: ImageOptions,
    ) -> Result<Listing, Error> {
        let Found { name, image, config_bytes, config_digest, config, layers } = found;
        let mut changed = records.clone();
        let mut ids: Vec<Digest> = Vec::new();
        for (number, (layer, diff_id)) in layers.into_iter().zip(&config.rootfs.diff_ids).enumerate() {
            let parent = ids.last().copied();
            let taken = self.take_layer(&mut changed, layer, parent, diff_id, &image);
            ids.push(taken.map_err(|source| layer_error(&name, number, &image, source))?);
        }
        let new = Image {
            id: config_digest,
            manifest: image.digest,
            names: vec![name],
            created: config.created.filter(|time| podman::is_time(time)).unwrap_or_else(|| podman::EPOCH.to_owned()),
            sizes: [image.manifest.len() as u64, config_bytes.len() as u64],
            layers: ids,
            source,
        };
        refuse_others(records, new.name(), &new.id, &new.layers)?;
        let splits = new.layers.iter().enumerate().filter_map(|(number, id)| Some((*id, splits.remove(&number)?)));
        self.take_tar_splits(&mut changed, splits, true)?;
        files::write_image(&self.paths, &new, &image.manifest, &config_bytes)?;
        changed.put(new);
        self.commit(records, changed)?;
        self.note_unused(records);
        let added = records.images.iter().find(|image| image.id == config_digest);
        added.map(|image| self.listing(records, image)).ok_or(Error::NoConfig { image: config_digest.to_string() })
    }

    /// The id of a layer: of one that the store has, where that is the same, else of a new one.
    fn take_layer(
        &self,
        records: &mut Records,
        layer: OpenLayer,
        parent: Option<Digest>,
        diff_id: &Digest,
        image: &registry::Image,
    ) -> Result<Digest, crate::mount::Error> {
        let contents = contents(&layer, &image.digest);
        let id = layer_id(records, &contents, parent.as_ref(), diff_id);
        let kept = records.layer(&id).map(|layer| layer.number);
        let view_of = |id: &Digest| self.trees.view(records.layer(id)?.number);
        if kept.and_then(|number| self.trees.view(number)).is_some() {
            return Ok(id);
        }
        let below: Option<Arc<View>> = parent.as_ref().and_then(view_of);
        let (tree, facts) = trees::tree(&layer, below.as_deref())?;
        let number = kept.or_else(|| self.trees.number(&id, &contents));
        // An image that was refused may have left layers open.
        let number = number.unwrap_or_else(|| records.take_number(|number| self.trees.view(number).is_some()));
        let link = podman::link(&id, |link| records.layers.iter().any(|layer| layer.link == link && layer.id != id));
        let blob = Some(Blob { digest: layer.layer.digest, size: layer.layer.size });
        let record = Layer { id, parent, number, link, diff_id: *diff_id, blob, contents, facts, tar: None };
        self.plant(&record, tree, layer);
        if kept.is_none() {
            records.layers.push(record);
        }
        Ok(id)
    }
}

/// The id of a layer: its chain id, unless the store has other contents by that.
fn layer_id(records: &Records, contents: &str, parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    let chain_id = podman::chain_id(parent, diff_id);
    let is_other = records.layer(&chain_id).is_some_and(|layer| layer.contents != contents);
    if is_other { podman::other_id(&chain_id, contents) } else { chain_id }
}

/// An image id stands for one set of blobs.
fn refuse_others(records: &Records, name: &str, id: &Digest, layers: &[Digest]) -> Result<(), Error> {
    match records.images.iter().find(|image| image.id == *id && image.layers != layers) {
        Some(old) => Err(Error::OtherLayers { image: name.to_owned(), id: *id, name: old.name().to_owned() }),
        None => Ok(()),
    }
}

fn read_config(image: &str, bytes: &[u8], layers: usize) -> Result<Config, Error> {
    let refused = |reason: String| Error::Config { image: image.to_owned(), reason };
    let config: Config = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
    match config.rootfs.diff_ids.len() {
        0 => Err(refused("the image has no layers".to_owned())),
        named if named == layers => Ok(config),
        named => Err(refused(format!("it names {named} layers, and the manifest {layers}"))),
    }
}

/// What a layer's contents follow from. What nothing vouches for belongs to one image alone.
fn contents(layer: &OpenLayer, image: &Digest) -> String {
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

fn registry_name(reference: &oci_client::Reference) -> String {
    let name = format!("{}/{}", reference.registry(), reference.repository());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, tag) => format!("{name}:{}", tag.unwrap_or("latest")),
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
            ("docker-archive:/srv/a.tar:alpine:3", "docker.io/library/alpine:3".to_owned()),
        ];
        for (image, expected) in cases {
            assert_eq!(name(image).unwrap(), expected);
        }
        let error = name("oci:/srv/a b").unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
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
