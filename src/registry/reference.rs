//! What IMAGE means: a transport, a name, and a tag or digest (containers-transports(5), as far as crfs reads them).
//!
//! ```text
//! [docker://]alpine                      docker.io/library/alpine:latest
//! ghcr.io/a/b:1@sha256:...               the digest wins, the tag is for reading only
//! [::1]:5000/a                           an IPv6 address
//! oci:DIR[:TAG]  oci-archive:FILE[:TAG]  an OCI image layout, as a directory or in a tar; TAG may be a whole name
//! docker-archive:FILE[:NAME]             what docker save writes; NAME is completed like one in a registry, or @N
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;
use super::grammar::{self, Reference};
use crate::blob::Digest;

/// Transports that other tools know, so that they are not taken for a host's name.
const FOREIGN_TRANSPORTS: [&str; 8] =
    ["atomic", "containers-storage", "dir", "docker-daemon", "oci-layout", "ostree", "sif", "tarball"];

/// What IMAGE on the command line means. Parsed from text; displayed canonically (`docker.io/library/alpine:latest`, `oci:/abs/dir:tag`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    Registry(Reference),
    Layout {
        dir: PathBuf,
        tag: Option<String>,
    },
    Archive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// `name` is a canonical reference with a tag, or `@` and a number: the place of an image in the archive.
    DockerArchive {
        file: PathBuf,
        name: Option<String>,
    },
}

impl ImageRef {
    /// The name alone, without tag and digest, as /proc/mounts shows it before the digest.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Registry(reference) => format!("{}/{}", reference.registry, reference.repository),
            Self::Layout { dir, .. } => format!("oci:{}", dir.display()),
            Self::Archive { file, .. } => format!("oci-archive:{}", file.display()),
            Self::DockerArchive { file, .. } => format!("docker-archive:{}", file.display()),
        }
    }

    /// The same with a digest, which wins over the tag. What is on disk has no place for one.
    #[must_use]
    pub fn pinned(self, digest: Digest) -> Self {
        match self {
            Self::Registry(reference) => Self::Registry(Reference { digest: Some(digest.to_string()), ..reference }),
            local => local,
        }
    }

    /// The image that stands beside this one under a longer tag.
    ///
    /// stargz-snapshotter puts a TOC image's suffix behind the whole reference, which gives a name only where there is a tag.
    pub(super) fn sibling(&self, suffix: &str) -> Result<Self, Error> {
        match self {
            Self::Registry(reference) => reference.tag.as_ref().map(|tag| {
                let tag = Some(format!("{tag}{suffix}"));
                Self::Registry(Reference { tag, digest: None, ..reference.clone() })
            }),
            Self::Layout { dir, tag } => Some(Self::Layout { dir: dir.clone(), tag: Some(beside(tag, suffix)) }),
            Self::Archive { file, tag } => Some(Self::Archive { file: file.clone(), tag: Some(beside(tag, suffix)) }),
            Self::DockerArchive { .. } => None,
        }
        .ok_or_else(|| Error::NoSibling { image: self.to_string(), suffix: suffix.to_owned() })
    }
}

/// A layout that names no tag was read as its `latest` or its only image, which is by custom called so.
fn beside(tag: &Option<String>, suffix: &str) -> String {
    format!("{}{suffix}", tag.as_deref().unwrap_or("latest"))
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(text, rest)?;
            return Ok(Self::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_tag(text, rest)?;
            return Ok(Self::Archive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = path_and_tag(text, rest)?;
            let name = name.map(|name| name_in_archive(text, &name)).transpose()?;
            return Ok(Self::DockerArchive { file, name });
        }
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        if let Some((transport, rest)) = rest.split_once(':') {
            let known = FOREIGN_TRANSPORTS.contains(&transport) && (rest.contains('/') || transport.contains('-'));
            if known || rest.starts_with("//") {
                return Err(Error::Transport { transport: transport.to_owned(), text: text.to_owned() });
            }
        }
        registry_reference(text, rest)
    }
}

/// Whether it names an image on disk.
pub(super) fn names_path(text: &str) -> bool {
    ["oci:", "oci-archive:", "docker-archive:"].iter().any(|transport| text.starts_with(transport))
}

fn registry_reference(text: &str, rest: &str) -> Result<ImageRef, Error> {
    let error = |reason: String| Error::Reference { text: text.to_owned(), reason };
    let reference = grammar::parse(rest).map_err(|reason| error(reason.to_owned()))?;
    let digest = reference.digest.as_deref().map(str::parse::<Digest>).transpose();
    digest.map_err(|source| error(source.to_string()))?;
    Ok(ImageRef::Registry(reference))
}

/// A name as it stands in an archive, completed; the place of an image there as it is.
fn name_in_archive(text: &str, name: &str) -> Result<String, Error> {
    let error = |reason: &str| Error::Reference { text: text.to_owned(), reason: reason.to_owned() };
    if let Some(place) = name.strip_prefix('@') {
        let place: usize = place.parse().map_err(|_| error("@ is followed by the place of an image in the archive"))?;
        return Ok(format!("@{place}"));
    }
    match registry_reference(text, name)? {
        ImageRef::Registry(reference) if reference.digest.is_none() => Ok(reference.to_string()),
        _ => Err(error("images in an archive are named by tag")),
    }
}

