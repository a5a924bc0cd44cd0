//! What short names stand for: `[aliases]` of registries.conf, and short-name-aliases.conf, which podman writes.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::grammar;
use super::error::Error;
use super::places::Places;
use super::read;
use crate::toml_file::{File, Table, Value};

/// Names of images by their short names; `None` takes an alias away that another file gives.
#[derive(Debug, Default, Clone)]
pub(super) struct Aliases(BTreeMap<String, Option<String>>);

impl Aliases {
    /// Those of short-name-aliases.conf, which win over all others.
    pub(super) fn read(places: &Places) -> Result<Self, Error> {
        let Some(path) = &places.aliases else { return Ok(Self::default()) };
        match read::file(path)? {
            Some(text) => Self::parse(path, &text),
            None => Ok(Self::default()),
        }
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let file = File { path, text };
        let parsed = file.parse()?;
        Self::of(&Table::root(file, &parsed))
    }

    /// The table `aliases` of a file.
    pub(super) fn of(root: &Table<'_>) -> Result<Self, Error> {
        let Some(table) = root.table("aliases")? else { return Ok(Self::default()) };
        let alias = |(name, value): (&str, Value<'_>)| Ok((name.to_owned(), target(name, value)?));
        Ok(Self(table.entries().into_iter().map(alias).collect::<Result<_, Error>>()?))
    }

    pub(super) fn update(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What a name stands for. One that was taken away here stands for nothing, whatever other files say.
    pub(super) fn find(&self, name: &str) -> Option<Option<&str>> {
        self.0.get(name).map(Option::as_deref)
    }
}

fn target(name: &str, value: Value<'_>) -> Result<Option<String>, Error> {
    if !is_plain(name) || grammar::with_host(name).is_some() {
        return Err(value.refuse("an alias is a name without registry, tag and digest"));
    }
    match value.text()? {
        "" => Ok(None),
        target if is_plain(target) && grammar::with_host(target).is_some() => Ok(Some(target.to_owned())),
        _ => Err(value.refuse("an alias stands for a name with its registry, and without tag and digest")),
    }
}

/// Whether a name is by the grammar, with no tag or digest.
fn is_plain(name: &str) -> bool {
    let after_host = name.split_once('/').map_or(name, |(_, rest)| rest);
    !after_host.contains([':', '@']) && !name.contains('@') && grammar::parse(name).is_ok()
}
