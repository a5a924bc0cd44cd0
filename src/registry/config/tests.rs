//! tests/data/registry-configurations.json: what podman and containerd asked which hosts for, and what crfs would.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::*;
use crate::registry::{ImageRef, short_name};

/// Where crfs differs, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("mirrors: a slash at the end of the location of a mirror", "goes, as podman 5.6 has it"),
    ("pull-from-mirror: tag-only, tag and digest", "so is an image pinned that was had by its tag: its mirrors stay"),
    ("form: version 1, search", "version 1 is refused"),
    ("form: version 1, insecure", "version 1 is refused"),
    ("form: version 1, block", "version 1 is refused"),
    ("form: version 1, block another", "version 1 is refused"),
    ("rewriting: location is an IPv6 address", "podman knows no IPv6 addresses"),
    ("plain: IPv6", "podman knows no IPv6 addresses"),
    ("plain: IPv6 and a port", "podman knows no IPv6 addresses"),
    ("form: version 1, empty, and version 2", "podman 4.3.1 has it so, and no harm is done"),
    ("name: sha512", "crfs verifies by sha256 alone"),
    ("mirrors: the first answers garbage", "podman stays with it; crfs asks the next"),
    ("hosts: no directory, no tag", "containerd's library completes no names"),
    ("hosts: no directory, library left out", "containerd's library completes no names"),
    ("hosts: no directory, index.docker.io", "containerd's library completes no names"),
    ("directory: docker.io does not count for index.docker.io", "containerd's library completes no names"),
    ("server: docker.io is not registry-1.docker.io", "there is no registry at docker.io"),
    ("server: without a scheme, a name that begins with http", "containerd takes it for a path"),
    ("server: without a scheme, a name that begins with http, and a port", "containerd takes it for a path"),
    ("hosts: without a scheme, a name that begins with http", "containerd takes it for a path"),
    ("hosts: another scheme", "containerd takes it for a host, and crfs says what is wrong"),
    (
        "client: a pair without its key",
        "containerd takes the directory for the key; its documents say that the certificate has it",
    ),
    ("certs.d: a certificate without its key", "is said when certificates are read"),
    ("certs.d: a key without its certificate", "is no use, and no harm"),
    ("ca: missing", "is said when certificates are read"),
    ("ca: not a certificate", "is said when certificates are read"),
    ("ca: an empty string", "is said when certificates are read"),
    ("client: a pair that is not in a list is two files", "is said when certificates are read"),
    ("client: missing", "is said when certificates are read"),
    ("certificates: a client's without a key", "is said when certificates are read"),
    ("certificates: an authority that is none", "is said when certificates are read"),
];

#[derive(Deserialize)]
struct Table {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    tool: String,
    files: BTreeMap<String, String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    user: Option<u32>,
    hosts: BTreeMap<String, String>,
    image: String,
    asked: Vec<Asked>,
    #[serde(default)]
    pinged: Vec<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    url: String,
}

/// What is asked for, and by which scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    host: String,
    url: String,
    endpoint: Endpoint,
}

fn table() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/registry-configurations.json");
    let table: Table = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    table.cases
}

impl Case {
    fn is_containerd(&self) -> bool {
        self.tool.starts_with("containerd")
    }

    fn places(&self, root: &Path) -> Places {
        for (name, text) in &self.files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        if self.is_containerd() {
            return Places { hosts_dir: Some(root.join("hosts")), ..Places::default() };
        }
        let set = |name: &str| self.env.get(name).filter(|value| !value.is_empty()).map(Path::new);
        let surroundings = Surroundings {
            registries_conf: set("CONTAINERS_REGISTRIES_CONF").or_else(|| set("REGISTRIES_CONFIG_PATH")),
            home: Some(Path::new("/home")),
            cache_home: set("XDG_CACHE_HOME"),
            is_root: self.user.is_none(),
        };
        Places::of(&surroundings).below(root)
    }

