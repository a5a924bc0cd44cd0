//! Whether an image can be had: its registry, the way to it, and its layers.

use std::sync::Arc;

use super::{Finding, Setting};
use crate::image::inspect::{self, LayerInspection, Layers, Way};
use crate::registry::{EndpointReport, ImageRef, Login, list, proxy_of};

/// Seconds by which clocks may differ: tokens and certificates that are a few minutes old are good by both.
const APART: i64 = 120;

struct Facts {
    image: String,
    /// The proxy, and the variable that names it.
    proxy: Option<String>,
    asked: Result<Way, String>,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let options = match &setting.image {
        None => return Vec::new(),
        Some(Ok(options)) => options,
        Some(Err(why)) => return vec![refused("the image", why)],
    };
    let proxy = match &options.image {
        ImageRef::Registry(reference) => proxy_of(&reference.registry),
        _ => None,
    };
    // Nobody sees how it goes.
    let report: crate::image::Report = Arc::new(|_| Ok(()));
    judge(&Facts {
        image: options.image.to_string(),
        proxy: proxy.map(|(variable, url)| format!("{url} ({variable})")),
        asked: inspect::way(options, &report).map_err(|error| error.chain()),
    })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let Facts { image, proxy, asked } = facts;
    let way = match asked {
        Ok(way) => way,
        Err(why) => return vec![refused(image, why)],
    };
    let had = match &way.layers {
        Ok(layers) => Finding::ok(format!("{}@{} can be had", layers.image, layers.digest)),
        Err(error) => refused(image, &error.chain()),
    };
    let mut found = vec![had];
    found.extend(proxy.iter().map(|proxy| Finding::ok(format!("its registry is asked through the proxy {proxy}"))));
    found.push(judge_login(&way.login.as_ref().map_err(crate::image::Error::chain)));
    found.extend(way.endpoints.iter().map(judge_endpoint));
    found.extend(way.clock_ahead.map(judge_clock));
    found.extend(way.layers.iter().flat_map(judge_layers));
    found
}

fn refused(image: &str, why: &str) -> Finding {
    Finding::problem(format!("{image}: {why}"), "the image cannot be mounted", advice(why))
}

fn judge_login(login: &Result<&Login, String>) -> Finding {
    match login {
        Ok(Login::Nobody) => Finding::ok("no credentials are known for it: its registry is asked without a login"),
        Ok(Login::Known(origin)) => Finding::ok(format!("its registry is told the credentials of {origin}")),
        Ok(Login::HelperFailed(failure)) => Finding::problem(
            format!("{} has failed: {}", failure.helper, failure.reason),
            "its registry is asked without a login",
            "run the helper by hand, or log in again: podman login REGISTRY",
        ),
        Err(why) => {
            Finding::problem(why.clone(), "no registry is asked", "mend that file, or remove it and log in again")
        }
    }
}

fn judge_clock(ahead: i64) -> Finding {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    match ahead.unsigned_abs() {
        by if by <= APART.unsigned_abs() => Finding::ok("this machine's clock and that of the registry agree"),
        by => Finding::note(
            format!("the registry's clock is {by} s {way} this machine's"),
            "certificates and tokens may count as expired, or as not yet valid",
            "set this machine's clock: timedatectl set-ntp true",
        ),
    }
}

/// The message itself mostly says what to do.
fn advice(why: &str) -> &'static str {
    let is_of_the_clock = ["NotValidYet", "not valid yet", "Expired", "expired"].iter().any(|word| why.contains(word));
    match is_of_the_clock {
        true => {
            "compare this machine's clock with another (`timedatectl`); if it is right, the registry's certificate is to be renewed"
        }
        false => "see the message; docs/TROUBLESHOOTING.md has each with what to do",
    }
}

fn judge_endpoint(endpoint: &EndpointReport) -> Finding {
    let kind = if endpoint.mirror { "the mirror" } else { "the registry" };
    let host = &endpoint.host;
    let counts = &endpoint.counts;
    match &counts.last_error {
        Some(why) => Finding::note(
            format!("{kind} {host} fails: {why}"),
            "the next endpoint is asked instead, which takes longer",
            "see that host, or remove it from the configuration of registries",
        ),
        None if counts.asked == 0 => Finding::ok(format!("{kind} {host} was not asked")),
        None => Finding::ok(format!("{kind} {host} answers")),
    }
}

