//! What a mount is asked to be: plain structs, made by cli/, handed to the background server as JSON.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listen::Listen;
use crate::blob::Digest;
pub use crate::fetch::Prefetch;
use crate::fs::tree::OpaqueXattr;
use crate::image::options::ImageOptions;
use crate::image::wire;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    pub source: ImageOptions,
    /// Absolute.
    #[serde(with = "wire::path")]
    pub dir: PathBuf,
    pub allow_other: bool,
    #[serde(default)]
    pub noexec: bool,
    /// What the mount table shows as its source, where that is not the image, pinned: what fstab has.
    #[serde(default)]
    pub shown: Option<String>,
    /// All options of `crfs mount` as they were, for a remount to compare with.
    #[serde(default, with = "wire::paths")]
    pub words: Vec<PathBuf>,
    pub prefetch: Prefetch,
    /// From the start until the mount point can be used.
    pub mount_deadline: Duration,
    pub frontend: FrontendChoice,
    /// `None`: all layers, merged.
    pub layer: Option<LayerChoice>,
    #[serde(with = "wire::WireOpaque")]
    pub opaque_xattr: OpaqueXattr,
    /// File handles lead to files that the kernel has forgotten.
    pub nfs_export: bool,
    /// Whether the server has CAP_SYS_ADMIN in the initial user namespace, and so may list trusted.* xattrs.
    pub system_admin: bool,
    /// Where the state of the mount may be kept, the best first.
    #[serde(with = "wire::paths")]
    pub state_dirs: Vec<PathBuf>,
    /// Where its metrics are served by HTTP.
    #[serde(default)]
    pub metrics_listen: Option<Listen>,
    pub log: LogOptions,
}

/// `--frontend`: what shows the image to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendChoice {
    Auto,
    Fuse,
}

/// `--layer`: the one layer that is served, unmerged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerChoice {
    /// 0 is the lowest.
    Number(u32),
    Digest(Digest),
}

impl fmt::Display for LayerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// What is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// `RUST_LOG`; wins over the verbosity.
    pub filter: Option<String>,
    /// How often `-v` was given.
    pub verbosity: u8,
    /// Whether `-q` was given: what is no failure is for the log file alone.
    #[serde(default)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::registry::{ImageRef, Places, Platform, SociChoice};

    #[test]
    fn options_survive_the_way_to_the_server_whatever_their_bytes() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff:b\n".to_vec()));
        let source = ImageOptions {
            image: ImageRef::Layout { dir: odd.clone(), tag: Some("1:2".into()) },
            platform: Platform { os: "linux".into(), architecture: "arm".into(), variant: Some("v7".into()) },
            auth_files: vec![odd.clone(), "/plain".into()],
            places: Places {
                registries_conf: Some(odd.clone()),
                user: Some(odd.clone()),
                system: Some("/etc/containers".into()),
                aliases: Some(odd.clone()),
                certs: vec![odd.clone(), "/plain".into()],
                hosts_dir: Some(odd.clone()),
                cert_dir: Some(odd.clone()),
                tls_verify: Some(false),
            },
            cache_dir: odd.clone(),
            cache_size: Some(u64::MAX),
            io_deadline: Duration::from_millis(1500),
            whole_layer_below: u64::MAX,
            insecure_unverified_toc: true,
            memory_limit: u64::MAX,
            soci: Some(SociChoice::Digest(Digest::of(b""))),
        };
        let options = MountOptions {
            source,
            dir: odd.clone(),
            allow_other: true,
            noexec: true,
            shown: Some("docker://a".into()),
            words: vec![odd.clone()],
            prefetch: Prefetch::All,
            mount_deadline: Duration::from_secs(60),
            frontend: FrontendChoice::Fuse,
            layer: Some(LayerChoice::Digest(Digest::of(b""))),
            opaque_xattr: OpaqueXattr::User,
            nfs_export: true,
            system_admin: true,
            state_dirs: vec![odd],
            metrics_listen: Some(Listen::Unix("/a".into())),
            log: LogOptions { filter: Some("crfs=debug".into()), verbosity: 2, quiet: true },
        };
        let text = serde_json::to_string(&options).unwrap();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<MountOptions>(&text).unwrap(), options);

        // What crfs wrote before it read the machine's configuration.
        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        let source = old["source"].as_object_mut().unwrap();
        for new in [
            "registries_conf",
            "user_containers_dir",
            "system_containers_dir",
            "short_name_aliases",
            "certs_dirs",
            "hosts_dir",
        ] {
            assert!(source.remove(new).is_some(), "{new}");
        }
        let places = serde_json::from_value::<MountOptions>(old).unwrap().source.places;
        let Places { cert_dir, tls_verify, .. } = options.source.places;
        assert_eq!(places, Places { cert_dir, tls_verify, ..Places::default() });
    }
}
