//! registries.conf, version 2 (containers-registries.conf(5); package sysregistriesv2 of containers/image 5.36).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::grammar::{self, Reference};
use super::aliases::Aliases;
use super::certs;
use super::endpoint::Endpoint;
use super::error::Error;
use super::places::Places;
use super::prefix::covered;
use super::read;
use crate::toml_file::{self, File, Table, Value};

/// What a short name may become where several registries may have it (`short-name-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    Enforcing,
    #[default]
    Permissive,
    Disabled,
}

/// Which references a mirror is for (`pull-from-mirror`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulls {
    All,
    ByDigest,
    ByTag,
}

#[derive(Debug, Clone)]
struct Mirror {
    location: String,
    insecure: bool,
    pulls: Pulls,
}

/// A table `[[registry]]`.
#[derive(Debug, Clone)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
    path: PathBuf,
    line: usize,
}

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Registries {
    /// By prefix.
    registries: BTreeMap<String, Registry>,
    /// `unqualified-search-registries`
    pub(super) search: Vec<String>,
    pub(super) mode: Mode,
    /// The file that said so.
    pub(super) mode_origin: PathBuf,
    pub(super) aliases: Aliases,
}

/// One file. What it does not say is `None`, and stays as it was.
#[derive(Debug)]
struct Parsed {
    registries: Vec<Registry>,
    search: Option<Vec<String>>,
    mode: Option<Mode>,
    aliases: Aliases,
}

impl Registries {
    /// The main file, and those in the directories beside it, which are added to it in the order of their names.
    pub(super) fn read(places: &Places) -> Result<Self, Error> {
        let (main, dirs) = files(places)?;
        let mut all = Self::default();
        if let Some(path) = main {
            match read::file(&path)? {
                Some(text) => all.update(&path, parse(&path, &text)?),
                None if places.registries_conf.is_some() => {
                    let reason = "CONTAINERS_REGISTRIES_CONF names it, and it is not there";
                    return Err(read::unreadable(&path, reason.to_owned()));
                }
                None => {}
            }
        }
        for dir in dirs {
            for path in read::dir(&dir)?.unwrap_or_default() {
                if !path.as_os_str().as_encoded_bytes().ends_with(b".conf") || read::is_dir(&path) {
                    continue;
                }
                // It may have gone meanwhile.
                let Some(text) = read::file(&path)? else { continue };
                all.update(&path, parse(&path, &text)?);
            }
        }
        Ok(all)
    }

    /// How many there are, and how many mirrors they have.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.registries.len(), self.registries.values().map(|registry| registry.mirrors.len()).sum())
    }

    /// Those of one file.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(path: &Path, text: &str) -> Result<Self, Error> {
        let mut all = Self::default();
        all.update(path, parse(path, text)?);
        Ok(all)
    }

    /// A registry with the same prefix, the search list and the mode are replaced as a whole; aliases one by one.
    fn update(&mut self, path: &Path, new: Parsed) {
        self.registries.extend(new.registries.into_iter().map(|registry| (registry.prefix.clone(), registry)));
        self.search = new.search.unwrap_or_else(|| std::mem::take(&mut self.search));
        if let Some(mode) = new.mode {
            (self.mode, self.mode_origin) = (mode, path.to_owned());
        }
        self.aliases.update(new.aliases);
    }

    /// The registry whose prefix covers most of a name.
    fn find(&self, name: &str) -> Option<&Registry> {
        let covering = self.registries.values().filter(|registry| covered(name, &registry.prefix).is_some());
        // Of two that are as long, the first by name: podman's order.
        covering.rev().max_by_key(|registry| registry.prefix.len())
    }

    pub(super) fn endpoints(&self, places: &Places, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let name = format!("{}/{}", reference.registry, reference.repository);
        let Some(registry) = self.find(&name) else {
            return Ok(vec![endpoint(places, &reference.registry, &reference.repository, false, false)?]);
        };
        let is_wanted = |mirror: &&Mirror| match mirror.pulls {
            Pulls::All => true,
            Pulls::ByDigest => reference.digest.is_some(),
            // The tag of an image that is open is pinned by its digest. Its mirrors stay.
            Pulls::ByTag => reference.digest.is_none() || reference.tag.is_some(),
        };
        let mirrors = registry.mirrors.iter().filter(is_wanted).map(|mirror| (&mirror.location, mirror.insecure, true));
        let mut endpoints = Vec::new();
        let mut blocked = None;
        for (location, insecure, is_mirror) in mirrors.chain([(&registry.location, registry.insecure, false)]) {
            let place = registry.rewritten(&name, location)?;
            match self.block(&place).or_else(|| (!is_mirror && registry.blocked).then_some(registry)) {
                Some(by) => blocked = Some(by),
                None => endpoints.push(endpoint(places, &place.registry, &place.repository, insecure, is_mirror)?),
            }
        }
        match blocked {
            Some(by) if endpoints.is_empty() => Err(by.blocks(&name)),
            _ => Ok(endpoints),
        }
    }

    /// The registry that forbids a place: podman looks there by the name that the place has, not by the one that was asked for.
    fn block(&self, place: &Reference) -> Option<&Registry> {
        self.find(&format!("{}/{}", place.registry, place.repository)).filter(|registry| registry.blocked)
    }
}

