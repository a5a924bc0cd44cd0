//! Takes the tar-splits that zstd:chunked blobs carry. A server reads them when nobody reads anything else: adding an image and starting it must not
//! wait for what only a push needs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::Store;
use super::records::{Layer, Records};
use super::tar_splits::Staged;
use super::{Error, tar_splits};
use crate::blob::Digest;
use crate::errors::chain;
use crate::fetch;
use crate::image;
use crate::image::layer::blocking;
use crate::image::past_caches::once_more;
use crate::image::pending::descriptor;
use crate::index::carried_tar_split as carried;
use crate::index::{Descriptor, Format, NoTarSplit, TarSplit, TocPosition};
use crate::registry::Freshness;

/// How long no reader has waited when a tar-split is read: whoever adds an image starts it soon.
const QUIET: Duration = Duration::from_secs(5);

/// How many are read at a time, and for how long: a busy image must not keep others waiting for ever.
const READS: usize = 2;
const READ_WITHIN: Duration = Duration::from_secs(300);

/// Between two tries of what could not be had.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// Those that read such tar-splits.
pub(super) struct Carried {
    /// Layers were opened: their blobs may carry some.
    opened: Notify,
    reads: Semaphore,
}

impl Default for Carried {
    fn default() -> Self {
        Self { opened: Notify::new(), reads: Semaphore::new(READS) }
    }
}

impl Carried {
    /// There are layers to look at.
    pub(super) fn look(&self) {
        self.opened.notify_one();
    }
}

/// A layer whose blob may carry a tar-split.
struct Carrier {
    id: Digest,
    /// As they were when it was found.
    contents: String,
    diff_id: Digest,
    blob: Descriptor,
    layer: Arc<fetch::Layer>,
}

/// A layer's id, and what its contents are.
type Key = (Digest, String);

/// What came of a layer.
enum Outcome {
    /// There is nothing to be done any more.
    Done,
    /// It carries none, or one that cannot be used.
    InVain,
    Failed(String),
}

/// How far a layer is that has no tar-split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    UnderWay { failures: u32 },
    InVain,
    Failed { failures: u32, again: Instant },
}

/// All layers that were looked at and have no tar-split.
#[derive(Default)]
struct Search {
    states: HashMap<Key, State>,
}

impl Search {
    /// Whether it is to be looked at now; it is under way, then.
    fn begin(&mut self, key: &Key, now: Instant) -> bool {
        let failures = match self.states.get(key) {
            None => 0,
            Some(State::Failed { failures, again }) if *again <= now => *failures,
            Some(_) => return false,
        };
        self.states.insert(key.clone(), State::UnderWay { failures });
        true
    }

    fn end(&mut self, key: Key, outcome: Outcome, now: Instant) {
        let Some(State::UnderWay { failures }) = self.states.remove(&key) else { return };
        match outcome {
            // A layer with that id can be added once more.
            Outcome::Done => {}
            Outcome::InVain => drop(self.states.insert(key, State::InVain)),
            Outcome::Failed(problem) => {
                if failures == 0 {
                    tracing::warn!(layer = %key.0, problem, "podman cannot be given the tar-split that a layer carries yet; it is tried again");
                } else {
                    tracing::debug!(layer = %key.0, problem, "podman cannot be given the tar-split that a layer carries yet");
                }
                let again = now + FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY);
                self.states.insert(key, State::Failed { failures: failures.saturating_add(1), again });
            }
        }
    }

    /// Forgets what is not in the store any more.
    fn keep(&mut self, records: &Records) {
        let is_there = |(id, contents): &Key| records.layer(id).is_some_and(|layer| layer.contents == *contents);
        self.states.retain(|key, _| is_there(key));
    }

    /// When the next one that has failed is tried again.
    fn next(&self) -> Option<Instant> {
        let again = |state: &State| if let State::Failed { again, .. } = state { Some(*again) } else { None };
        self.states.values().filter_map(again).min()
    }
}

