//! From a reference to one image: which manifest it means, whose bytes are verified, and where its layers are.

use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::archive::Archive;
use super::blob::Blob;
use super::chunk_index;
use super::config;
use super::disk::{Archives, Unpacking};
use super::grammar::Reference;
use super::layout::Layout;
use super::manifest::{Descriptor, LayerDescriptor, Manifest, parse, place};
use super::patience::Patience;
use super::repository::{Document, Repository};
use super::search::Search;
use super::shared::Shared;
use super::silent::{Waits, blocking};
use super::{
    EndpointReport, Error, Freshness, Hosts, Image, ImageRef, Layer, Login, Options, credentials, docker_archive,
};
use crate::blob::{ByteSource, Digest, Documents};
use crate::sys::outside;

/// How long a registry is waited for that may be answered for by what is remembered.
const PATIENCE_WITH_MEMORY: Duration = Duration::from_secs(5);

/// Talks to registries. Cheap to clone; needs a tokio runtime, whose handle it takes at creation for the blocking reads.
#[derive(Clone)]
pub struct Client {
    pub(super) options: Options,
    pub(super) documents: Arc<dyn Documents>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) resolve_deadline: Duration,
    hosts: Hosts,
    archives: Archives,
    unpacking: Arc<Unpacking>,
    /// Made when a registry is first asked: a layout on disk needs no certificates.
    shared: Arc<OnceLock<Arc<Shared>>>,
}

/// Where an image's parts are.
pub(super) enum Source {
    Remote(Repository),
    Local(Layout),
}

