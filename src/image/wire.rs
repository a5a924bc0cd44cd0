//! How option structs that JSON has no word for travel to the background server: paths of any bytes, references, platforms.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fs::tree::OpaqueXattr;
use crate::registry::{ImageRef, Places, Platform};

/// A path as text where it is UTF-8, else as its bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WirePath {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for WirePath {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<WirePath> for PathBuf {
    fn from(path: WirePath) -> Self {
        match path {
            WirePath::Text(text) => text.into(),
            WirePath::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

pub(crate) mod path {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        WirePath::from(path).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(WirePath::deserialize(deserializer)?.into())
    }
}

pub(crate) mod paths {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| WirePath::from(path.as_path())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<WirePath>::deserialize(deserializer)?.into_iter().map(Into::into).collect())
    }
}

pub(crate) mod optional_path {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(WirePath::from).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<WirePath>::deserialize(deserializer)?.map(Into::into))
    }
}

pub(crate) mod image {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum WireImage {
        Registry(String),
        Layout { dir: WirePath, tag: Option<String> },
        Archive { file: WirePath, tag: Option<String> },
        DockerArchive { file: WirePath, name: Option<String> },
    }

    pub(crate) fn serialize<S: Serializer>(image: &ImageRef, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = match image {
            ImageRef::Registry(reference) => WireImage::Registry(reference.to_string()),
            ImageRef::Layout { dir, tag } => WireImage::Layout { dir: dir.as_path().into(), tag: tag.clone() },
            ImageRef::Archive { file, tag } => WireImage::Archive { file: file.as_path().into(), tag: tag.clone() },
            ImageRef::DockerArchive { file, name } => {
                WireImage::DockerArchive { file: file.as_path().into(), name: name.clone() }
            }
        };
        wire.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ImageRef, D::Error> {
        Ok(match WireImage::deserialize(deserializer)? {
            WireImage::Registry(text) => text.parse().map_err(serde::de::Error::custom)?,
            WireImage::Layout { dir, tag } => ImageRef::Layout { dir: dir.into(), tag },
            WireImage::Archive { file, tag } => ImageRef::Archive { file: file.into(), tag },
            WireImage::DockerArchive { file, name } => ImageRef::DockerArchive { file: file.into(), name },
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Platform")]
pub(crate) struct WirePlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What an older crfs did not write down is not read.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Places")]
pub(crate) struct WirePlaces {
    #[serde(default, with = "optional_path")]
    registries_conf: Option<PathBuf>,
    #[serde(default, rename = "user_containers_dir", with = "optional_path")]
    user: Option<PathBuf>,
    #[serde(default, rename = "system_containers_dir", with = "optional_path")]
    system: Option<PathBuf>,
    #[serde(default, rename = "short_name_aliases", with = "optional_path")]
    aliases: Option<PathBuf>,
    #[serde(default, rename = "certs_dirs", with = "paths")]
    certs: Vec<PathBuf>,
    #[serde(default, with = "optional_path")]
    hosts_dir: Option<PathBuf>,
    #[serde(default, with = "optional_path")]
    cert_dir: Option<PathBuf>,
    #[serde(default)]
    tls_verify: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OpaqueXattr", rename_all = "kebab-case")]
pub(crate) enum WireOpaque {
    Trusted,
    User,
    Both,
}
