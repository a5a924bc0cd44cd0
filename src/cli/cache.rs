//! `crfs cache show`, `clear` and `verify`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::args::{CacheCommand, CacheDirArgs};
use super::environment::Environment;
use super::format::{self, Side, printable, table};
use super::progress::with_progress;
use super::{Failure, json, options, print};
use crate::cache::{self, Cleared, LayerUse, Usage, Verification, Verified};
use crate::image::{Error, Event, LayerRead, escape};

pub(super) fn cache(command: CacheCommand, environment: &Environment) -> Result<(), Failure> {
    match command {
        CacheCommand::Show(args) => {
            let dir = dir(&args.dir, environment)?;
            let usage = cache::show(&dir, args.cache_size).map_err(|source| Error::Cache { dir, source })?;
            Ok(print(&if args.dir.json { json(&usage)? } else { usage_text(&usage) })?)
        }
        CacheCommand::Clear(args) => {
            let dir = dir(&args.dir, environment)?;
            let cleared = cache::clear(&dir, args.contents).map_err(|source| Error::Cache { dir, source })?;
            Ok(print(&if args.dir.json { json(&cleared)? } else { cleared_text(&cleared) })?)
        }
        CacheCommand::Verify(args) => {
            let dir = dir(&args.dir, environment)?;
            let found = with_progress(|report| {
                let report = Arc::clone(report);
                cache::verify(&dir, Arc::new(move |verified| drop(report(&event(verified)))))
            });
            let found = found.map_err(|source| Error::Cache { dir, source })?;
            print(&if args.dir.json { json(&found)? } else { verification_text(&found) })?;
            if found.wrong.is_empty() { Ok(()) } else { Err(Failure::Reported) }
        }
    }
}

fn dir(args: &CacheDirArgs, environment: &Environment) -> Result<PathBuf, Failure> {
    Ok(options::cache_dir(args.cache_dir.as_deref(), environment)?)
}

/// The same in the words of all progress.
fn event(verified: &Verified) -> Event {
    let Verified { number, blob, bytes, of, all, of_all, done } = *verified;
    Event::Reading { bytes: all, of: of_all, layers: vec![LayerRead { number, digest: blob, bytes, of, done }] }
}

