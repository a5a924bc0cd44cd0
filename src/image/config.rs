//! The image's config (OCI image specification 1.1, "Image Configuration"): for what platform it is, and what it starts.

use bytes::Bytes;
use serde::Deserialize;

use super::past_caches::{once_more_blocking, read_all};
use crate::blob::{Digest, Documents};
use crate::cache::Cache;
use crate::errors::chain;
use crate::fetch::LONGEST_PATH;
use crate::registry::{self, Freshness, Platform, json};
use crate::threads::{self, Work};

/// Bytes of the largest config that is read.
const LARGEST: u64 = 4 << 20;

/// Where programs are, if the config does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// More directories in PATH than any image has.
const DIRECTORIES: usize = 64;

/// Words of a command line that are looked at: the program, and a script that it may be given.
const WORDS: usize = 4;

/// Each field of it, and of what is in it, may be missing or null.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<Execution>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Debug, Default, Deserialize)]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    #[serde(rename = "workingDir")]
    working_dir: Option<String>,
}

/// Why a config says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("cannot be had: {0}")]
    Missing(String),
    #[error("cannot be read ({0})")]
    Malformed(String),
    #[error("names {named} layers, and the manifest {layers}")]
    OtherLayers { named: usize, layers: usize },
}

impl Config {
    /// From the cache or the registry.
    ///
    /// # Errors
    /// Where it cannot be had, is not what the manifest names, or is of an image with other layers.
    pub(super) async fn read(image: &registry::Image, cache: &Cache) -> Result<Self, Unusable> {
        let bytes = Self::bytes(image, cache).await?;
        Self::parse(&bytes).map_err(|error| Unusable::Malformed(error.to_string()))?.of_layers(image.layer_count)
    }

    /// # Errors
    /// Where it is no image's config.
    pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        json::from_slice(bytes)
    }

    /// A config that names no layer at all says nothing of them.
    fn of_layers(self, layers: usize) -> Result<Self, Unusable> {
        match self.rootfs.as_ref().and_then(|rootfs| rootfs.diff_ids.as_ref()).map_or(0, Vec::len) {
            named if named == 0 || named == layers => Ok(self),
            named => Err(Unusable::OtherLayers { named, layers }),
        }
    }

    /// Its bytes as they stand in the registry.
    ///
    /// # Errors
    /// Where they cannot be had, or are not those that the manifest names.
    pub(super) async fn bytes(image: &registry::Image, cache: &Cache) -> Result<Bytes, Unusable> {
        let missing = |why: String| Unusable::Missing(why);
        let config = image.config.clone().ok_or_else(|| missing("the manifest names none".to_owned()))?;
        if config.size > LARGEST {
            return Err(missing(format!("it has {} bytes; the limit is {LARGEST}", config.size)));
        }
        let cache = cache.clone();
        let read = move || match cache.get(&config.digest) {
            Some(kept) => Ok(kept),
            None => {
                let read =
                    once_more_blocking(config.blob.places(), Result::is_err, |freshness| right(&config, freshness))?;
                cache.put(&config.digest, &read);
                Ok(read)
            }
        };
        let read = threads::run(Work::Opening, read).await;
        read.unwrap_or_else(|lost| Err(lost.to_string())).map_err(missing)
    }

    /// `None` where it does not say.
    pub(super) fn platform(&self) -> Option<Platform> {
        let said = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(Platform { os: said(&self.os)?, architecture: said(&self.architecture)?, variant: self.variant.clone() })
    }

    /// The digest of a layer's tar, by the layer's number from the lowest.
    pub(super) fn diff_id(&self, layer: usize) -> Option<Digest> {
        self.rootfs.as_ref()?.diff_ids.as_ref()?.get(layer).copied()
    }

    /// The files that are read when the image's own command starts, each as the paths that it may have, the best first.
    pub(crate) fn started(&self) -> Vec<Vec<String>> {
        let Some(execution) = &self.config else { return Vec::new() };
        let words = execution.entrypoint.iter().chain(&execution.cmd).flatten().take(WORDS);
        let dir = execution.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
        let path = execution.env.iter().flatten().find_map(|variable| variable.strip_prefix("PATH="));
        let in_path = |name: &str| {
            path.unwrap_or(DEFAULT_PATH).split(':').take(DIRECTORIES).map(|dir| format!("{dir}/{name}")).collect()
        };
        let paths = |(number, word): (usize, &String)| match word.contains('/') {
            true if word.starts_with('/') => vec![word.clone()],
            true => vec![format!("{dir}/{word}")],
            false if number == 0 => in_path(word),
            false => vec![format!("{dir}/{word}")],
        };
        words.enumerate().filter(|(_, word)| word.len() <= LONGEST_PATH).map(paths).collect()
    }
}