    /// All that crfs would ask for where nobody has it.
    fn plan(&self, places: &Places) -> Result<Vec<Ask>, crate::registry::Error> {
        let image: ImageRef = self.image.parse()?;
        let configuration = Configuration::read(places)?;
        let candidates = match (short_name(&self.image), image) {
            (Some(short), _) => match configuration.candidates(short)? {
                Candidates::One(only) => vec![only],
                Candidates::Several(candidates) => candidates,
            },
            (None, ImageRef::Registry(reference)) => vec![reference],
            (None, other) => panic!("{other}"),
        };
        let mut plan = Vec::new();
        let mut failed = None;
        for candidate in candidates {
            permits(places, &ImageRef::Registry(candidate.clone()))?;
            match configuration.endpoints(&candidate) {
                Ok(endpoints) => {
                    let asked =
                        endpoints.into_iter().filter(|endpoint| endpoint.resolves || candidate.digest.is_some());
                    plan.extend(asked.map(|endpoint| ask(&endpoint, &candidate)));
                }
                Err(error) => failed = Some(error),
            }
        }
        if plan.is_empty() { Err(failed.unwrap().into()) } else { Ok(plan) }
    }

    /// The manifests that were asked for by the name that was given. What they name in their turn is none.
    fn manifests(&self) -> Vec<&str> {
        let ImageRef::Registry(Reference { tag, digest, .. }) = self.image.parse().unwrap() else {
            panic!("no registry")
        };
        let name = format!("/manifests/{}", digest.or(tag).unwrap());
        let urls = self.asked.iter().map(|asked| asked.url.as_str());
        urls.filter(|url| url.split('?').next().unwrap().ends_with(&name)).collect()
    }

    fn check(&self, plan: &[Ask]) -> Result<(), String> {
        let mut rest = plan.iter();
        for url in self.manifests() {
            let (scheme, place) = url.split_once("://").unwrap();
            let Some(ask) = rest.find(|ask| ask.url == place) else {
                return Err(format!("{url} is not asked for in its turn"));
            };
            if !ask.allows(scheme) {
                return Err(format!("{url} is asked by {:?}", ask.endpoint.scheme));
            }
        }
        // Whoever has the manifest is the last who is asked for it.
        let has_it = self.asked.iter().any(|asked| asked.url.contains("/blobs/"));
        let end = if has_it { plan.len() - rest.len() } else { plan.len() };
        let mut seen: Vec<_> = self.pinged.iter().map(String::as_str).collect();
        if self.is_containerd() {
            seen = self.manifests();
        }
        let hosts = distinct(seen.iter().map(|url| host(url.split_once("://").unwrap().1).to_owned()));
        let heard = plan.iter().take(end).filter(|ask| self.hears(ask)).map(|ask| ask.host.clone());
        let wanted = distinct(heard);
        if hosts == wanted { Ok(()) } else { Err(format!("{hosts:?} have heard of it, not {wanted:?}")) }
    }

    /// Whether containerd took a file for one that is not there, and went to the registry itself.
    fn is_passed_over(&self) -> bool {
        self.is_containerd() && self.asked.iter().all(|asked| !asked.url.contains("ns="))
    }

    /// Whether a host hears what is asked of it: there is one, and both agree on who it is.
    fn hears(&self, ask: &Ask) -> bool {
        let Some(answer) = self.hosts.get(&ask.host) else { return !ask.is_loopback() };
        let is = |word: &str| answer.split(' ').any(|found| found == word);
        let any = |given: fn(&str) -> bool| {
            ask.endpoint
                .certificates
                .iter()
                .flat_map(|certificates| match certificates {
                    Certificates::Dir(dir) => {
                        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
                    }
                    Certificates::Authorities(file) => vec![file.with_extension("crt")],
                    Certificates::Client(file, _) => vec![file.with_extension("cert")],
                })
                .any(|path| path.extension().is_some_and(|extension| given(extension.to_str().unwrap())))
        };
        let is_trusted = !is("untrusted") || !ask.endpoint.verify || any(|extension| extension == "crt");
        let is_plain = is("http");
        let is_known = !is("client") || any(|extension| extension == "cert");
        let is_spoken = if is_plain {
            matches!(ask.endpoint.scheme, Scheme::Http | Scheme::Either)
        } else {
            is_trusted && is_known
        };
        !is("refused") && is_spoken
    }
}