fn usage_text(usage: &Usage) -> String {
    let Usage { dir, total, limits, documents, layers } = usage;
    let share = (u128::from(*total) * 100).checked_div(limits.limit.into()).unwrap_or(0);
    let head = [
        vec!["cache".to_owned(), escape(dir.as_os_str().as_bytes())],
        vec!["total".to_owned(), format!("{} of {} ({share} %)", format::bytes(*total), format::bytes(limits.limit))],
        vec!["kept free".to_owned(), format!("{} of the filesystem", format::bytes(limits.floor))],
        vec!["manifests".to_owned(), format::bytes(*documents)],
    ];
    let head = table(&[Side::Left, Side::Left], &head);
    if layers.is_empty() {
        return head;
    }
    let titles = ["LAYER", "TOC", "CONTENTS", "OF", "INDEX", "IN USE", "IMAGES"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(titles.to_vec()).chain(layers.iter().map(layer_row)).collect();
    use Side::{Left, Right};
    format!("{head}\n{}", table(&[Left, Left, Right, Right, Right, Left, Left], &rows))
}

fn layer_row(layer: &LayerUse) -> Vec<String> {
    vec![
        layer.blob.to_string(),
        layer.toc.map_or_else(|| "-".to_owned(), |toc| toc.hex().chars().take(12).collect()),
        format::bytes(layer.contents),
        format::bytes(layer.contents_size),
        format::bytes(layer.index),
        if layer.in_use { "yes" } else { "no" }.to_owned(),
        images(&layer.images),
    ]
}

/// The first of them; `--json` has all.
fn images(images: &[String]) -> String {
    match images {
        [] => "-".to_owned(),
        [one] => printable(one),
        [one, rest @ ..] => format!("{} and {} more", printable(one), rest.len()),
    }
}

fn cleared_text(cleared: &Cleared) -> String {
    let Cleared { freed, total, in_use, held_up } = cleared;
    let rest = match in_use {
        0 => String::new(),
        1 => "; the index of 1 layer that is in use stays".to_owned(),
        count => format!("; the indexes of {count} layers that are in use stay"),
    };
    let held_up = match held_up {
        0 => String::new(),
        count => format!("; so do contents of {count} of them, which a process that does not go on has locked"),
    };
    format!("{} freed, {} left{rest}{held_up}\n", format::bytes(*freed), format::bytes(*total))
}

fn verification_text(found: &Verification) -> String {
    let wrong = found
        .wrong
        .iter()
        .map(|wrong| format!("wrong: {}: {}\n", escape(wrong.path.as_os_str().as_bytes()), printable(&wrong.what)));
    let verdict = match found.wrong.len() {
        0 => "nothing is wrong".to_owned(),
        count => format!("{count} wrong; mounts fetch it again when they need it, or: crfs cache clear"),
    };
    let without_index = match found.without_index {
        0 => String::new(),
        count => format!("{count} layers without an index are not checked, nor used before they have one\n"),
    };
    format!(
        "{}{without_index}{} documents, {} indexes, {} of contents in {} parts: {verdict}\n",
        wrong.collect::<String>(),
        found.documents,
        found.indexes,
        format::bytes(found.bytes),
        found.checks
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;
    use crate::cache::{Limits, Wrong};

    #[test]
    fn a_cache_is_shown_with_its_limit_and_its_layers() {
        let limits = Limits { limit: 4096, floor: 1 << 30 };
        let mut usage = Usage { dir: "/c\x1b".into(), total: 2048, limits, documents: 0, layers: Vec::new() };
        let head = "cache      /c\\x1b\n\
            total      2.0 KiB of 4.0 KiB (50 %)\n\
            kept free  1.0 GiB of the filesystem\n\
            manifests  0 B\n";
        assert_eq!(usage_text(&usage), head);
        let blob = Digest::of(b"");
        let layer =
            LayerUse { blob, toc: None, contents: 1024, contents_size: 2048, index: 512, in_use: true, images: vec![] };
        usage.layers = vec![layer];
        let text = usage_text(&usage);
        assert!(text.ends_with(&format!("\n{blob}  -     1.0 KiB  2.0 KiB  512 B  yes     -\n")), "{text}");
        usage.layers[0].images = vec!["r.io/a:1".to_owned(), "r.io/b:1".to_owned()];
        assert!(usage_text(&usage).ends_with("  yes     r.io/a:1 and 1 more\n"));
        let value: serde_json::Value = serde_json::from_str(&json(&usage).unwrap()).unwrap();
        assert_eq!((&value["limit"], &value["layers"][0]["toc"]), (&4096.into(), &serde_json::Value::Null));
    }

    #[test]
    fn what_was_done_is_said_in_one_line() {
        let cleared = |in_use| cleared_text(&Cleared { freed: 1024, total: 0, in_use, held_up: in_use / 2 });
        assert_eq!(cleared(0), "1.0 KiB freed, 0 B left\n");
        assert!(cleared(1).ends_with("the index of 1 layer that is in use stays\n"));
        assert!(
            cleared(2).ends_with(
                "in use stay; so do contents of 1 of them, which a process that does not go on has locked\n"
            )
        );
        let mut found =
            Verification { documents: 1, indexes: 2, checks: 3, bytes: 1024, without_index: 0, wrong: Vec::new() };
        let all = "1 documents, 2 indexes, 1.0 KiB of contents in 3 parts: ";
        assert_eq!(verification_text(&found), format!("{all}nothing is wrong\n"));
        found.wrong.push(Wrong { path: "/c/data".into(), what: "x\n".into() });
        assert!(verification_text(&found).starts_with(&format!("wrong: /c/data: x\\n\n{all}1 wrong; ")));
    }
}
