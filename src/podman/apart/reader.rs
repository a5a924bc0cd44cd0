//! The reader's side. All of its threads end with its standard input: then nobody wants any more what it does.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::words::{Ask, Came, Index, Open, Said, Split};
use super::{Error, SIGN_OF_LIFE};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::cache::Cache;
use crate::image::engine::{Common, Engine, RESOLVE_WITHIN, Until};
use crate::image::layer::OpenLayer;
use crate::image::look::runtime;
use crate::image::tar_splits::keep_usable;
use crate::image::{self, Report};
use crate::index::{LayerKey, TarSplit};
use crate::metrics::METRICS;
use crate::podman::trees;
use crate::registry::Hosts;
use crate::serve::{self, log, signals};
use crate::sys;
use crate::threads::{self, Work};

/// Bytes of an index that are copied at a time.
const STEP: u64 = 1 << 20;

/// The hidden subcommand.
///
/// # Errors
/// Where it is told nothing that it understands, or there can be no threads.
pub fn read() -> Result<(), Error> {
    sys::keep_heap_small();
    // The kernel is to take this process where memory runs out, and not the server or whoever uses its layers. One that is told otherwise does without.
    let _told = fs::write("/proc/self/oom_score_adj", "1000");
    signals::block_meaningless();
    // What a terminal sends is for the server. Fails only for the leader of a process group.
    let _own_session = nix::unistd::setsid();
    let _only_for_ps = nix::sys::prctl::set_name(c"crfs");
    let failed = |source| Error::from(image::Error::Runtime { source });
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(failed)?;
    let asked = serde_json::from_str(&line).map_err(|source| serve::Error::Handover { source })?;
    let Ask::Open(open) = asked else { return Ok(()) };
    log::start_for_server(&open.log);
    let asks = listen().map_err(failed)?;
    let runtime = runtime()?;
    runtime.block_on(answer(*open, asks));
    Ok(())
}

/// What else is asked for. The process ends with it.
fn listen() -> io::Result<UnboundedReceiver<Ask>> {
    let (ask, asked) = unbounded_channel();
    threads::spawn("server-watch", move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                // Whoever answers lives as long as the process.
                Ok(said) => drop(ask.send(said)),
                Err(error) => tracing::warn!(%error, "the server said something unknown"),
            }
        }
        std::process::exit(0);
    })?;
    Ok(asked)
}

fn tell(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}

/// What came of a request, behind all that was counted for it.
fn tell_all(said: &Said) -> io::Result<()> {
    tell(&Said::Working(METRICS.counts()))?;
    tell(said)
}

/// Answers for as long as the server wants something. A server that hears nothing any more has ended.
async fn answer(open: Open, mut asks: UnboundedReceiver<Ask>) {
    let signs = tokio::spawn(async {
        loop {
            let _heard = tell(&Said::Working(METRICS.counts()));
            tokio::time::sleep(SIGN_OF_LIFE).await;
        }
    });
    let report: Report = Arc::new(|event| tell(&Said::Event(event.clone())));
    let mut reading = Reading::default();
    let said = reading.open(open, &report).await.unwrap_or_else(|error| failed(None, &error));
    let _heard = tell_all(&said);
    while let Some(Ask::Split(wanted)) = asks.recv().await {
        let said = reading.split(&wanted, &report).await;
        let _heard = tell_all(&said);
    }
    signs.abort();
}

fn failed(layer: Option<usize>, error: &image::Error) -> Said {
    Said::Failed { layer, message: error.chain() }
}

/// What the reader has open: until the server has it, too, nothing of it goes from the cache.
#[derive(Default)]
struct Reading {
    engine: Option<Arc<Engine>>,
    /// By their numbers.
    layers: Vec<(usize, OpenLayer)>,
    /// What the server may open.
    files: Vec<File>,
    is_full: bool,
}

impl Reading {
    async fn open(&mut self, open: Open, report: &Report) -> Result<Said, image::Error> {
        let Open { source, manifest, wanted, adds, is_lazy, .. } = open;
        let common = Common::new(Cache::open(&source.cache_dir, source.cache_size), Hosts::default());
        let dir = adds.as_ref().map(|adds| PathBuf::from(&adds.tar_splits));
        let engine = Engine::sharing(common, &source, RESOLVE_WITHIN, dir)?;
        let engine = Arc::new(if is_lazy { engine.without_full_reads() } else { engine });
        self.engine = Some(Arc::clone(&engine));
        self.is_full = adds.as_ref().is_some_and(|adds| adds.full);
        let image = Arc::new(engine.resolve_pinned(Bytes::from(manifest)).await?);
        let until = if adds.is_some() { Until::OneIsRefused } else { Until::AllAreKnown };
        let is_image = wanted.len() == image.layers.len();
        let wanted = wanted.into_iter().filter_map(|number| Some((number, image.layers.get(number)?.clone())));
        let mut came = BTreeMap::new();
        for (number, result) in engine.open_each(&image, wanted.collect(), until, report).await {
            match result {
                Ok(layer) => self.layers.push((number, layer)),
                Err(error) => drop(came.insert(number, refused(&error))),
            }
        }
        // An image that is refused anyway is not tried further.
        if until == Until::AllAreKnown || came.is_empty() {
            if let Err((number, error)) = self.finish(&engine, is_image).await {
                came.insert(number, refused(&error));
            }
        }
        for (number, opened) in self.hand_over(engine.cache()).await? {
            came.entry(number).or_insert(opened);
        }
        Ok(Said::Opened(came))
    }