/// The config's bytes, where they are those that the manifest names.
fn right(config: &registry::Layer, freshness: Freshness) -> Result<Bytes, String> {
    let read = read_all(config, freshness).map_err(|error| chain(&*error))?;
    match Digest::of(&read) {
        got if got == config.digest => Ok(read),
        got => Err(format!("what came has the digest {got}, and the manifest names {}", config.digest)),
    }
}

/// For the fuzz target, which cannot see this module: where the words of its command may be.
#[cfg(fuzzing)]
#[must_use]
pub fn started_for_fuzzing(bytes: &[u8]) -> Option<Vec<Vec<String>>> {
    Some(Config::parse(bytes).ok()?.started())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(execution: &str) -> Vec<Vec<String>> {
        let config = format!(r#"{{"os": "linux", "architecture": "amd64", "config": {execution}}}"#);
        Config::parse(config.as_bytes()).unwrap().started()
    }

    #[test]
    fn the_program_is_looked_for_in_path_and_its_arguments_where_it_starts() {
        let found =
            started(r#"{"Cmd": ["python3", "app/main.py", "-v"], "Env": ["A=b", "PATH=/x:/y"], "WorkingDir": "/srv"}"#);
        assert_eq!(found, [vec!["/x/python3", "/y/python3"], vec!["/srv/app/main.py"], vec!["/srv/-v"]]);
        let found = started(r#"{"Entrypoint": ["/entry"], "Cmd": ["/bin/server"]}"#);
        assert_eq!(found, [["/entry"], ["/bin/server"]]);
        assert_eq!(started(r#"{"Cmd": ["sh"]}"#)[0].len(), 6, "the usual places");
    }

    #[test]
    fn a_config_is_read_as_go_reads_it() {
        let digest = Digest::of(b"");
        let text = format!(r#"{{"OS": "linux", "Architecture": "arm", "RootFS": {{"Diff_Ids": ["{digest}"]}}}}"#);
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform().unwrap().to_string(), "linux/arm");
        assert_eq!((config.diff_id(0), config.diff_id(1)), (Some(digest), None));
        assert_eq!(started(r#"{"cmd": ["x"], "ENTRYPOINT": ["/e"], "workingDir": "/w"}"#), [["/e"], ["/w/x"]]);
    }

    #[test]
    fn what_nobody_reads_is_not_minded() {
        let cases = [
            &br#"{"os": "linux", "config": {"Labels": {"a": "\ud800"}}}"#[..],
            b"{\"OS\": \"linux\", \"x\": 1e999, \"author\": \"\xe9\"}",
        ];
        for case in cases {
            assert_eq!(Config::parse(case).unwrap().os.as_deref(), Some("linux"));
        }
        assert_eq!(started(r#"{"Cmd": ["/x"], "Env": [null, "A=B"]}"#), [["/x"]]);
        let broken = Config::parse(br#"{"config": {"Env": "PATH=/"}}"#).unwrap_err().to_string();
        assert!(broken.starts_with("env: invalid type: string"), "{broken}");
    }

    #[test]
    fn its_layers_are_those_of_the_manifest() {
        let config = |digests: &[Digest]| {
            let digests: Vec<_> = digests.iter().map(|digest| format!("\"{digest}\"")).collect();
            Config::parse(format!(r#"{{"rootfs": {{"diff_ids": [{}]}}}}"#, digests.join(",")).as_bytes()).unwrap()
        };
        let digest = Digest::of(b"");
        assert!(config(&[digest]).of_layers(1).is_ok() && config(&[]).of_layers(2).is_ok());
        for layers in [0, 1, 3] {
            assert_eq!(config(&[digest; 2]).of_layers(layers).unwrap_err(), Unusable::OtherLayers { named: 2, layers });
        }
    }

    #[test]
    fn what_no_command_has_is_not_multiplied() {
        let (long, many) = ("a".repeat(LONGEST_PATH + 1), ":".repeat(1_000_000));
        let found = started(&format!(r#"{{"Cmd": ["sh", "{long}"], "Env": ["PATH={many}"]}}"#));
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [DIRECTORIES]);
        let words = vec![r#""w""#; 100_000].join(",");
        assert_eq!(started(&format!(r#"{{"Cmd": [{words}]}}"#)).len(), WORDS);
    }

    #[test]
    fn whatever_may_be_missing_is() {
        for nothing in ["null", "{}", r#"{"Cmd": null, "Entrypoint": []}"#] {
            assert!(started(nothing).is_empty(), "{nothing}");
        }
        let scratch = Config::parse(br#"{"os": null, "architecture": "amd64", "rootfs": {"diff_ids": null}}"#).unwrap();
        assert_eq!((scratch.platform(), scratch.diff_id(0)), (None, None));
        assert!(scratch.started().is_empty());
    }
}