impl Ask {
    fn is_loopback(&self) -> bool {
        self.host.starts_with("localhost") || self.host.starts_with("127.")
    }

    fn allows(&self, scheme: &str) -> bool {
        match self.endpoint.scheme {
            Scheme::Either => true,
            Scheme::Http => scheme == "http",
            Scheme::Https => scheme == "https",
            Scheme::Usual => scheme == "https" || self.is_loopback(),
        }
    }
}

fn host(place: &str) -> &str {
    place.split('/').next().unwrap()
}

fn distinct(hosts: impl Iterator<Item = String>) -> Vec<String> {
    let mut found = Vec::new();
    hosts.for_each(|host| {
        if !found.contains(&host) {
            found.push(host)
        }
    });
    found
}

fn ask(endpoint: &Endpoint, reference: &Reference) -> Ask {
    let host = if endpoint.registry == "docker.io" { "registry-1.docker.io" } else { &endpoint.registry };
    let name = reference.digest.as_ref().or(reference.tag.as_ref()).unwrap();
    let query = endpoint.namespace.as_ref().map(|name| format!("?ns={}", encoded(name))).unwrap_or_default();
    let url = format!("{host}{}/{}/manifests/{name}{query}", endpoint.api, endpoint.repository);
    Ask { host: host.to_owned(), url, endpoint: endpoint.clone() }
}

fn encoded(name: &str) -> String {
    name.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D")
}

#[test]
fn crfs_asks_the_hosts_that_podman_and_containerd_ask() {
    let mut wrong = Vec::new();
    let cases = table();
    for case in cases.iter().filter(|case| !DIFFERENT.iter().any(|(name, _)| *name == case.name)) {
        let root = tempfile::tempdir().unwrap();
        let plan = case.plan(&case.places(root.path()));
        let class = case.error.as_deref().unwrap_or_default();
        let checked = match (&plan, class) {
            (Err(crate::registry::Error::Reference { .. }), "name") => Ok(()),
            (Err(crate::registry::Error::Transport { .. }), "name") => Ok(()),
            (Err(crate::registry::Error::Configuration(error)), class) => match (error, class) {
                (ConfigError::Blocked { .. }, "blocked")
                | (ConfigError::Ambiguous { .. }, "ambiguous")
                | (ConfigError::Rejected { .. } | ConfigError::SignatureWanted { .. }, "policy")
                | (ConfigError::File(_) | ConfigError::Name { .. }, "name")
                | (ConfigError::File(_) | ConfigError::Unreadable { .. }, "config") => Ok(()),
                (ConfigError::NoHost { .. }, "config") => Ok(()),
                (ConfigError::File(_), "not-found" | "") if case.is_passed_over() => Ok(()),
                _ => Err("another error".to_owned()),
            },
            (Err(_), _) => Err("another error".to_owned()),
            // podman finds it blocked after it has asked a mirror.
            (Ok(_), "blocked") if !case.pinged.is_empty() => Ok(()),
            // podman knows no registry then, and crfs takes docker.io.
            (Ok(_), "no-search-registries") => Ok(()),
            (Ok(_), "config" | "policy" | "blocked" | "ambiguous" | "name") => Err("no error".to_owned()),
            (Ok(plan), _) => case.check(plan),
        };
        if let Err(why) = checked {
            let asked: Vec<_> = case.asked.iter().map(|asked| &asked.url).collect();
            let plan = plan.map_err(|error| error.to_string());
            let plan = plan.map(|plan| {
                plan.iter().map(|ask| format!("{:?} {}", ask.endpoint.scheme, ask.url)).collect::<Vec<_>>()
            });
            wrong.push(format!(
                "{} ({}): {why}\n  plan {plan:?}\n  asked {asked:?}, pinged {:?}, {class}\n  files {:?}",
                case.name, case.image, case.pinged, case.files
            ));
        }
    }
    let is_case = |name: &str| cases.iter().any(|case| case.name == name);
    assert!(DIFFERENT.iter().all(|(name, _)| is_case(name)), "one of DIFFERENT is gone");
    assert!(cases.len() >= 600, "{}", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
