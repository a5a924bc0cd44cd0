//! `crfs explain`.

use super::args::ExplainArgs;
use super::environment::Environment;
use super::format::{bytes, printable};
use super::progress::with_progress;
use super::{Failure, endpoints, json, options, print};
use crate::image::inspect::{self, LayerInspection};
use crate::serve::explain::{Explanation, find};

pub(super) fn explain(args: &ExplainArgs, environment: &Environment) -> Result<(), Failure> {
    let explanation = match find(args.target.as_ref(), &environment.state_dirs())? {
        Some(mount) => {
            let image = || options::source(mount.image().as_ref(), &args.access, &args.cache, environment);
            match mount.told() {
                Some(told) => told,
                None => {
                    let (options, digest) = (mount.options().map_or_else(image, Ok)?, mount.digest());
                    mount.untold(with_progress(|report| inspect::layers_pinned(&options, digest, report))?)
                }
            }
        }
        None => {
            let options = options::source(&args.target, &args.access, &args.cache, environment)?;
            with_progress(|report| inspect::layers(&options, report))?.into()
        }
    };
    Ok(print(&if args.json { json(&explanation)? } else { text(&explanation) })?)
}

fn text(of: &Explanation) -> String {
    let layers = of.layers.iter().enumerate().map(|(number, layer)| layer_text(number, layer, of));
    head(of) + &layers.collect::<String>() + &podman(of)
}

/// What podman does with its layers where it has a layer store.
fn podman(of: &Explanation) -> String {
    let which = match (of.layers.len(), of.layers.iter().filter(|layer| layer.usable && !layer.podman_asks).count()) {
        (_, 0) => return String::new(),
        (1, _) => "the layer".to_owned(),
        (all, left) if all == left => "any of the layers".to_owned(),
        (all, left) => format!("{left} of the {all} layers"),
    };
    format!(
        "\npodman 5.1 and later never ask a layer store (`crfs store serve --layers`) for {which}: the manifest does not name a table of \
         contents as podman does.\nWays out: push the image by `podman push --compression-format zstd:chunked`, or use `crfs store add`.\n"
    )
}

/// Whether this is what a server has done, and not what one would do.
fn is_done(of: &Explanation) -> bool {
    of.mount.as_ref().is_some_and(|mount| mount.told)
}

fn head(of: &Explanation) -> String {
    let name = printable(&format!("{}@{}", of.image, of.digest));
    let lazy = match (of.layers.len(), of.layers.iter().filter(|layer| layer.lazy).count()) {
        (1, 0) => "1 layer, which is not lazy".to_owned(),
        (1, _) => "1 layer, which is lazy".to_owned(),
        (all, 0) => format!("{all} layers, none of them lazy"),
        (all, lazy) if all == lazy => format!("{all} layers, all of them lazy"),
        (all, lazy) => format!("{all} layers, {lazy} of them lazy"),
    };
    let wait = bytes(of.wait);
    let refused = of.layers.iter().position(|layer| !layer.usable);
    let cost = match &of.mount {
        Some(mount) if mount.told => {
            let since = of.layers.iter().filter_map(|layer| layer.since).map(|since| since.fetched);
            let since = bytes(since.fold(0, u64::saturating_add));
            format!("It is mounted on {}: crfs fetched {wait} before that was ready, and {since} since.", shown(mount))
        }
        Some(mount) => format!(
            "It is mounted on {}, but its server does not tell. A new mount would fetch {wait} before it is ready.",
            shown(mount)
        ),
        None => match refused {
            Some(layer) => format!("It cannot be mounted, since layer {layer} cannot be opened."),
            None => format!("A mount fetches {wait} before it is ready."),
        },
    };
    let endpoints = endpoints::lines(&of.endpoints);
    let asked: String = endpoints.iter().map(|line| format!("  {line}\n")).collect();
    let asked = if asked.is_empty() { asked } else { format!("Where it is asked for:\n{asked}") };
    format!("{name}: {lazy}.\n{cost}\n{asked}")
}

fn shown(mount: &crate::serve::explain::Found) -> String {
    printable(&mount.dir.display().to_string())
}

fn layer_text(number: usize, layer: &LayerInspection, of: &Explanation) -> String {
    let LayerInspection { digest, size, .. } = layer;
    let format = layer.index.as_ref().map(|index| format!(", {}", index.format)).unwrap_or_default();
    let lazy = if layer.lazy { "lazy" } else { "not lazy" };
    if !layer.usable {
        let title = format!("\nLayer {number}, {digest} ({}): it cannot be opened.\n", bytes(*size));
        return format!("{title}  {}\n", sentence(&layer.reason));
    }
    let title = format!("\nLayer {number}, {digest} ({}{format}): {lazy}.\n", bytes(*size));
    let mut lines = vec![sentence(&layer.reason), cost(layer, is_done(of))];
    lines.extend(layer.advice.as_ref().map(|advice| format!("To make it better: {}.", printable(advice))));
    title + &lines.iter().map(|line| format!("  {line}\n")).collect::<String>()
}

/// A reason stands within a line elsewhere.
fn sentence(reason: &str) -> String {
    let reason = printable(reason);
    let mut letters = reason.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    // What comes from elsewhere may have an end.
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

fn cost(layer: &LayerInspection, is_done: bool) -> String {
    let what = |requests: u64, fetched: u64| match (requests, fetched) {
        (0, 0) => "nothing".to_owned(),
        (0, fetched) => format!("{}, from this machine's disk", bytes(fetched)),
        (1, fetched) => format!("{} in 1 request", bytes(fetched)),
        (requests, fetched) => format!("{} in {requests} requests", bytes(fetched)),
    };
    let before = what(layer.requests, layer.wait);
    match (layer.since, is_done) {
        (Some(since), _) => {
            format!("Fetched before the mount was ready: {before}; since: {}.", what(since.requests, since.fetched))
        }
        (None, true) => format!("Fetched before the mount was ready: {before}."),
        (None, false) => format!("Fetched before a mount is ready: {before}."),
    }
}
