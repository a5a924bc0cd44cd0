//! What hosts and files say, read for the fuzz targets, which cannot see this module.

use std::path::Path;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::auth::{self, Scope};
use super::config;
use super::grammar;
use super::manifest::{Content, MOST_LAYERS, parse};
use super::tarfile;
use crate::blob::ByteRange;

/// How many entries or layers a manifest or an index has, where it is one.
#[must_use]
pub fn manifest(bytes: &[u8]) -> Option<usize> {
    match parse("fuzzed", bytes).ok()? {
        Content::Index(entries) => Some(entries.len()),
        Content::Image(manifest) => {
            assert!(manifest.layers.len() <= MOST_LAYERS);
            Some(manifest.layers.len())
        }
    }
}

/// The files of an archive of images, where it can be read.
#[must_use]
pub fn archive(bytes: Bytes) -> Option<Vec<ByteRange>> {
    let members = tarfile::members(Path::new("fuzzed"), &bytes).ok()?;
    let files = members.into_iter().filter_map(|member| match member.content {
        tarfile::Content::File(place) => Some(place),
        _ => None,
    });
    Some(files.collect())
}

/// The URL to which credentials would go, as a registry at `base` names it.
#[must_use]
pub fn token_server(base: &str, header: &[u8]) -> Option<url::Url> {
    let scope = Scope { registry: "r".to_owned(), repository: "a".to_owned() };
    let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_bytes(header).ok()?)]);
    match auth::challenge(&scope, &base.parse().ok()?, &headers).ok()?? {
        auth::Challenge::Bearer { realm, .. } => Some(realm),
        auth::Challenge::Basic => None,
    }
}

/// The names under which configuration has an image asked for, whether it may be had, and the paths of APIs. What is wrong with them panics.
#[must_use]
pub fn configuration(text: &str) -> (Vec<String>, bool) {
    let Ok(reference) = grammar::parse("registry.example:5000/team/app:1") else { return Default::default() };
    let (endpoints, paths, is_permitted) = config::read_for_fuzzing(text, &reference);
    for path in paths {
        assert!(path.is_empty() || path.starts_with('/') && !path.ends_with('/') && !path.contains("/../"), "{path}");
    }
    let names = endpoints.into_iter().map(|endpoint| format!("{}/{}", endpoint.registry, endpoint.repository));
    let names: Vec<_> = names.collect();
    for name in &names {
        let whole = grammar::parse(name).map(|parsed| format!("{}/{}", parsed.registry, parsed.repository));
        assert_eq!(whole.as_ref(), Ok(name));
    }
    (names, is_permitted)
}