/// The main file, and the directories beside it.
fn files(places: &Places) -> Result<(Option<PathBuf>, Vec<PathBuf>), Error> {
    let user = places.user.as_ref().map(|dir| (dir.join("registries.conf"), dir.join("registries.conf.d")));
    let system = places.system.as_ref().map(|dir| (dir.join("registries.conf"), dir.join("registries.conf.d")));
    let dirs = |first: &Option<(PathBuf, PathBuf)>| first.iter().chain(&user).map(|(_, dir)| dir.clone()).collect();
    Ok(match (&places.registries_conf, &user) {
        (Some(named), _) => (Some(named.clone()), dirs(&system)),
        // A user's file takes the place of all that the machine has.
        (None, Some((file, dir))) if read::exists(file)? => (Some(file.clone()), vec![dir.clone()]),
        _ => (system.as_ref().map(|(file, _)| file.clone()), dirs(&system)),
    })
}

fn endpoint(
    places: &Places,
    registry: &str,
    repository: &str,
    insecure: bool,
    is_mirror: bool,
) -> Result<Endpoint, Error> {
    let certificates = certs::of(places, registry)?;
    let (scheme, verify) = certs::scheme(places, insecure, !certificates.is_empty());
    Ok(Endpoint {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        api: "/v2".to_owned(),
        scheme,
        verify,
        certificates,
        headers: Vec::new(),
        namespace: None,
        dial_timeout: None,
        resolves: true,
        is_mirror,
    })
}

impl Registry {
    /// The name with its prefix replaced by a location. An empty one, which only a wildcard may have, replaces nothing.
    fn rewritten(&self, name: &str, location: &str) -> Result<Reference, Error> {
        let end = covered(name, &self.prefix).filter(|_| !location.is_empty()).unwrap_or(0);
        let rewritten = format!("{location}{}", name.get(end..).unwrap_or_default());
        let parsed = grammar::parse(&rewritten).ok();
        let whole = parsed.filter(|place| format!("{}/{}", place.registry, place.repository) == rewritten);
        let reason = || {
            format!(
                "makes {rewritten:?} of {name:?}, which is no whole name of a repository: write it with the host's dot or port, and \
                 docker.io/library with its library"
            )
        };
        let key = || format!("registry {:?}: location {location:?}", self.prefix);
        let refused =
            || toml_file::Error::Invalid { path: self.path.clone(), line: self.line, key: key(), reason: reason() };
        Ok(whole.ok_or_else(refused)?)
    }

    fn blocks(&self, name: &str) -> Error {
        let (prefix, path) = (self.prefix.clone(), self.path.clone());
        Error::Blocked { name: name.to_owned(), prefix, path, line: self.line }
    }
}

fn parse(path: &Path, text: &str) -> Result<Parsed, Error> {
    let file = File { path, text };
    let parsed = file.parse()?;
    let root = Table::root(file, &parsed);
    refuse_version_1(&root)?;
    let tables = root.tables("registry")?;
    let placed = tables.iter().zip(file.lines(&tables));
    let registries = placed.map(|(table, line)| registry((path, line), table)).collect::<Result<Vec<_>, _>>()?;
    Ok(Parsed {
        registries: distinct(registries)?,
        search: root.get("unqualified-search-registries").map(search).transpose()?,
        mode: root.get("short-name-mode").map(mode).transpose()?.flatten(),
        aliases: Aliases::of(&root)?,
    })
}