    /// All else that a server does with open layers and that depends on what is in them.
    async fn finish(&mut self, engine: &Arc<Engine>, is_image: bool) -> Result<(), (usize, image::Error)> {
        let (numbers, mut layers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.layers).into_iter().unzip();
        let at = |(place, error): (usize, _)| (numbers.get(place).copied().unwrap_or_default(), error);
        let usable = if self.is_full { Ok(()) } else { keep_usable(&mut layers).await };
        let trying = threads::run(Work::Opening, move || {
            let tried = trees::try_out(&layers, is_image);
            (layers, tried)
        });
        let lost = |lost| (0, image::Error::Merge { source: lost });
        let (layers, tried) = trying.await.map_err(|error| at(lost(error)))?;
        self.layers = numbers.iter().copied().zip(layers).collect();
        usable.and(tried).map_err(at)?;
        if !self.is_full {
            self.keep_contents(engine).await;
        }
        Ok(())
    }

    /// Keeps what came whole: the server has nothing else of it.
    async fn keep_contents(&self, engine: &Engine) {
        for (_, layer) in self.layers.iter().filter(|(_, layer)| layer.whole && layer.identity.is_some()) {
            if engine.cache().path().is_some() {
                layer.contents.keep_all().await;
            }
        }
    }

    /// What the server needs to open the layers as they are open here.
    async fn hand_over(&mut self, cache: &Cache) -> Result<Vec<(usize, Came)>, image::Error> {
        let mut handed = HashMap::new();
        let mut opened = Vec::new();
        for (number, layer) in &mut self.layers {
            let key = layer.identity.map(|identity| LayerKey { blob: layer.layer.digest, identity });
            let index = match handed.get(&Arc::as_ptr(&layer.contents)) {
                Some(index) => *index,
                None if key.is_some_and(|key| cache.index(&key).is_some()) => None,
                None => {
                    let (source, digest) = (layer.contents.index().source(), layer.layer.digest);
                    let copying = threads::run(Work::Opening, move || copy(&*source));
                    let copied = copying.await.map_err(|source| image::Error::LayerTask { layer: digest, source })?;
                    let file = copied.map_err(|source| image::Error::Handed { layer: digest, source })?;
                    Some(Index { identity: layer.identity, trust: layer.trust, file: keep(&mut self.files, file) })
                }
            };
            handed.insert(Arc::as_ptr(&layer.contents), index);
            let made = if self.is_full { None } else { layer.tar_split.take() };
            let split = made.and_then(Result::ok);
            let split = split.map(|made| Split { file: keep(&mut self.files, made.file), tar_len: made.tar_len });
            opened.push((*number, Came::Open { index, split }));
        }
        Ok(opened)
    }

    async fn split(&mut self, wanted: &BTreeMap<usize, Digest>, report: &Report) -> Said {
        let Some(engine) = self.engine.clone() else { return Said::Split(BTreeMap::new()) };
        let (numbers, mut layers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.layers).into_iter().unzip();
        // Of an image that is added all are open, so that a layer's place is its number.
        let split = engine.split_each(&mut layers, wanted, report).await;
        self.layers = numbers.into_iter().zip(layers).collect();
        self.keep_contents(&engine).await;
        if let Err((number, error)) = split {
            return failed(Some(number), &error);
        }
        let made = self.layers.iter_mut().filter_map(|(number, layer)| Some((*number, layer.tar_split.take()?.ok()?)));
        let made: Vec<_> = made.collect();
        let split = |made: TarSplit| Split { tar_len: made.tar_len, file: keep(&mut self.files, made.file) };
        let (numbers, made): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        Said::Split(numbers.into_iter().zip(made.into_iter().map(split)).collect())
    }
}

/// Keeps a file open, and gives the number of its descriptor.
fn keep(files: &mut Vec<File>, file: File) -> RawFd {
    let number = file.as_raw_fd();
    files.push(file);
    number
}

fn refused(error: &image::Error) -> Came {
    Came::Refused { message: error.chain(), not_lazy: matches!(error, image::Error::NotLazy { .. }) }
}

/// An index in a file without a name, in memory: no disk may have room for it.
fn copy(source: &dyn ByteSource) -> io::Result<File> {
    // Where vm.memfd_noexec wants it so; Linux before 6.3 does not know it.
    let sealed = memfd_create(c"index", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL);
    let mut file = File::from(sealed.or_else(|_| memfd_create(c"index", MemfdFlags::CLOEXEC))?);
    let (size, mut start) = (source.size(), 0);
    while start < size {
        let end = size.min(start.saturating_add(STEP));
        file.write_all(&source.read_at(ByteRange { start, end }).map_err(io::Error::other)?)?;
        start = end;
    }
    Ok(file)
}
