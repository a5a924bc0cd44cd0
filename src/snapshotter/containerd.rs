//! The configuration that containerd needs (docs/containerd.md says what each line is for).

use std::path::Path;

/// A version of containerd, as far as its configuration depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Those of today. What is newer is taken for the last of these.
    pub const CURRENT: Self = Self { major: 2, minor: 4 };

    /// As `containerd --version` says it, or as somebody types it: the first number with a dot.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        text.split(|other: char| !other.is_ascii_digit() && other != '.').find_map(|word| {
            let mut numbers = word.split('.').map(str::parse);
            Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
        })
    }
}

/// What the lines name.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// By which containerd's users choose the snapshotter.
    pub name: &'a str,
    pub address: &'a Path,
    pub root: &'a Path,
}

/// Lines for containerd's config.toml.
#[must_use]
pub fn config(version: Version, names: Names<'_>) -> String {
    let Names { name, .. } = names;
    let (address, root) = (quoted(names.address), quoted(names.root));
    let name = quoted(Path::new(name));
    if version.major < 2 {
        return format!(
            "\
version = 2

# The snapshotter itself.
[proxy_plugins.{name}]
  type = \"snapshot\"
  address = {address}

# For Kubernetes (CRI). Without disable_snapshot_annotations = false, all layers are fetched and unpacked. `ctr` of these versions sends no labels:
# what it pulls is never lazy.
[plugins.\"io.containerd.grpc.v1.cri\".containerd]
  snapshotter = {name}
  disable_snapshot_annotations = false
"
        );
    }
    let transfer = "io.containerd.transfer.v1.local";
    let exports = match version.minor {
        // Its transfer service passes no labels on.
        0 | 1 => String::new(),
        _ => "    # Without this line all layers are fetched and unpacked: a string, not a boolean.\n    \
             enable_remote_snapshot_annotations = \"true\"\n"
            .to_owned(),
    };
    format!(
        "\
version = 3

# The snapshotter itself.
[proxy_plugins.{name}]
  type = \"snapshot\"
  address = {address}
  [proxy_plugins.{name}.exports]
    # Where the kubelet looks for room on the disk.
    root = {root}
{exports}
# These replace the default: without an entry for {name} nothing can be pulled for it (\"no unpack platforms defined\"), and without the one for
# overlayfs nothing for that.
[plugins.\"{transfer}\"]
  [[plugins.\"{transfer}\".unpack_config]]
    platform = \"linux\"
    snapshotter = {name}
  [[plugins.\"{transfer}\".unpack_config]]
    platform = \"linux\"
    snapshotter = \"overlayfs\"

# For Kubernetes (CRI). Without disable_snapshot_annotations = false, images that were pulled with another snapshotter before are not lazy.
[plugins.\"io.containerd.cri.v1.images\"]
  snapshotter = {name}
  disable_snapshot_annotations = false
"
    )
}

/// A basic string of TOML 1.0.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(version: &str) -> String {
        let names =
            Names { name: "crfs", address: Path::new("/run/\"s"), root: Path::new("/var/lib/crfs/snapshotter") };
        config(Version::find(version).unwrap(), names)
    }

    #[test]
    fn versions_are_found() {
        let said = "containerd github.com/containerd/containerd/v2 v2.4.2 d8a67ef5";
        assert_eq!(Version::find(said), Some(Version { major: 2, minor: 4 }));
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1";
        assert_eq!(Version::find(debian), Some(Version { major: 1, minor: 6 }));
        assert_eq!(Version::find("2.3"), Some(Version { major: 2, minor: 3 }));
        assert_eq!(Version::find("containerd"), None);
    }

    #[test]
    fn each_version_has_its_own_lines() {
        let new = text("2.4.2");
        assert!(
            new.starts_with("version = 3\n") && new.contains("enable_remote_snapshot_annotations = \"true\""),
            "{new}"
        );
        assert!(new.contains("address = \"/run/\\\"s\"") && new.matches("unpack_config]]").count() == 2, "{new}");
        assert!(!text("2.0").contains("enable_remote"));
        let old = text("1.6.20");
        assert!(
            old.starts_with("version = 2\n") && old.contains("grpc.v1.cri") && !old.contains("unpack_config"),
            "{old}"
        );
        for version in ["1.7", "2.0", "2.4", "3.0"] {
            let text = text(version);
            let file = crate::toml_file::File { path: Path::new("c"), text: &text };
            assert!(file.parse().is_ok(), "{text}");
        }
    }
}