fn judge_layers(layers: &Layers) -> Vec<Finding> {
    let all = layers.layers.len();
    let lazy = layers.layers.iter().filter(|layer| layer.lazy).count();
    let mut found = vec![Finding::ok(format!("{lazy} of {all} layers are lazy"))];
    // Most have the reason of their neighbour.
    let mut alike: Vec<(&LayerInspection, Vec<String>)> = Vec::new();
    let worse = |layer: &LayerInspection| !layer.usable || (!layer.lazy && layer.advice.is_some());
    for (number, layer) in layers.layers.iter().enumerate().filter(|(_, layer)| worse(layer)) {
        let is_alike = |other: &LayerInspection| (&other.reason, &other.advice) == (&layer.reason, &layer.advice);
        match alike.iter_mut().find(|(other, _)| is_alike(other)) {
            Some((_, numbers)) => numbers.push(number.to_string()),
            None => alike.push((layer, vec![number.to_string()])),
        }
    }
    found.extend(alike.iter().map(|(layer, numbers)| judge_alike(layer, numbers)));
    found
}

/// Layers that cannot be opened, or could be better, all for one reason.
fn judge_alike(layer: &LayerInspection, numbers: &[String]) -> Finding {
    let (reason, which) = (&layer.reason, list(numbers));
    let layers = if numbers.len() == 1 { "layer" } else { "layers" };
    match &layer.advice {
        Some(advice) if layer.usable => Finding::note(
            format!("not lazy: {layers} {which}: {reason}"),
            "a first mount reads all of that",
            advice.clone(),
        ),
        _ => Finding::problem(
            format!("cannot be opened: {layers} {which}: {reason}"),
            "the image cannot be mounted",
            "convert the image to eStargz or zstd:chunked, or use podman",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Note, Ok as Good, Problem};
    use super::*;
    use crate::blob::Digest;
    use crate::registry::Counts;

    #[test]
    fn endpoints_are_told_apart() {
        let of = |counts| judge_endpoint(&EndpointReport { host: "m.io".into(), mirror: true, rests: None, counts });
        assert_eq!(of(Counts::default()).found, "the mirror m.io was not asked");
        assert_eq!(of(Counts { asked: 1, ..Counts::default() }).verdict, Good);
        let failed = of(Counts { asked: 1, failed: 1, last_error: Some("gone".into()), ..Counts::default() });
        assert!(failed.verdict == Note && failed.found.contains("m.io fails: gone"), "{failed:?}");
    }

    fn of(layers: Result<Layers, crate::image::Error>, login: Login) -> Vec<Finding> {
        let way = Way { layers, endpoints: Vec::new(), login: Ok(login), clock_ahead: Some(7) };
        judge(&Facts { image: "a.io/b".into(), proxy: Some("http://p/ (HTTPS_PROXY)".into()), asked: Ok(way) })
    }

    #[test]
    fn the_way_to_an_image_is_told() {
        let layers =
            || Layers { image: "a".into(), digest: Digest::of(b""), endpoints: Vec::new(), layers: Vec::new() };
        let known = Login::Known(crate::registry::Origin::File("/auth.json".into()));
        let found = of(Ok(layers()), known);
        assert!(found.iter().all(|finding| finding.verdict == Good), "{found:?}");
        assert!(found[1].found.contains("http://p/") && found[2].found.ends_with("/auth.json"), "{found:?}");
        let missing = crate::image::Error::NoSuchPath { path: "x".into() };
        assert_eq!(of(Err(missing), Login::Nobody)[0].verdict, Problem);
        assert_eq!(judge_login(&Err("no valid JSON".into())).verdict, Problem);
    }

    #[test]
    fn layers_that_are_alike_are_told_together() {
        let layer = |usable, reason: &str| LayerInspection {
            digest: Digest::of(b""),
            size: 7,
            media_type: String::new(),
            usable,
            lazy: false,
            index_from: inspect::IndexFrom::None,
            requests: 0,
            wait: 0,
            reason: reason.to_owned(),
            advice: usable.then(|| "push it as zstd:chunked".to_owned()),
            podman_asks: true,
            since: None,
            index: None,
        };
        let layers = vec![layer(true, "plain"), layer(false, "xz"), layer(true, "plain")];
        let found = judge_layers(&Layers { image: "a".into(), digest: Digest::of(b""), endpoints: Vec::new(), layers });
        let told: Vec<_> = found.iter().map(|finding| (finding.verdict, finding.found.as_str())).collect();
        let expected = [
            (Good, "0 of 3 layers are lazy"),
            (Note, "not lazy: layers 0, 2: plain"),
            (Problem, "cannot be opened: layer 1: xz"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn clocks_that_differ_are_noticed() {
        assert_eq!(judge_clock(-120).verdict, Good);
        assert!(judge_clock(-3600).found.contains("3600 s behind") && judge_clock(3600).verdict == Note);
        let found = refused("a.io/b", "no TLS connection: NotValidYet");
        assert!(found.verdict == Problem && found.advice.as_ref().unwrap().contains("clock"), "{found:?}");
        assert!(!advice("denied").contains("clock"));
    }
}
