//! `--hosts-dir`: a directory of containerd, with a directory for each registry (`config_path`; hosts.go of containerd 2.4.2).

use std::path::{Path, PathBuf};

use super::super::grammar::{DOCKER_HUB, DOCKER_HUB_HOST, Reference};
use super::certs;
use super::endpoint::{Certificates, Endpoint, Scheme};
use super::error::Error;
use super::hosts_file::{self, Host, HostUrl};
use super::places::Places;
use super::read;

/// Where a reference may be asked for, by what the directory says of its registry.
pub(super) fn endpoints(dir: &Path, places: &Places, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
    let own = directory(dir, &reference.registry)?;
    let hosts = match &own {
        Some(own) => hosts(own)?,
        None => vec![Host::default()],
    };
    let endpoints = hosts.into_iter().filter(|host| host.pulls).map(|host| endpoint(host, places, reference));
    let endpoints = endpoints.collect::<Result<Vec<_>, Error>>()?;
    // A host that may not be pulled from is not asked what a tag means, either.
    let is_enough = match reference.digest {
        Some(_) => !endpoints.is_empty(),
        None => endpoints.iter().any(|endpoint| endpoint.resolves),
    };
    match own {
        Some(own) if !is_enough => {
            let capability = if endpoints.is_empty() { "pull" } else { "resolve" };
            let (registry, path) = (reference.registry.clone(), own.join("hosts.toml"));
            Err(Error::NoHost { registry, path, capability })
        }
        _ => Ok(endpoints),
    }
}

/// What is wrong with the files of all registries in the directory.
pub(super) fn errors(dir: &Path) -> Vec<Error> {
    match read::dir(dir) {
        Ok(found) => {
            found.into_iter().flatten().filter(|own| read::is_dir(own)).filter_map(|own| hosts(&own).err()).collect()
        }
        Err(error) => vec![error],
    }
}

/// The directory of a registry: `host_port_`, `host:port` or `_default`, whichever is there first.
fn directory(dir: &Path, registry: &str) -> Result<Option<PathBuf>, Error> {
    let underscored = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let underscored = underscored.map(|(host, port)| format!("{host}_{port}_"));
    let names = underscored.into_iter().chain([registry.to_owned(), "_default".to_owned()]);
    for path in names.map(|name| dir.join(name)) {
        if read::is_there(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn hosts(dir: &Path) -> Result<Vec<Host>, Error> {
    let refused = || read::unreadable(dir, "it is no directory, or nobody may look into it".to_owned());
    let files = read::dir(dir)?.ok_or_else(refused)?;
    let path = dir.join("hosts.toml");
    match read::file(&path)? {
        Some(text) if !text.is_empty() => hosts_file::parse(&path, &text),
        _ => Ok(vec![Host { certificates: certificates(&files), ..Host::default() }]),
    }
}

/// What docker has in such a directory: NAME.crt of authorities, NAME.cert with NAME.key, or with the key in it.
fn certificates(paths: &[PathBuf]) -> Vec<Certificates> {
    let certificate = |path: &PathBuf| match path.extension()?.to_str()? {
        "crt" => Some(Certificates::Authorities(path.clone())),
        "cert" => {
            let key = path.with_extension("key");
            let key = if paths.contains(&key) { key } else { path.clone() };
            Some(Certificates::Client(path.clone(), key))
        }
        _ => None,
    };
    paths.iter().filter_map(certificate).collect()
}

fn endpoint(host: Host, places: &Places, reference: &Reference) -> Result<Endpoint, Error> {
    let (url, skip_verify) = match &host.url {
        Some(url) => (url.clone(), host.skip_verify),
        None => itself(&reference.registry, host.skip_verify),
    };
    let has_tls = !host.certificates.is_empty() || skip_verify.is_some();
    let is_port_80 = url.host.ends_with(":80");
    let (scheme, verify) = match (places.tls_verify, &places.cert_dir) {
        (Some(_), _) => certs::scheme(places, skip_verify == Some(true), places.cert_dir.is_some()),
        (None, _) if url.is_https => (Scheme::Https, skip_verify != Some(true)),
        // TLS that is configured is tried first.
        (None, _) if has_tls && !is_port_80 => (Scheme::Either, skip_verify != Some(true)),
        (None, _) => (Scheme::Http, true),
    };
    let is_itself = url.host == reference.registry || (reference.registry == DOCKER_HUB && url.host == DOCKER_HUB_HOST);
    let registry = if url.host == DOCKER_HUB_HOST { DOCKER_HUB.to_owned() } else { url.host };
    Ok(Endpoint {
        registry,
        repository: reference.repository.clone(),
        api: url.api,
        scheme,
        verify,
        certificates: match &places.cert_dir {
            Some(dir) => vec![Certificates::Dir(dir.clone())],
            None => host.certificates,
        },
        headers: host.headers,
        namespace: (!is_itself).then(|| reference.registry.clone()),
        dial_timeout: host.dial_timeout,
        resolves: host.resolves,
        is_mirror: !is_itself,
    })
}

/// The registry itself, where the file names no server. On loopback it may speak http, and need not show a certificate that is right.
fn itself(registry: &str, skip_verify: Option<bool>) -> (HostUrl, Option<bool>) {
    let url = |is_https, host: &str| HostUrl { is_https, host: host.to_owned(), api: "/v2".to_owned() };
    if registry == DOCKER_HUB {
        return (url(true, DOCKER_HUB_HOST), skip_verify);
    }
    let (host, port) = host_and_port(registry);
    if !is_localhost(host) {
        return (url(true, registry), skip_verify);
    }
    let is_https = matches!(port, "" | "443");
    (url(is_https, registry), if port == "80" { skip_verify } else { Some(true) })
}

/// An address of IPv6 without its brackets, where a port stands behind it.
fn host_and_port(registry: &str) -> (&str, &str) {
    match registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host.trim_start_matches('[').trim_end_matches(']'), port),
        None => (registry, ""),
    }
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
