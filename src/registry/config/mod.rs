//! What this machine says of how registries are reached: podman's registries.conf, containerd's hosts.toml, and who is trusted where.
//!
//! ```text
//! Places -> registries (registries.conf, .d) -> aliases, search ----> candidates of a short name
//!              |- certs (certs.d) ---------------------------------> endpoints of a reference, in the order in which they are asked
//!              |  hosts_toml (--hosts-dir), instead of both ------'
//!           policy (policy.json) -----------------------------------> whether an image may be had at all
//! ```
//!
//! Nothing here asks a registry. All that is public reads files, and so may block.

mod aliases;
mod certs;
mod duration;
mod endpoint;
mod error;
mod hosts_file;
mod hosts_toml;
mod places;
mod policy;
mod prefix;
mod read;
mod registries;
#[cfg(test)]
mod tests;

pub(super) use endpoint::{Certificates, Endpoint, Scheme};
pub use error::Error as ConfigError;
pub use places::{Places, Surroundings};
pub(super) use policy::permits;

use self::aliases::Aliases;
use self::error::Error;
use self::registries::{Mode, Registries};
use super::grammar::{self, Reference};

/// What the files said when they were read, but for hosts.toml and certs.d: these are read for each reference.
#[derive(Debug)]
pub(super) struct Configuration {
    places: Places,
    registries: Registries,
}

/// What the files say all together, for whoever only wants to know whether they can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Registries for which something is said.
    pub registries: usize,
    pub mirrors: usize,
    /// Each file that cannot be read or understood, the first fault of each kind of file.
    pub errors: Vec<Error>,
    /// What policy.json says of images that it does not name, where that lets nothing through.
    pub refusal: Option<Error>,
}

/// Reads all files, whatever reference they are for.
#[must_use]
pub fn survey(places: &Places) -> Survey {
    let mut all = Survey::default();
    match Registries::read(places) {
        Ok(registries) => (all.registries, all.mirrors) = registries.counts(),
        Err(error) => all.errors.push(error),
    }
    all.errors.extend(Aliases::read(places).err());
    all.errors.extend(places.hosts_dir.iter().flat_map(|dir| hosts_toml::errors(dir)));
    match policy::permits(places, &unnamed()) {
        Ok(()) => {}
        Err(refusal @ (Error::Rejected { .. } | Error::SignatureWanted { .. })) => all.refusal = Some(refusal),
        Err(error) => all.errors.push(error),
    }
    all
}

/// An image that no policy names.
fn unnamed() -> super::ImageRef {
    let (registry, repository) = ("registry.invalid".to_owned(), "image".to_owned());
    super::ImageRef::Registry(Reference { registry, repository, tag: None, digest: None })
}

/// The images that a short name may mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Candidates {
    /// There is no choice: by an alias, or since nobody has said anything.
    One(Reference),
    /// In the order in which they are tried: the first that is there is meant.
    Several(Vec<Reference>),
}

impl Configuration {
    /// # Errors
    /// Where a file cannot be read or understood.
    pub(super) fn read(places: &Places) -> Result<Self, Error> {
        let places = places.clone();
        if places.hosts_dir.is_some() {
            return Ok(Self { places, registries: Registries::default() });
        }
        let registries = Registries::read(&places)?;
        Ok(Self { places, registries })
    }

    /// Where a reference may be asked for, in this order. There is at least one place.
    ///
    /// # Errors
    /// Where the registry is blocked, or a file cannot be read or understood.
    pub(super) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        match &self.places.hosts_dir {
            Some(dir) => hosts_toml::endpoints(dir, &self.places, reference),
            None => self.registries.endpoints(&self.places, reference),
        }
    }

    /// The images that a name without a registry may mean.
    ///
    /// # Errors
    /// Where it is ambiguous, and that is not allowed.
    pub(super) fn candidates(&self, short: &str) -> Result<Candidates, Error> {
        let (name, rest) = split(short);
        // podman writes it, and reads it for short names alone.
        let written = if self.places.hosts_dir.is_none() { Aliases::read(&self.places)? } else { Aliases::default() };
        let alias = written.find(name).unwrap_or_else(|| self.registries.aliases.find(name).flatten());
        if let Some(target) = alias {
            return Ok(Candidates::One(self.complete(&format!("{target}{rest}"))?));
        }
        let search = self.registries.search.iter().map(|registry| self.complete(&format!("{registry}/{short}")));
        let mut found = search.collect::<Result<Vec<_>, Error>>()?;
        match (found.len(), self.registries.mode) {
            (0, _) => Ok(Candidates::One(self.complete(short)?)),
            (1, _) => Ok(Candidates::One(found.remove(0))),
            (_, Mode::Enforcing) => Err(Error::Ambiguous {
                name: short.to_owned(),
                candidates: found.iter().map(ToString::to_string).collect(),
                path: self.registries.mode_origin.clone(),
            }),
            (_, Mode::Permissive | Mode::Disabled) => Ok(Candidates::Several(found)),
        }
    }

    fn complete(&self, text: &str) -> Result<Reference, Error> {
        grammar::parse(text).map_err(|reason| Error::Name { name: text.to_owned(), reason: reason.to_owned() })
    }
}

/// What the files say, for the fuzz targets: a name as registries.conf rewrites it, and the paths of the APIs that hosts.toml has.
#[cfg(fuzzing)]
pub(super) fn read_for_fuzzing(text: &str, reference: &Reference) -> (Vec<Endpoint>, Vec<String>, bool) {
    let path = std::path::Path::new("/fuzzed");
    let registries = Registries::of(path, text).and_then(|all| all.endpoints(&Places::default(), reference));
    let hosts = hosts_file::parse(path, text).unwrap_or_default();
    let paths = hosts.into_iter().filter_map(|host| Some(host.url?.api)).collect();
    let is_permitted = policy::permits_by(path, text, &super::ImageRef::Registry(reference.clone())).is_ok();
    (registries.unwrap_or_default(), paths, is_permitted)
}

/// A short name, and its tag and digest as they stand behind it.
fn split(short: &str) -> (&str, &str) {
    let end = short.find([':', '@']).unwrap_or(short.len());
    short.split_at_checked(end).unwrap_or((short, ""))
}
