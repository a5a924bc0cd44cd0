//! Why a layer is read as it is, in words: what the engine has decided when it looked at the layer or opened it. `inspect`, `explain` and the server
//! of a mount say it in these words.

use super::layer::{Fetches, OpenLayer};
use super::pending::{Pending, Reason};
use crate::index::Trust;
use crate::registry::{self, SociSource};

/// Of a layer that somebody has rewritten, and not what the manifest says of it.
const MISFIT: &str = "the manifest names a table of contents that is not used";

/// For a layer that can only be unpacked from its start.
const IN_PARTS: &str =
    "push it as zstd:chunked (`podman push --compression-format zstd:chunked`) or eStargz, or give the cache more room";

const RENEW: &str =
    "push the image again with a tool that renews the annotations of layers that it rewrites, or drops them";

const INDEX_AHEAD: &str = "`crfs index` makes the index ahead of time; pushed as zstd:chunked (`podman push --compression-format zstd:chunked`) or \
                           eStargz, or with a SOCI index, only what is read is fetched, from the first mount on";

const INDEX_IMAGE: &str = "`crfs index` makes the index ahead of time; with a chunk index (org.erofs.chunk-index.range and .digest) or the root digest of a \
                           dm-verity tree (org.erofs.dmverity.*) in the manifest, only what is read is fetched, from the first mount on";

const VOUCH: &str = "push the image again, so that its manifest names the digest of the table of contents";

const PARTS_ELSEWHERE: &str = "read all of it once more: a cache that has it by then may send parts; or mount from a registry that answers range requests \
                               (docs/registries.md)";

/// Of an image whose chunks or blocks have digests that lead to one in the manifest.
const PARTS: &str = "the manifest vouches for its parts, by a chunk index or a dm-verity tree";

/// Why it is lazy or not, and what would make it better.
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) advice: Option<&'static str>,
}

/// When a layer is read whole, as seen from the one who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// By the next mount.
    Next,
    /// It was, by the mount that is asked about.
    Done,
}

impl When {
    fn read(self) -> &'static str {
        match self {
            Self::Next => "the first mount reads all of it",
            Self::Done => "crfs read all of it before the mount was ready",
        }
    }
}

impl Why {
    pub(super) fn of_pending(pending: &Pending) -> Self {
        let misfit = pending.misfit.as_ref().filter(|_| pending.reason != Reason::Evicted);
        of_full_read(pending.reason, misfit, plain(&pending.layer), When::Next)
    }

    /// `soci`: who says that the image's SOCI index belongs to it.
    pub(super) fn of_open(layer: &OpenLayer, soci: Option<SociSource>) -> Self {
        let kept = matches!(layer.fetches(), Fetches::Kept | Fetches::Whole);
        let advice = kept.then_some(IN_PARTS);
        match layer.read_for {
            // That of such a layer is said below.
            Some(Reason::Plain | Reason::Evicted) if kept => {}
            Some(reason) => {
                return of_full_read(reason, layer.misfit.as_ref(), layer.summary().format.name(), When::Done);
            }
            None => {}
        }
        let reason = unpacked(layer).unwrap_or_else(|| match layer.contents.index().packing() {
            Some(packing) if packing.has_digests() => PARTS,
            _ => voucher(layer.trust, soci),
        });
        let reason = match &layer.misfit {
            Some(misfit) => format!("{reason}; {MISFIT} ({misfit})"),
            None => reason.to_owned(),
        };
        Self { reason, advice }
    }
}

/// Filesystem images, as [`crate::index::Format`] has them.
const EROFS: &str = "erofs";
const SQUASHFS: &str = "squashfs";

/// What a layer without a table of contents is, by its media type, which anybody may have written.
fn plain(layer: &registry::Layer) -> &'static str {
    match layer.media_type.as_str() {
        image if image.contains("erofs") => EROFS,
        image if image.contains("squashfs") => SQUASHFS,
        gzip if gzip.contains("gzip") => "tar+gzip",
        zstd if zstd.contains("zstd") => "tar+zstd",
        _ => "tar",
    }
}

fn of_full_read(reason: Reason, misfit: Option<&String>, plain: &str, when: When) -> Why {
    let read = when.read();
    if let Some(misfit) = misfit {
        return Why { reason: format!("{MISFIT} ({misfit}): {read}, and keeps an index"), advice: Some(RENEW) };
    }
    let (reason, advice) = match reason {
        Reason::Plain if [EROFS, SQUASHFS].contains(&plain) => (
            format!(
                "it is an image of {plain}, and nothing in the manifest vouches for its parts: {read}, and keeps an index"
            ),
            INDEX_IMAGE,
        ),
        Reason::Plain => {
            (format!("it is plain {plain}, with no table of contents: {read}, and keeps an index"), INDEX_AHEAD)
        }
        Reason::Unvouched(format) => (
            format!(
                "nothing in the manifest vouches for its table of contents ({format}): {read}, so that its own digest does"
            ),
            VOUCH,
        ),
        Reason::SentWhole => (
            format!(
                "its host sends all of it when it is asked for a part, as a pull-through cache does that has not got it yet: {read}, and keeps what it \
                 holds"
            ),
            PARTS_ELSEWHERE,
        ),
        Reason::Evicted => (
            format!(
                "it can only be unpacked from its start, and what was unpacked is not all in the cache any more: {read}"
            ),
            IN_PARTS,
        ),
    };
    Why { reason, advice: Some(advice) }
}

/// For a layer of which more is fetched than what is read.
fn unpacked(layer: &OpenLayer) -> Option<&'static str> {
    Some(match (layer.fetches(), layer.read_for.is_some()) {
        (Fetches::Part, _) => return None,
        (Fetches::Nothing, _) => "read whole: it is smaller than --whole-layer-below",
        (Fetches::Kept, false) => {
            "it can only be unpacked from its start: it was read whole before, and all that it holds is kept while it is mounted"
        }
        (Fetches::Kept, true) => {
            "it can only be unpacked from its start: crfs read all of it before the mount was ready, and keeps all that it holds while it is mounted"
        }
        (Fetches::Whole, false) => {
            "it can only be unpacked from its start: it was read whole before, and is again for what the cache has not"
        }
        (Fetches::Whole, true) => {
            "it can only be unpacked from its start: crfs read all of it before the mount was ready, and does again for what the cache has not"
        }
    })
}

/// For a layer of which what is read is fetched: what vouches for its index.
fn voucher(trust: Trust, soci: Option<SociSource>) -> &'static str {
    match (trust, soci) {
        (Trust::Manifest, _) => "the manifest names the digest of its table of contents",
        (Trust::Blob, _) => "its own digest vouches for its index: it was read whole before",
        (Trust::Soci, Some(SociSource::Referrer)) => {
            "a SOCI index that says it belongs to the image has a zTOC of it (--soci-v1)"
        }
        (Trust::Soci, Some(SociSource::Given)) => "the SOCI index that you named has a zTOC of it",
        (Trust::Soci, Some(SociSource::Manifest) | None) => "the SOCI index that the manifest names has a zTOC of it",
        (Trust::Unverified, _) => "nothing vouches for its table of contents (--insecure-unverified-toc)",
    }
}