/// `PATH[:TAG]`: the path ends at the first colon, as skopeo has it. It is made absolute, so that the name stays true.
fn path_and_tag(text: &str, rest: &str) -> Result<(PathBuf, Option<String>), Error> {
    let error = |reason: &str| Error::Reference { text: text.to_owned(), reason: reason.to_owned() };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(error("the path is empty"));
    }
    if tag == Some("") {
        return Err(error("the tag is empty"));
    }
    let absolute = std::path::absolute(Path::new(path)).map_err(|source| error(&source.to_string()))?;
    Ok((absolute, tag.map(str::to_owned)))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { tag, .. } | Self::Archive { tag, .. } | Self::DockerArchive { name: tag, .. } => {
                f.write_str(&self.name())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn references_are_completed_and_shown_canonically() {
        let cases = [
            ("alpine", "docker.io/library/alpine:latest", "docker.io/library/alpine"),
            ("docker://alpine:3", "docker.io/library/alpine:3", "docker.io/library/alpine"),
            ("docker.io/library/alpine:3", "docker.io/library/alpine:3", "docker.io/library/alpine"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "docker.io/a/b"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x"),
            ("docker://[::1]/x:t", "[::1]/x:t", "[::1]/x"),
            ("docker-archive:/a.tar:[::1]:5/x", "docker-archive:/a.tar:[::1]:5/x:latest", "docker-archive:/a.tar"),
            ("oci:/a/b", "oci:/a/b", "oci:/a/b"),
            ("oci:/a/b:t", "oci:/a/b:t", "oci:/a/b"),
            ("oci-archive:/a/b.tar:t", "oci-archive:/a/b.tar:t", "oci-archive:/a/b.tar"),
            ("docker-archive:/a.tar", "docker-archive:/a.tar", "docker-archive:/a.tar"),
            ("docker-archive:/a.tar:x", "docker-archive:/a.tar:docker.io/library/x:latest", "docker-archive:/a.tar"),
            ("docker-archive:/a.tar:h:1/x:2", "docker-archive:/a.tar:h:1/x:2", "docker-archive:/a.tar"),
            ("docker-archive:/a.tar:@02", "docker-archive:/a.tar:@2", "docker-archive:/a.tar"),
        ];
        for (text, canonical, name) in cases {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!((image.to_string().as_str(), image.name().as_str()), (canonical, name), "{text}");
            assert_eq!(canonical.parse::<ImageRef>().unwrap(), image, "{text}");
        }
        for text in [format!("ghcr.io/a/b@{DIGEST}"), format!("ghcr.io/a/b:t@{DIGEST}")] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
        let relative: ImageRef = "oci:some/dir:t".parse().unwrap();
        assert!(matches!(relative, ImageRef::Layout { dir, .. } if dir.is_absolute() && dir.ends_with("some/dir")));
    }

    #[test]
    fn what_is_no_reference_is_refused_by_name() {
        for text in ["docker-daemon:alpine:3", "containers-storage:alpine", "dir:/x", "https://ghcr.io/a/b", "x://y"] {
            let error = text.parse::<ImageRef>().unwrap_err();
            assert!(matches!(error, Error::Transport { .. }), "{text}: {error}");
        }
        let sha512 = format!("a/b@sha512:{}", "0".repeat(128));
        let digest = format!("docker-archive:/a:b@{DIGEST}");
        for text in ["", "docker://", "Alpine", "oci:", "oci:/a:", "oci-archive:", "a b", "a@sha256:12", &sha512]
            .into_iter()
            .chain(["docker-archive:", "docker-archive:/a:", "docker-archive:/a:@x", "docker-archive:/a:B", &digest])
        {
            let error = text.parse::<ImageRef>().unwrap_err();
            assert!(matches!(error, Error::Reference { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn a_sibling_needs_a_tag() {
        let sibling = |text: &str| text.parse::<ImageRef>().unwrap().sibling("-esgztoc").map(|image| image.to_string());
        assert_eq!(sibling("alpine:3").unwrap(), "docker.io/library/alpine:3-esgztoc");
        assert_eq!(sibling(&format!("a/b:t@{DIGEST}")).unwrap(), "docker.io/a/b:t-esgztoc");
        assert_eq!(sibling("oci:/d:t").unwrap(), "oci:/d:t-esgztoc");
        assert_eq!(sibling("oci:/d").unwrap(), "oci:/d:latest-esgztoc");
        assert!(matches!(sibling("docker-archive:/a:b").unwrap_err(), Error::NoSibling { .. }));
        assert!(matches!(sibling(&format!("a/b@{DIGEST}")).unwrap_err(), Error::NoSibling { .. }));
    }
}