/// `[registries.search]`, `[registries.insecure]` and `[registries.block]`, where they name any.
fn refuse_version_1(root: &Table<'_>) -> Result<(), Error> {
    let Some(old) = root.get("registries") else { return Ok(()) };
    for kind in ["search", "insecure", "block"] {
        let list = old.table()?.table(kind)?.and_then(|table| table.get("registries"));
        if list.is_some_and(|list| list.items().is_ok_and(|items| !items.is_empty())) {
            return Err(old.refuse(format!(
                "[registries.{kind}] is of version 1 of the format, which crfs does not read: write unqualified-search-registries = [...], or \
                 [[registry]] tables with location and insecure or blocked"
            )));
        }
    }
    Ok(())
}

fn registry((path, line): (&Path, usize), table: &Table<'_>) -> Result<Registry, Error> {
    let location = location(table, "location")?;
    let prefix = Some(self::location(table, "prefix")?).filter(|prefix| !prefix.is_empty());
    let prefix = prefix.unwrap_or_else(|| location.clone());
    if prefix.is_empty() {
        return Err(table.refuse("location", "a registry needs a location, or a prefix like *.example.com"));
    }
    let is_wildcard = prefix.starts_with("*.");
    if is_wildcard && prefix.contains(['/', '@', ':']) {
        return Err(table.refuse("prefix", "a wildcard is written *.example.com, without port and path"));
    }
    if location.is_empty() && !is_wildcard {
        return Err(
            table.refuse("location", "only a prefix like *.example.com needs none: give the place of the registry")
        );
    }
    if table.text("pull-from-mirror")?.is_some_and(|text| !text.is_empty()) {
        return Err(table.refuse("pull-from-mirror", "belongs into [[registry.mirror]]"));
    }
    let by_digest = table.flag("mirror-by-digest-only")?;
    let mirrors = table.tables("mirror")?.iter().map(|table| mirror(table, by_digest)).collect::<Result<_, _>>()?;
    let (insecure, blocked) = (table.flag("insecure")?, table.flag("blocked")?);
    Ok(Registry { prefix, location, insecure, blocked, mirrors, path: path.to_owned(), line })
}

fn mirror(table: &Table<'_>, by_digest: bool) -> Result<Mirror, Error> {
    let location = location(table, "location")?;
    if location.is_empty() {
        return Err(table.refuse("location", "a mirror needs one"));
    }
    let pulls = match table.text("pull-from-mirror")?.unwrap_or_default() {
        "" if by_digest => Pulls::ByDigest,
        "" => Pulls::All,
        _ if by_digest => {
            return Err(
                table.refuse("pull-from-mirror", "cannot be set beside mirror-by-digest-only: remove one of them")
            );
        }
        "all" => Pulls::All,
        "digest-only" => Pulls::ByDigest,
        "tag-only" => Pulls::ByTag,
        _ => return Err(table.refuse("pull-from-mirror", "is all, digest-only or tag-only")),
    };
    Ok(Mirror { location, insecure: table.flag("insecure")?, pulls })
}

fn location(table: &Table<'_>, key: &'static str) -> Result<String, Error> {
    let text = table.text(key)?.unwrap_or_default().trim_end_matches('/');
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(
            table.refuse(key, "is HOST[:PORT][/PATH], without http:// or https://; insecure = true allows http")
        );
    }
    Ok(text.to_owned())
}

fn search(value: Value<'_>) -> Result<Vec<String>, Error> {
    let host = |item: Value<'_>| {
        let host = item.text()?.trim_end_matches('/');
        let is_host = !host.contains('/') && grammar::is_host(host);
        if is_host { Ok(host.to_owned()) } else { Err(item.refuse("each entry is HOST[:PORT]")) }
    };
    value.items()?.into_iter().map(host).collect()
}

/// An empty one says nothing.
fn mode(value: Value<'_>) -> Result<Option<Mode>, Error> {
    match value.text()? {
        "" => Ok(None),
        "enforcing" => Ok(Some(Mode::Enforcing)),
        "permissive" => Ok(Some(Mode::Permissive)),
        "disabled" => Ok(Some(Mode::Disabled)),
        _ => Err(value.refuse("is enforcing, permissive or disabled")),
    }
}

