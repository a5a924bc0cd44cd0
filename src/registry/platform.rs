//! Platforms by Go's names, and which manifest of an image index fits one (OCI image specification 1.1, "Image Index").

use std::fmt;
use std::str::FromStr;

use super::Error;
use super::manifest::Descriptor;

/// `--platform os/arch[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's, by the names that Go and so image indexes use.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The variant with the architecture's default filled in, so that `arm64` and `arm64/v8` are one.
    fn effective_variant(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None | Some("")) => "v8",
            ("arm", None | Some("")) => "v7",
            ("amd64", None | Some("")) => "v1",
            (_, variant) => variant.unwrap_or(""),
        }
    }

    /// How well a manifest for `offered` runs here: 0 is exact, more is worse, `None` is not at all.
    ///
    /// An older variant of arm and amd64 runs on a newer one (as containerd has it); all else must be equal.
    fn distance(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let (here, there) = (self.effective_variant(), offered.effective_variant());
        if here == there {
            return Some(0);
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|level| level.parse::<u32>().ok());
        match self.architecture.as_str() {
            "arm" | "amd64" => level(here).zip(level(there)).and_then(|(here, there)| here.checked_sub(there)),
            _ => None,
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Platform { text: text.to_owned() };
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let os = next().ok_or_else(error)?;
        let architecture = next().ok_or_else(error)?;
        let variant = next();
        if parts.next().is_some() || text.ends_with('/') {
            return Err(error());
        }
        let (architecture, implied) = match architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7".to_owned())),
            "armel" => ("arm".to_owned(), Some("v6".to_owned())),
            "i386" | "x86" => ("386".to_owned(), None),
            _ => (architecture, None),
        };
        Ok(Self { os, architecture, variant: variant.or(implied) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().filter(|variant| !variant.is_empty()).try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// What an index has for a platform.
pub(super) struct Offer<'a> {
    /// The entries that may hold an image for it, the best first. One without a platform (a nested index, or an index of one
    /// image) may hold any, and comes after all that name theirs.
    pub(super) fitting: Vec<&'a Descriptor>,
    /// All platforms that are named.
    pub(super) available: Vec<String>,
}

/// Looks through the entries of an index that may be images.
pub(super) fn offer<'a>(wanted: &Platform, entries: &'a [Descriptor]) -> Offer<'a> {
    let (mut fitting, mut available) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| entry.may_be_image()) {
        match &entry.platform {
            Some(offered) => {
                fitting.extend(wanted.distance(offered).map(|distance| (distance, entry)));
                available.push(offered.to_string());
            }
            None => fitting.push((u32::MAX, entry)),
        }
    }
    fitting.sort_by_key(|(distance, _)| *distance);
    Offer { fitting: fitting.into_iter().map(|(_, entry)| entry).collect(), available }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &str, offered: &[&str]) -> Option<usize> {
        let entries: Vec<Descriptor> = offered
            .iter()
            .enumerate()
            .map(|(index, platform)| {
                let parts: Vec<_> = platform.split('/').collect();
                let mut json = serde_json::json!({"mediaType": "m", "digest": "d", "size": index});
                if parts.len() > 1 {
                    json["platform"] = serde_json::json!({"os": parts[0], "architecture": parts[1]});
                }
                if let Some(variant) = parts.get(2) {
                    json["platform"]["variant"] = (*variant).into();
                }
                serde_json::from_value(json).unwrap()
            })
            .collect();
        let wanted = wanted.parse().unwrap();
        offer(&wanted, &entries).fitting.first().map(|best| usize::try_from(best.size).unwrap())
    }

    #[test]
    fn platforms_are_written_as_docker_writes_them() {
        for text in ["linux/amd64", "linux/arm64/v8", "windows/386"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        assert_eq!("linux/aarch64".parse::<Platform>().unwrap().to_string(), "linux/arm64");
        for text in ["", "linux", "linux/", "linux/arm/v7/x", "/amd64", "linux/amd64/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_exact_variant_is_best_and_a_newer_one_never_fits() {
        let arms = ["unknown/unknown", "linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm64"];
        assert_eq!(chosen("linux/arm/v6", &arms), Some(3));
        assert_eq!(chosen("linux/arm", &arms), Some(2));
        assert_eq!(chosen("linux/arm64/v8", &arms), Some(4));
        assert_eq!(chosen("linux/arm64", &["linux/arm64/v8"]), Some(0));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some(1));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/s390x"]), None);
        assert_eq!(chosen("linux/amd64", &["none", "linux/amd64"]), Some(1));
    }
}
