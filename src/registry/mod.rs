//! References, credentials, manifests and ranged reads of blobs; the same from an OCI layout or an archive on disk.
//!
//! ```text
//! text -> reference -> client -+- config                                            where it may be asked for
//!                              |- repository -- race, health, hedges                which of these is asked, and which next
//!                              |     |- site -- peer, auth, credentials, redirect   one request to one of them, by the rules
//!                              |     `-- manifest, platform                         which image, verified
//!                              |- referrers, soci                                   what stands beside it
//!                              `- layout, names, archive, docker_archive, tarfile,  the same from disk
//!              |  disk
//! image.layers[n].blob -> ranged, side, blame (or a file): exactly the bytes asked for; patience says how long it tries
//! ```

mod archive;
mod artifact;
mod ask;
mod auth;
mod blame;
mod blob;
mod chunk_index;
mod client;
mod clock;
mod config;
mod credentials;
mod curve;
mod disk;
mod docker_archive;
mod errors;
mod file_blob;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod given;
mod grammar;
mod health;
mod hedges;
mod helper;
mod hosts;
pub(crate) mod json;
mod layout;
mod left_out;
mod link;
mod loopback;
mod manifest;
mod names;
mod patience;
mod peer;
mod platform;
mod proxy;
mod race;
mod ranged;
mod redirect;
mod reference;
mod referrers;
mod repository;
mod resolver;
mod search;
mod secret;
mod shared;
mod short;
mod side;
mod silent;
mod site;
mod soci;
mod tarfile;
mod throttle;
mod tls;
mod transport;
mod waits;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

pub use artifact::Artifact;
pub use blob::{Blob, Body, Parts, Sent, Traffic};
pub use client::Client;
pub use config::{Candidates, ConfigError, Places, Surroundings, Survey, survey};
pub use credentials::{AuthPlaces, HelperFailure, Login, Origin, Surveyed, auth_files, survey_credentials};
pub use disk::Archives;
pub(crate) use errors::list;
pub use errors::{Error, ProxyTrouble, Redacted, Retry};
pub use given::Given;
pub use grammar::Reference;
pub use health::Counts;
pub use hosts::{EndpointReport, Hosts};
pub use left_out::LeftOut;
pub use link::Capacity;
pub use platform::Platform;
pub use proxy::{ProxyUrl, proxy_of, proxy_url};
pub use reference::ImageRef;
pub use short::{candidates, short_name};
pub use soci::{Soci, SociChoice, SociSource};
pub use waits::Waiting;

use crate::blob::Digest;

/// Everything the client needs from outside; cli/ fills it from flags and the environment, nothing here reads the environment
/// (but for proxies and certificates, see transport.rs).
#[derive(Debug, Clone)]
pub struct Options {
    /// Credential files in the order they are asked, `--authfile` alone where it is given. See [`auth_files`].
    pub auth_files: Vec<PathBuf>,
    /// What says how registries are reached.
    pub places: Places,
    pub platform: Platform,
    /// Longest time without progress (less than 1 KiB/s over 10 s, or over a quarter of this where that is shorter, is none).
    pub io_deadline: Duration,
}

/// One image of one platform, resolved.
#[derive(Clone)]
pub struct Image {
    /// The name without tag, for display: `docker.io/library/alpine`, `oci:/abs/dir`.
    pub name: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The bytes of its manifest.
    pub manifest: Bytes,
    /// What its index says it is for; `None` where no index led to it.
    pub platform: Option<Platform>,
    pub layers: Vec<Layer>,
    /// Layers of its manifest, also where only some of them are wanted.
    pub layer_count: usize,
    /// Its config, which says for what platform an image without an index is.
    pub config: Option<Layer>,
    /// What its manifest says beyond that.
    pub annotations: BTreeMap<String, String>,
}

/// One layer: its descriptor and where its bytes are.
#[derive(Clone)]
pub struct Layer {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    pub annotations: BTreeMap<String, String>,
    pub blob: Blob,
    /// The digests of its parts, where the manifest has them as a layer of their own.
    pub chunk_index: Option<Box<Layer>>,
}

/// Whether caches on the way may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    Any,
    /// `Cache-Control: no-cache`: what came before had the wrong digest.
    PastCaches,
}