impl Client {
    /// # Errors
    /// Where there is no tokio runtime here.
    pub fn new(options: Options, documents: Arc<dyn Documents>) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|source| Error::Setup {
            what: "a tokio runtime is needed".to_owned(),
            source: Some(source.into()),
        })?;
        let resolve_deadline = options.io_deadline;
        let (hosts, shared) = (Hosts::default(), Arc::default());
        let (archives, unpacking) = (Archives::default(), Arc::default());
        Ok(Self { options, documents, runtime, resolve_deadline, hosts, archives, unpacking, shared })
    }

    /// Gives up resolving after this time without progress, where that is sooner than `io_deadline`: a mount has its own
    /// deadline, and should end with what the registry said last.
    #[must_use]
    pub fn with_resolve_deadline(mut self, deadline: Duration) -> Self {
        self.resolve_deadline = self.resolve_deadline.min(deadline);
        self
    }

    /// Shares what is known of hosts with other clients; to be called before anything is asked for.
    #[must_use]
    pub fn with_hosts(self, hosts: Hosts) -> Self {
        Self { hosts, shared: Arc::default(), ..self }
    }

    /// Shares the archives that are unpacked with other clients; to be called before anything is asked for.
    #[must_use]
    pub fn with_archives(self, archives: Archives) -> Self {
        Self { archives, ..self }
    }

    /// What came of asking each endpoint.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointReport> {
        self.hosts.endpoints()
    }

    /// Seconds that the clock of a host is ahead of this machine's, by the last answer that has said so.
    #[must_use]
    pub fn clock_ahead(&self) -> Option<i64> {
        self.hosts.clock.ahead()
    }

    /// Who the registry of an image is told that this is, where it wants to know. It is not asked.
    ///
    /// # Errors
    /// Where a credential file cannot be read or understood.
    pub async fn login(&self, image: &ImageRef) -> Result<Login, Error> {
        let ImageRef::Registry(Reference { registry, repository, .. }) = image else { return Ok(Login::Nobody) };
        let (files, hosts) = (&self.options.auth_files, &self.hosts);
        Ok(credentials::find(files, &hosts.disks, registry, repository, &hosts.waits).await?.login())
    }

    /// Bytes of compressed archives that were read, and all that they have. Resolving waits for them.
    #[must_use]
    pub fn unpacked(&self) -> (u64, u64) {
        self.unpacking.progress()
    }

    /// Resolves a reference once to one image of the wanted platform, its manifest verified by digest.
    ///
    /// A digest whose manifest is remembered is not asked for; a tag is, and what it was last is taken where the registry cannot be reached.
    ///
    /// # Errors
    /// Where the image is not there, is of other platforms only, cannot be verified or cannot be had within the deadline, or this machine's
    /// configuration or policy refuses it.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Image, Error> {
        let (places, asked) = (self.options.places.clone(), image.clone());
        blocking(move || Ok(config::permits(&places, &asked)?)).await?;
        match image {
            ImageRef::Registry(reference) => self.resolve_remote(image, reference).await,
            ImageRef::Layout { dir, tag } => self.resolve_local(image, Layout::Directory(dir.clone()), tag).await,
            ImageRef::Archive { file, tag } => self.resolve_local(image, self.archive(file).await?, tag).await,
            ImageRef::DockerArchive { file, name } => {
                let (top, layout) = self.docker_archive(image, file, name).await?;
                self.choose(image, &Source::Local(layout), top).await
            }
        }
    }

    /// The image of a manifest that was verified before, wherever `image` says that its blobs are. Asks no registry anything.
    ///
    /// # Errors
    /// Where it is no manifest of an image, or the layout or archive cannot be read.
    pub async fn resolve_pinned(&self, image: &ImageRef, manifest: Bytes) -> Result<Image, Error> {
        let source = match image {
            ImageRef::DockerArchive { file, name } => {
                Some(Source::Local(self.docker_archive(image, file, name).await?.1))
            }
            _ => self.source(image).await?,
        };
        let source = source.ok_or_else(|| Error::Manifest {
            what: image.to_string(),
            kind: "manifest",
            reason: "nothing is known of where its blobs are".to_owned(),
        })?;
        let document = Document { digest: Digest::of(&manifest), bytes: manifest };
        self.choose(image, &source, document).await
    }

    /// Where what belongs to an image is kept beside it; `None` where nothing can be.
    pub(super) async fn source(&self, image: &ImageRef) -> Result<Option<Source>, Error> {
        Ok(match image {
            ImageRef::Registry(reference) => {
                let (shared, reference) = (self.shared(), reference.clone());
                let repository = blocking(move || Ok(Repository::open_again(shared, &reference))).await?;
                Some(Source::Remote(repository))
            }
            ImageRef::Layout { dir, .. } => Some(Source::Local(Layout::Directory(dir.clone()))),
            ImageRef::Archive { file, .. } => Some(Source::Local(self.archive(file).await?)),
            ImageRef::DockerArchive { .. } => None,
        })
    }

    /// Resolves the image that stands beside another under its tag with a suffix, as a TOC image does (`-esgztoc`).
    ///
    /// # Errors
    /// As [`Client::resolve`]; [`Error::is_not_found`] tells where there is none.
    pub async fn resolve_sibling(&self, image: &ImageRef, suffix: &str) -> Result<Image, Error> {
        self.resolve(&image.sibling(suffix)?).await
    }

    /// An archive as a layout.
    async fn archive(&self, file: &Path) -> Result<Layout, Error> {
        self.find_file(file).await?;
        let (path, unpack) = (file.to_owned(), self.unpack(file));
        Ok(Layout::Archive(Arc::new(self.follow_disk(file, move || Archive::open(&path, unpack()?)).await?)))
    }

    /// An image of a docker archive: its manifest, and where its blobs are.
    async fn docker_archive(
        &self,
        image: &ImageRef,
        file: &Path,
        name: &Option<String>,
    ) -> Result<(Document, Layout), Error> {
        self.find_file(file).await?;
        let (path, unpack) = (file.to_owned(), self.unpack(file));
        let (image, name) = (image.name(), name.clone());
        let open = move || docker_archive::open(&path, unpack()?, &image, name.as_deref());
        let opened = self.follow_disk(file, open).await?;
        Ok((opened.0, Layout::Archive(Arc::new(opened.1))))
    }

    /// Reads an archive, unpacked where it is compressed. Blocking.
    fn unpack(&self, file: &Path) -> impl FnOnce() -> Result<Arc<dyn ByteSource>, Error> + Send + use<> {
        let (path, archives) = (file.to_owned(), self.archives.clone());
        let (documents, unpacking) = (Arc::clone(&self.documents), Arc::clone(&self.unpacking));
        move || archives.open(&path, &*documents, &unpacking)
    }

    fn shared(&self) -> Arc<Shared> {
        let make = || Arc::new(Shared::new(self.options.clone(), self.hosts.clone()));
        Arc::clone(self.shared.get_or_init(make))
    }

    async fn repository(&self, reference: &Reference) -> Result<Repository, Error> {
        let (shared, reference) = (self.shared(), reference.clone());
        // It reads the configuration and certificates, from disks that may not answer.
        blocking(move || Repository::open(shared, &reference)).await
    }

    async fn resolve_remote(&self, image: &ImageRef, reference: &Reference) -> Result<Image, Error> {
        let repository = self.repository(reference).await?;
        let top = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => {
                let digest = digest
                    .parse::<Digest>()
                    .map_err(|source| Error::Reference { text: image.to_string(), reason: format!("{source}") })?;
                let bytes = self.verified(&repository, image, digest).await?;
                Document { digest, bytes }
            }
            (None, tag) => self.by_tag(&repository, image, tag.as_deref().unwrap_or("latest")).await?,
        };
        self.choose(image, &Source::Remote(repository), top).await
    }

    async fn resolve_local(&self, image: &ImageRef, layout: Layout, tag: &Option<String>) -> Result<Image, Error> {
        let (name, tag) = (image.name(), tag.clone());
        let reader = layout.clone();
        let find = move || {
            let entry = reader.find(&name, tag.as_deref())?;
            let refused = |reason| Error::Manifest { what: name, kind: "manifest", reason };
            let (digest, size) = place(&entry.digest, entry.size).map_err(refused)?;
            Ok(Document { digest, bytes: reader.document(&digest, Some(size))? })
        };
        let top = self.ask_disk(layout.path(), find).await?;
        self.choose(image, &Source::Local(layout), top).await
    }

    /// What a tag means now; what it meant last where the registry cannot say.
    async fn by_tag(&self, repository: &Repository, image: &ImageRef, tag: &str) -> Result<Document, Error> {
        let key = format!("{image} {}", self.options.platform);
        let remembered = self
            .documents
            .resolved(&key)
            .and_then(|digest| self.documents.get(&digest).map(|bytes| Document { digest, bytes }));
        let limit = remembered.as_ref().map_or(Duration::MAX, |_| PATIENCE_WITH_MEMORY);
        let mut patience = repository.patience("manifest", tag, self.resolve_deadline.min(limit));
        match (ask_tag(repository, image, tag, &mut patience).await, remembered) {
            (Ok(document), _) => {
                self.documents.put(&document.digest, &document.bytes);
                self.documents.remember(&key, &document.digest);
                Ok(document)
            }
            (Err(error), Some(document)) if error.is_unreachable() => {
                tracing::warn!(%image, digest = %document.digest, %error, "the registry cannot be reached; using what the tag meant last");
                Ok(document)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// A document by digest, remembered or asked for; wrong bytes are asked for once more past caches.
    async fn verified(&self, repository: &Repository, image: &ImageRef, digest: Digest) -> Result<Bytes, Error> {
        if let Some(bytes) = self.documents.get(&digest) {
            return Ok(bytes);
        }
        let mut patience = repository.patience("manifest", &digest.to_string(), self.resolve_deadline);
        let mut wrong = None;
        for freshness in [Freshness::Any, Freshness::PastCaches] {
            match repository.by_digest(&digest, freshness, &mut patience).await {
                Ok(document) => {
                    self.documents.put(&digest, &document.bytes);
                    return Ok(document.bytes);
                }
                Err(error) if error.is_wrong_digest() => wrong = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(match wrong {
            Some(Error::WrongDigest { expected, found, .. }) => {
                Error::WrongDigest { what: image.to_string(), expected, found }
            }
            Some(error) => error,
            None => Error::NoEndpoint { repository: image.to_string() },
        })
    }

    pub(super) async fn child(&self, image: &ImageRef, source: &Source, entry: &Descriptor) -> Result<Document, Error> {
        let refused = |reason| Error::Manifest { what: image.to_string(), kind: "index", reason };
        let (digest, size) = place(&entry.digest, entry.size).map_err(refused)?;
        let bytes = self.by_digest(image, source, digest, Some(size)).await?;
        Ok(Document { digest, bytes })
    }

    /// A document, verified; of the size that its descriptor says where there is one.
    pub(super) async fn by_digest(
        &self,
        image: &ImageRef,
        source: &Source,
        digest: Digest,
        size: Option<u64>,
    ) -> Result<Bytes, Error> {
        match source {
            Source::Remote(repository) => self.verified(repository, image, digest).await,
            Source::Local(layout) => {
                let reader = layout.clone();
                self.ask_disk(layout.path(), move || reader.document(&digest, size)).await
            }
        }
    }

    /// Goes down from a document to the image of the wanted platform.
    async fn choose(&self, image: &ImageRef, source: &Source, top: Document) -> Result<Image, Error> {
        let what = image.to_string();
        let mut search = Search::new(&what, &self.options.platform);
        let mut document = top;
        loop {
            if let Some(found) = search.look(parse(&what, &document.bytes)?)? {
                let Manifest { layers, config, annotations, .. } = found;
                let (layers, config) = self.blobs(source, layers, config).await?;
                let layers = chunk_index::with_layers(layers);
                let (name, digest, manifest) = (image.name(), document.digest, document.bytes);
                let (platform, layer_count) = (search.platform, layers.len());
                return Ok(Image { name, digest, manifest, platform, layers, layer_count, config, annotations });
            }
            document = self.child(image, source, &search.next()?).await?;
        }
    }

    /// Where the bytes of layers and config are. A config that is not there is missed by nobody but who asks for it.
    async fn blobs(
        &self,
        source: &Source,
        layers: Vec<LayerDescriptor>,
        config: Option<LayerDescriptor>,
    ) -> Result<(Vec<Layer>, Option<Layer>), Error> {
        match source {
            Source::Remote(repository) => {
                let blob = |layer: LayerDescriptor| {
                    Layer::new(Blob::remote(repository.clone(), &layer, self.runtime.clone()), layer)
                };
                Ok((layers.into_iter().map(blob).collect(), config.map(blob)))
            }
            Source::Local(layout) => {
                let reader = layout.clone();
                let (opening, in_use) = (self.resolve_deadline, self.options.io_deadline);
                let opened = self.ask_disk(layout.path(), move || {
                    let open = |layer: LayerDescriptor| {
                        let file = reader.blob(&layer.digest, Some(layer.size))?;
                        Ok(Layer::new(Blob::local(file, layer.digest, opening, in_use), layer))
                    };
                    let config = config.and_then(|config| open(config).ok());
                    Ok((layers.into_iter().map(open).collect::<Result<Vec<_>, Error>>()?, config))
                });
                opened.await
            }
        }
    }
}

/// Files of this machine.
impl Client {
    /// Takes care that a file can be read at all: how long it takes to read what is in an archive nobody can say.
    async fn find_file(&self, file: &Path) -> Result<(), Error> {
        let path = file.to_owned();
        let read = move || {
            let failed = |source| Error::File { path: path.clone(), what: "cannot be read", source };
            outside::open_file(&path).and_then(|mut file| file.read(&mut [0])).map(drop).map_err(failed)
        };
        self.ask_disk(file, read).await
    }

    /// What takes as long as an archive is large: it is waited for while anything of it is read.
    async fn follow_disk<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let waits = || match self.documents.dir().filter(|_| self.archives.waits_for_cache(path)) {
            Some(cache) => Waits { moved: self.archives.moved(path), place: cache, what: "cannot be used" },
            None => Waits { moved: self.archives.moved(path), ..Waits::to_read(path) },
        };
        self.hosts.disks.follow(path, self.resolve_deadline, waits, work).await
    }

    /// As much of a layout as takes no time where its filesystem answers.
    pub(super) async fn ask_disk<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.follow_disk(path, work).await
    }
}

impl Layer {
    pub(super) fn new(blob: Blob, layer: LayerDescriptor) -> Self {
        let LayerDescriptor { digest, size, media_type, annotations } = layer;
        Self { digest, size, media_type, annotations, blob, chunk_index: None }
    }
}

/// Asks for a tag. Bytes that are not what the registry says they are may have been spoilt on the way; if they come again past
/// caches, their own digest is what counts.
async fn ask_tag(
    repository: &Repository,
    image: &ImageRef,
    tag: &str,
    patience: &mut Patience,
) -> Result<Document, Error> {
    let (document, said) = repository.by_tag(tag, Freshness::Any, patience).await?;
    if said.is_none_or(|said| said == document.digest) {
        return Ok(document);
    }
    let (document, said) = repository.by_tag(tag, Freshness::PastCaches, patience).await?;
    if let Some(said) = said.filter(|said| *said != document.digest) {
        tracing::warn!(%image, %said, digest = %document.digest, "the registry states another digest than its manifest has");
    }
    Ok(document)
}