impl Store {
    /// Gives podman the tar-splits that blobs carry, of all layers that have none, for as long as the server lives.
    pub(super) async fn take_carried_tar_splits(self: Arc<Self>) {
        // Else nothing is to be fetched but what is read.
        if !self.trees.guesses() {
            return;
        }
        let (mut search, mut taking) = (Search::default(), JoinSet::new());
        loop {
            for carrier in self.carriers(&mut search).await {
                let store = Arc::clone(&self);
                taking.spawn(async move {
                    let outcome = store.take_carried(&carrier).await;
                    ((carrier.id, carrier.contents), outcome)
                });
            }
            let next = search.next();
            let retry = async move {
                match next {
                    Some(next) => time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.carried.opened.notified() => {}
                Some(Ok((key, outcome))) = taking.join_next() => search.end(key, outcome, Instant::now()),
                () = retry => {}
            }
        }
    }

    /// Layers that may carry one, and that are to be looked at now.
    async fn carriers(&self, search: &mut Search) -> Vec<Carrier> {
        let records = self.records.lock().await;
        search.keep(&records);
        let planted = self.trees.planted();
        let (now, mut found) = (Instant::now(), Vec::new());
        for layer in records.layers.iter().filter(|layer| layer.tar.is_none()) {
            let Some(open) = planted.get(&layer.number).map(|planted| &planted.layer) else { continue };
            let may_carry = matches!(open.summary().format, Format::ZstdChunked | Format::Empty);
            if may_carry && search.begin(&(layer.id, layer.contents.clone()), now) {
                let (blob, contents) = (descriptor(&open.layer), layer.contents.clone());
                let (id, diff_id, layer) = (layer.id, layer.diff_id, Arc::clone(&open.contents));
                found.push(Carrier { id, contents, diff_id, blob, layer });
            }
        }
        found
    }

    /// Takes the one that a layer carries, if it does.
    async fn take_carried(&self, carrier: &Carrier) -> Outcome {
        // Before the permit: whose image is busy for ever keeps nobody else waiting.
        carrier.layer.wait_until_quiet(QUIET).await;
        let read = {
            // An error says that there are no permits any more: nobody closes them.
            let _permit = self.carried.reads.acquire().await;
            time::timeout(READ_WITHIN, carrier.read(self.paths.tar_splits())).await
        };
        let split = match read {
            Ok(Ok(Ok(Some(split)))) => split,
            Ok(Ok(Ok(None))) => return Outcome::InVain,
            Ok(Ok(Err(problem))) => return carrier.refused(&problem),
            Ok(Err(error)) => return Outcome::Failed(error.chain()),
            Err(_late) => return Outcome::Failed(format!("it did not come within {} s", READ_WITHIN.as_secs())),
        };
        match self.keep_carried(carrier, split).await {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error.chain()),
        }
    }

    async fn keep_carried(&self, carrier: &Carrier, split: TarSplit) -> Result<(), Error> {
        let staged = tokio::task::block_in_place(|| Staged::new(&self.paths, (split.file, split.tar_len)))?;
        let mut records = self.records.lock().await;
        if !records.layer(&carrier.id).is_some_and(|layer| carrier.is_of(layer)) {
            return Ok(());
        }
        tokio::task::block_in_place(|| {
            let mut changed = records.clone();
            self.take_tar_splits(&mut changed, [(carrier.id, staged)], false)?;
            self.commit(&mut records, changed)
        })
    }
}

impl Carrier {
    /// Whether that is still the layer that was found, and has no tar-split.
    fn is_of(&self, layer: &Layer) -> bool {
        layer.tar.is_none() && tar_splits::is_same(layer, &self.contents, &self.diff_id)
    }

