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
mod table;
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

/// The images that a short name may mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Candidates {
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

/// A short name, and its tag and digest as they stand behind it.
fn split(short: &str) -> (&str, &str) {
    let end = short.find([':', '@']).unwrap_or(short.len());
    short.split_at_checked(end).unwrap_or((short, ""))
}

/// The name in what somebody typed, where it is short: it leaves its registry open. With `docker://` before it, it does not.
#[must_use]
pub fn short_name(text: &str) -> Option<&str> {
    let names_transport = text.contains("://") || super::reference::names_path(text);
    let names_host = text.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    (!names_transport && !names_host).then_some(text)
}