/// Of those with the same prefix the first counts. Tables of one location may not contradict each other.
fn distinct(registries: Vec<Registry>) -> Result<Vec<Registry>, Error> {
    let mut by_place: BTreeMap<String, Registry> = BTreeMap::new();
    let mut by_prefix: BTreeMap<String, Registry> = BTreeMap::new();
    for registry in registries {
        let place = if registry.location.is_empty() { &registry.prefix } else { &registry.location };
        let first = by_place.entry(place.clone()).or_insert_with(|| registry.clone());
        for (key, differs) in
            [("insecure", first.insecure != registry.insecure), ("blocked", first.blocked != registry.blocked)]
        {
            if differs {
                let reason = format!("contradicts line {} for the same location: say the same in both", first.line);
                let (path, key) = (registry.path, key.to_owned());
                return Err(toml_file::Error::Invalid { path, line: registry.line, key, reason }.into());
            }
        }
        by_prefix.entry(registry.prefix.clone()).or_insert(registry);
    }
    Ok(by_prefix.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("/r.conf"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_file_the_line_and_the_key() {
        let registry = "\n[[registry]]\nlocation = \"a.io\"\n";
        let cases = [
            ("[[registry]]\nlocation = \"https://a.io\"", 2, "location", "without http://"),
            ("[[registry]]\nprefix = \"a.io\"", 1, "location", "give the place"),
            ("[[registry]]", 1, "location", "needs a location"),
            ("[[registry]]\nprefix = \"*.a.io:5\"\nlocation = \"b.io\"", 2, "prefix", "without port and path"),
            (&format!("{registry}insecure = \"yes\""), 4, "insecure", "true or false"),
            (&format!("{registry}pull-from-mirror = \"all\""), 4, "pull-from-mirror", "[[registry.mirror]]"),
            (&format!("{registry}[[registry.mirror]]\ninsecure = true"), 4, "location", "a mirror needs one"),
            (
                &format!("{registry}[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"never\""),
                6,
                "pull-from-mirror",
                "tag-only",
            ),
            (
                &format!(
                    "{registry}mirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"all\""
                ),
                7,
                "pull-from-mirror",
                "remove one",
            ),
            (&format!("{registry}{registry}blocked = true"), 5, "blocked", "line 2"),
            ("short-name-mode = \"strict\"", 1, "short-name-mode", "enforcing, permissive or disabled"),
            ("unqualified-search-registries = [\n\"a.io/x\"]", 2, "unqualified-search-registries", "HOST[:PORT]"),
            ("[aliases]\n\"a:1\" = \"b.io/a\"", 2, "a:1", "without registry, tag and digest"),
            ("[aliases]\n\"a\" = \"b/a\"", 2, "a", "with its registry"),
            ("[registries.search]\nregistries = [\"a.io\"]", 1, "registries", "version 1"),
        ];
        for (text, line, key, reason) in cases {
            let error = error(text);
            let start = format!("/r.conf, line {line}: {key}: ");
            assert!(error.starts_with(&start) && error.contains(reason), "{text}: {error}");
        }
        let error = error("a = 1\nb = =");
        assert!(error.starts_with("/r.conf, line 2: not TOML: ") && error.contains("correct the file"), "{error}");
    }

    #[test]
    fn certificates_and_tls_verify_count_for_every_endpoint() {
        let text = "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\ninsecure = true\n";
        let all = Registries::of(Path::new("/r.conf"), text).unwrap();
        let reference = grammar::parse("a.io/x").unwrap();
        let schemes = |places: &Places| {
            let endpoints = all.endpoints(places, &reference).unwrap();
            endpoints.iter().map(|endpoint| (endpoint.scheme, endpoint.verify)).collect::<Vec<_>>()
        };
        use super::super::endpoint::Scheme::{Either, Https, Usual};
        let with = |tls_verify| Places { tls_verify, ..Places::default() };
        assert_eq!(schemes(&with(None)), [(Either, false), (Usual, true)]);
        assert_eq!(schemes(&with(Some(true))), [(Https, true), (Https, true)]);
        assert_eq!(schemes(&with(Some(false))), [(Either, false), (Either, false)]);
        let cert_dir = Places { cert_dir: Some("/c".into()), ..Places::default() };
        assert_eq!(schemes(&cert_dir), [(Either, false), (Https, true)]);
    }

    #[test]
    fn a_location_that_makes_no_whole_name_is_told_with_both_names() {
        let text = "[[registry]]\nprefix = \"a.io\"\nlocation = \"docker.io\"\n";
        let all = Registries::of(Path::new("/r.conf"), text).unwrap();
        let error = all.endpoints(&Places::default(), &grammar::parse("a.io/x").unwrap()).unwrap_err().to_string();
        assert!(error.contains("makes \"docker.io/x\" of \"a.io/x\"") && error.contains("line 1"), "{error}");
    }
}