    fn refused(&self, problem: &NoTarSplit) -> Outcome {
        let text = chain(problem);
        if problem.may_pass() {
            return Outcome::Failed(text);
        }
        tracing::warn!(layer = %self.blob.digest, problem = text, "podman cannot push this layer by the tar-split that it carries; `crfs store add --full` makes another");
        Outcome::InVain
    }

    /// One for podman, written without a name, if there is one. Wrong bytes are read once more, past caches.
    async fn read(&self, dir: PathBuf) -> Result<Result<Option<TarSplit>, NoTarSplit>, image::Error> {
        let may_be_wrong = |read: &Result<Result<_, NoTarSplit>, _>| match read {
            Ok(Err(problem)) if problem.may_be_wrong_bytes() => {
                tracing::debug!(layer = %self.blob.digest, problem = chain(problem), "reading the tar-split that it carries once more");
                true
            }
            _ => false,
        };
        once_more(self.layer.places(), may_be_wrong, |freshness| self.read_once(dir.clone(), freshness)).await
    }

    async fn read_once(
        &self,
        dir: PathBuf,
        freshness: Freshness,
    ) -> Result<Result<Option<TarSplit>, NoTarSplit>, image::Error> {
        let position = match self.find(freshness).await? {
            Ok(Some(position)) => position,
            none => return Ok(none.map(|_| None)),
        };
        if let Err(problem) = carried::check_stored(position.stored.len()) {
            return Ok(Err(problem));
        }
        // All of it would cost as much as `add --full`.
        let Some(stored) = self.layer.read_blob_quietly(position.stored, freshness).await? else {
            return Ok(Err(NoTarSplit::SentWhole));
        };
        let (blob, layer) = (self.blob.clone(), Arc::clone(&self.layer));
        let convert = move || {
            if let Err(problem) = carried::check_digest(&blob, &stored) {
                return Ok(Err(problem));
            }
            let entries = layer.index().entries()?;
            let file = tempfile::tempfile_in(&dir).map_err(|source| image::Error::TarSplit { dir, source })?;
            Ok(carried::convert(&stored, position.decoded, &entries, file).map(Some))
        };
        blocking(self.blob.digest, convert).await
    }

    /// Where the tar-split is, if there is one.
    async fn find(&self, freshness: Freshness) -> Result<Result<Option<TocPosition>, NoTarSplit>, image::Error> {
        match carried::find(&self.blob) {
            carried::Carried::At(position) => Ok(Ok(Some(position))),
            carried::Carried::SeeFooter(range) => {
                let footer = self.layer.read_blob_quietly(range, freshness).await?;
                Ok(footer.map(|footer| carried::in_footer(&self.blob, &footer)).ok_or(NoTarSplit::SentWhole))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::records::tests::layer;

    #[test]
    fn a_layer_is_looked_at_again_when_that_can_help() {
        let (now, key) = (Instant::now(), (Digest::of(b"a"), "a".to_owned()));
        let mut search = Search::default();
        assert!(search.begin(&key, now) && !search.begin(&key, now), "it is under way");
        search.end(key.clone(), Outcome::Done, now);
        assert!(search.begin(&key, now), "it was removed, and added again");
        for failures in 0..20 {
            search.end(key.clone(), Outcome::Failed(String::new()), now);
            let again = search.next().unwrap();
            assert_eq!(again - now, (FIRST_RETRY * (1 << failures.min(10))).min(LAST_RETRY));
            assert!(!search.begin(&key, now) && search.begin(&key, again));
        }
        search.end(key.clone(), Outcome::InVain, now);
        assert!(!search.begin(&key, now + LAST_RETRY) && search.next().is_none());
        let mut records = Records::default();
        let mut new = layer(&mut records, "a", None);
        new.contents = "other".to_owned();
        assert!(search.begin(&(new.id, new.contents.clone()), now), "another layer by that id");
        records.layers.push(new);
        search.keep(&records);
        assert_eq!(search.states.len(), 1);
        assert!(search.begin(&key, now));
    }
}
