//! Several caches over one directory are what several processes are: OFD locks belong to open files.
//!
//! The contents of a test layer name their own place: a byte tells the layer and the offset that it belongs to, so that bytes of elsewhere,
//! of nowhere (a hole) and of another time all show.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::dir::Dir;
use super::groups::Groups;
use super::stored::{self, Stored};
use super::{Cache, Disk, LAYOUT, LayerFile, State, clear, evict, layer_dir};
use crate::blob::{ByteRange, Digest, Documents};
use crate::index::{Identity, LayerKey};

const MIB: u64 = 1 << 20;

/// A layer of checks of many sizes, some of which share blocks of the disk, or reach into the next MiB.
struct Layer {
    number: u64,
    key: LayerKey,
    checks: Vec<ByteRange>,
    digests: Vec<Digest>,
}

impl Layer {
    fn new(number: u64, len: u64) -> Self {
        let key = LayerKey { blob: Digest::of(&number.to_le_bytes()), identity: Identity::Toc(Digest::of(b"toc")) };
        let sizes = [4096, 100, 12_345, 65_536, 700_001, 1, 30_000].into_iter().cycle();
        let (mut checks, mut start) = (Vec::new(), 0);
        for (turn, size) in sizes.enumerate() {
            if start + size > len {
                break;
            }
            checks.push(ByteRange { start, end: start + size });
            // Files start on their own block, the chunks of a file do not.
            start = if turn % 3 == 0 { (start + size).next_multiple_of(4096) } else { start + size };
        }
        let mut layer = Self { number, key, checks, digests: Vec::new() };
        layer.digests = layer.checks.iter().map(|range| Digest::of(&layer.bytes(*range))).collect();
        layer
    }

    fn groups(&self) -> Groups {
        let starts: Vec<u64> = self.checks.iter().map(|check| check.start).collect();
        Groups::new(self.checks.last().unwrap().end, &starts)
    }

    fn bytes(&self, range: ByteRange) -> Vec<u8> {
        (range.start..range.end).map(|at| ((at + self.number * 97) % 251 + 1) as u8).collect()
    }

    fn open(&self, cache: &Cache) -> LayerFile {
        cache.layer_file_of(Some(&self.key), self.groups(), false)
    }

    fn publish(&self, file: &LayerFile, check: u32) -> bool {
        let range = self.checks[check as usize];
        file.publish(check, range, None, |data| data.write_all_at(&self.bytes(range), range.start))
    }

    /// Reads a check as a reader does; says whether it was there. Wrong bytes fail the test.
    fn read(&self, file: &LayerFile, check: u32) -> bool {
        let range = self.checks[check as usize];
        let mut buffer = vec![0; range.len() as usize];
        let state = match file.read(check, range, &mut buffer) {
            State::Unverified => match file.verify(check, range, Some(self.digests[check as usize])) {
                State::Ready => file.read(check, range, &mut buffer),
                state => state,
            },
            state => state,
        };
        let is_there = state == State::Ready;
        let wrong = buffer.iter().zip(self.bytes(range)).position(|(byte, right)| *byte != right).filter(|_| is_there);
        let found =
            wrong.map(|at| (at, buffer[at], buffer[at..].iter().take_while(|byte| **byte == buffer[at]).count()));
        assert!(wrong.is_none(), "layer {}, {range}: at, byte, how many of it: {found:?}", self.number);
        file.touch(check);
        is_there
    }

    fn count(&self) -> u32 {
        self.checks.len() as u32
    }
}

/// A cache with something of each kind in it.
pub(super) fn filled(path: &Path) -> Cache {
    let cache = Cache::of_any_size(path);
    let layer = Layer::new(1, MIB);
    cache.put_index(&layer.key, b"an index");
    assert!(layer.publish(&layer.open(&cache), 0));
    cache.put(&Digest::of(b"a document"), b"a document");
    cache.remember("a name", &Digest::of(b"a document"));
    cache
}

fn du(path: &Path) -> u64 {
    let (above, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
    Dir::existing(above, name).unwrap().allocated(Path::new("")) + 4096
}

/// A flipped bit of a stored check.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn what_was_published_is_ready_here_and_unverified_elsewhere() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 5 * MIB);
    let (one, two) = (Cache::of_any_size(temp.path()), Cache::of_any_size(temp.path()));
    let (one, two) = (layer.open(&one), layer.open(&two));
    assert_eq!(one.state(4), State::Missing);
    assert!(layer.publish(&one, 4));
    assert_eq!((one.state(4), two.state(4), two.state(3)), (State::Ready, State::Unverified, State::Missing));
    assert!(layer.read(&two, 4));
    assert_eq!(two.state(4), State::Ready);
}

#[test]
fn damage_is_found_at_the_first_use_and_mended() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, MIB);
    let cache = Cache::of_any_size(temp.path());
    assert!(layer.publish(&layer.open(&cache), 2) && layer.publish(&layer.open(&cache), 3));
    flip(&temp.path().join(LAYOUT).join(layer_dir(&layer.key)).join("data"), layer.checks[2].start);
    let file = layer.open(&cache);
    assert!(!layer.read(&file, 2) && layer.read(&file, 3));
    assert_eq!(layer.open(&cache).state(2), State::Missing, "for all");
    assert!(layer.publish(&file, 2) && layer.read(&file, 2));
}

#[test]
fn what_another_process_evicts_is_missing_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 5 * MIB);
    let cache = Cache::of_any_size(temp.path());
    let file = layer.open(&cache);
    let last = layer.count() - 1;
    assert!((0..=last).all(|check| layer.publish(&file, check)));
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let stored = Stored::open(&dir, &layer_dir(&layer.key)).unwrap();
    assert!(stored.evict(1, std::time::Duration::ZERO).unwrap() >= MIB / 2);
    let groups = layer.groups();
    for check in 0..=last {
        assert_eq!(layer.read(&file, check), groups.of_check(check) != 1, "{check}");
    }
    let again = groups.checks_of(1).start;
    assert!(layer.publish(&file, again) && layer.read(&file, again) && !layer.read(&file, again + 1));
}

#[test]
fn whoever_reads_while_its_presence_is_replaced_reads_no_holes() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, MIB);
    let cache = Cache::of_any_size(temp.path());
    let file = layer.open(&cache);
    assert!(layer.publish(&file, 0) && layer.read(&file, 0));
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    dir.remove(&layer_dir(&layer.key).join("present")).unwrap();
    let other = layer.open(&cache);
    assert!(!layer.read(&other, 0) && layer.publish(&other, 1) && layer.read(&other, 1));
    evict::free(&dir, u64::MAX, 0, |_| ());
    assert!(!layer.read(&other, 1), "evicted");
    layer.read(&file, 0);
}

#[test]
fn a_read_waits_for_no_write() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 3 * MIB);
    let cache = Cache::of_size(temp.path(), 16 * MIB);
    let file = layer.open(&cache);
    let range = layer.checks[0];
    assert!(layer.publish(&file, 0));
    let fill = |disk| {
        let mut buffer = vec![0; range.len() as usize];
        file.read_within(0, range.start, &mut buffer, disk) && buffer == layer.bytes(range)
    };
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let told = || Stored::open(&dir, &layer_dir(&layer.key)).unwrap().present.uses()[0].last_use;
    let before = told();
    assert!(!file.is_use_news(0), "stored just now");
    // The clock goes on by what is leased.
    let _room = cache.store.as_ref().unwrap().room(4 * MIB).unwrap();
    // Not every filesystem knows RWF_NOWAIT.
    fill(Disk::InMemory);
    assert!(file.is_use_news(0) && told() == before);
    file.touch(0);
    assert!(!file.is_use_news(0) && told() > before);
    let (_room, before) = (cache.store.as_ref().unwrap().room(4 * MIB).unwrap(), told());
    // Nothing is written while somebody waits for what is read.
    assert!(fill(Disk::MayWait) && file.read(0, range, &mut vec![0; range.len() as usize]) == State::Ready);
    assert!(file.is_use_news(0) && told() == before);
    assert!(!file.is_use_news(layer.count() - 1), "it is not there");
}

#[test]
fn what_takes_room_and_nothing_tells_of_goes_with_the_next_eviction() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 4 * MIB);
    let cache = Cache::of_any_size(temp.path());
    let file = layer.open(&cache);
    assert!((0..layer.count()).all(|check| layer.publish(&file, check)));
    drop(file);
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let stored = Stored::open(&dir, &layer_dir(&layer.key)).unwrap();
    [0, 2].into_iter().for_each(|group| stored.present.set_last_use(group, 0).unwrap());
    let told = |stored: &Stored| stored.present.uses().iter().map(|used| used.group).collect::<Vec<_>>();
    assert_eq!(told(&stored), [1, 3]);
    let _in_use = layer.open(&cache);
    assert_eq!(told(&stored), [0, 1, 2, 3]);
    evict::free(&dir, u64::MAX, 0, |_| ());
    assert!(told(&stored).is_empty());
    drop(layer.open(&cache));
    assert!(told(&stored).is_empty(), "there is nothing but blocks that groups share");
    assert!(stored.data.metadata().unwrap().blocks() * 512 < MIB);
}

#[test]
fn a_layer_that_is_opened_while_there_is_no_room_is_kept_when_there_is() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_size(temp.path(), 4 * MIB);
    let mut spool = cache.spool().unwrap();
    while spool.append(&[1; 4096]).is_ok() {}
    let layer = Layer::new(1, MIB);
    let file = layer.open(&cache);
    assert!(!layer.publish(&file, 0));
    drop(spool);
    assert!(layer.publish(&file, 0) && layer.read(&file, 0));
}

#[test]
fn the_least_recently_used_goes_first_whatever_layer_it_is_of() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_size(temp.path(), 16 * MIB);
    let layers = [1, 2, 3].map(|number| Layer::new(number, 7 * MIB));
    let files = layers.each_ref().map(|layer| layer.open(&cache));
    for check in 0..layers[0].count() {
        assert!(layers[0].publish(&files[0], check) && layers[1].publish(&files[1], check));
        assert!(layers[0].read(&files[0], 0));
    }
    let used = |file: &LayerFile, layer: &Layer| (0..layer.count()).all(|check| layer.read(file, check));
    assert!(used(&files[0], &layers[0]) && used(&files[1], &layers[1]));
    assert!((0..layers[2].count()).all(|check| used(&files[0], &layers[0]) && layers[2].publish(&files[2], check)));
    assert!(used(&files[0], &layers[0]), "in use all the time");
    assert!(!used(&files[1], &layers[1]));
}

#[test]
fn layers_that_nobody_uses_go_before_there_is_no_room_for_an_index() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_size(temp.path(), 2 * MIB);
    let keys = [1, 2, 3, 4].map(|number| Layer::new(number, 4096 * 4));
    let used = keys[0].open(&cache);
    for layer in &keys {
        cache.put_index(&layer.key, &[7; 700_000]);
        drop(layer.open(&cache));
    }
    let there: Vec<bool> = keys.iter().map(|layer| cache.index(&layer.key).is_some()).collect();
    assert!(there[0] && there[3] && there.contains(&false), "{there:?}");
    assert!(du(temp.path()) <= 2 * MIB);
    drop(used);
}

#[test]
fn private_layers_are_seen_by_nobody_else_but_count() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_size(temp.path(), 8 * MIB);
    let layer = Layer::new(1, 6 * MIB);
    let file = cache.layer_file_of(None, layer.groups(), false);
    assert!((0..layer.count()).all(|check| layer.publish(&file, check) && layer.read(&file, check)));
    assert_eq!(cache.layer_file_of(None, layer.groups(), false).state(0), State::Missing);
    assert!(du(temp.path()) < MIB, "nothing has a name");
    let other = Cache::of_size(temp.path(), 8 * MIB);
    let second = layer.open(&other);
    let kept = |file: &LayerFile| {
        (0..layer.count()).for_each(|check| {
            layer.publish(file, check);
        });
        (0..layer.count()).filter(|check| layer.read(file, *check)).count()
    };
    let some = kept(&second);
    assert!(some < layer.count() as usize, "there was no room for all");
    drop(file);
    drop(cache);
    let more = Cache::of_size(temp.path(), 8 * MIB);
    assert!(kept(&layer.open(&more)) > some);
}

#[test]
fn spooled_contents_count_as_long_as_they_are_there() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_size(temp.path(), 4 * MIB);
    let mut spool = cache.spool().unwrap();
    assert!((0..3).all(|_| spool.append(&vec![1; MIB as usize]).is_ok()));
    assert!(cache.spool().unwrap().append(&vec![1; 2 * MIB as usize]).is_err());
    let mut byte = [0];
    spool.read_exact_at(&mut byte, 3 * MIB - 1).unwrap();
    drop(spool);
    assert!(cache.spool().unwrap().append(&vec![1; 2 * MIB as usize]).is_ok());
}

#[test]
fn identities_do_not_share_contents() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_any_size(temp.path());
    let layer = Layer::new(1, MIB);
    assert!(layer.publish(&layer.open(&cache), 0));
    let own = LayerKey { identity: Identity::Own, ..layer.key };
    assert_eq!(cache.layer_file_of(Some(&own), layer.groups(), false).state(0), State::Missing);
}

#[test]
fn a_stopped_process_holds_nobody_up_for_long() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, MIB);
    let cache = Cache::of_any_size(temp.path());
    let file = layer.open(&cache);
    assert!(layer.publish(&file, 0));
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let stopped = Stored::open(&dir, &layer_dir(&layer.key)).unwrap();
    let held = stopped.present.lock(std::time::Duration::ZERO).unwrap();
    assert!((1..layer.count()).all(|check| !layer.publish(&file, check)), "not kept");
    assert!(layer.read(&file, 0));
    assert_eq!(evict::free(&dir, u64::MAX, 0, |_| ()), 0, "passed over");
    let cleared = clear(temp.path(), true).unwrap();
    assert_eq!((cleared.in_use, cleared.held_up), (1, 1));
    drop(held);
    assert!(layer.publish(&file, 1));
}

#[test]
fn a_layer_that_others_store_into_is_evicted_from_all_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 5 * MIB);
    let cache = Cache::of_any_size(temp.path());
    let file = layer.open(&cache);
    assert!((0..layer.count()).all(|check| layer.publish(&file, check)));
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let storing = Stored::open(&dir, &layer_dir(&layer.key)).unwrap();
    let held = storing.present.lock(Duration::ZERO).unwrap();
    let freed = thread::scope(|scope| {
        let evicting = scope.spawn(|| evict::free_within(Duration::from_secs(60), &dir, 1, 0, |_| ()));
        thread::sleep(Duration::from_millis(20));
        drop(held);
        evicting.join().unwrap()
    });
    assert!(freed > 0);
}

#[test]
fn without_a_disk_nothing_is_kept_and_nothing_fails() {
    let cache = Cache::of_any_size(Path::new("/proc/nowhere"));
    let layer = Layer::new(1, MIB);
    let file = layer.open(&cache);
    assert!(!layer.publish(&file, 0) && !layer.read(&file, 0));
    let none = tempfile::tempdir().unwrap();
    let nothing = Cache::of_size(none.path(), 0);
    let file = layer.open(&nothing);
    assert!(!layer.publish(&file, 0) && !layer.read(&file, 0));
}

#[test]
fn clear_takes_contents_and_leaves_what_is_in_use_working() {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::of_any_size(temp.path());
    let (used, unused) = (Layer::new(1, 3 * MIB), Layer::new(2, 3 * MIB));
    let document = Digest::of(b"{}");
    cache.put(&document, b"{}");
    let file = used.open(&cache);
    for layer in [&used, &unused] {
        cache.put_index(&layer.key, b"index");
        let file = layer.open(&cache);
        assert!((0..layer.count()).all(|check| layer.publish(&file, check)));
    }
    let cleared = clear(temp.path(), true).unwrap();
    assert!(cleared.in_use == 1 && cleared.freed > 4 * MIB && cleared.total < MIB, "{cleared:?}");
    assert!(cache.index(&used.key).is_some() && cache.index(&unused.key).is_some() && cache.get(&document).is_some());
    assert!((0..used.count()).all(|check| !used.read(&file, check)));
    assert!(used.publish(&file, 0) && used.read(&file, 0));

    let cleared = clear(temp.path(), false).unwrap();
    assert!(cleared.in_use == 1 && cleared.total < MIB, "{cleared:?}");
    assert!(cache.index(&used.key).is_some() && cache.index(&unused.key).is_none() && cache.get(&document).is_none());
    drop(file);
    assert_eq!(clear(temp.path(), false).unwrap().in_use, 0);
    assert!(stored::layers(&Dir::existing(temp.path(), LAYOUT).unwrap()).is_empty());
    assert_eq!(clear(&temp.path().join("no"), false).unwrap().total, 0);
}

/// What is known to be there is known by one number, which another process changes when it evicts, and this one when it finds damage.
#[test]
fn what_goes_shows_by_one_look_whoever_takes_it() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 3 * MIB);
    let caches = [Cache::of_size(temp.path(), 100 * MIB), Cache::of_size(temp.path(), 100 * MIB)];
    let files = caches.each_ref().map(|cache| layer.open(cache));
    assert_eq!(files[0].first_missing(0..layer.count()), Some(0));
    assert!((0..layer.count()).all(|check| layer.publish(&files[0], check)));
    let before = files.each_ref().map(LayerFile::epoch);
    assert!(files.iter().all(|file| file.first_missing(0..layer.count()).is_none()), "verified here or not");
    assert_eq!(files.each_ref().map(LayerFile::epoch), before, "to store and to look changes nothing");

    let stored = Stored::open(&Dir::existing(temp.path(), LAYOUT).unwrap(), &layer_dir(&layer.key)).unwrap();
    assert!(stored.evict(1, Duration::ZERO).is_some_and(|freed| freed > 0));
    let gone = layer.groups().checks_of(1);
    for (file, before) in files.iter().zip(before) {
        assert_ne!(file.epoch(), before);
        assert_eq!(file.first_missing(0..layer.count()), Some(gone.start));
        assert_eq!(file.first_missing(gone.end..layer.count()), None);
    }

    flip(&temp.path().join(LAYOUT).join(layer_dir(&layer.key)).join("data"), layer.checks[0].start);
    let before = files[1].epoch();
    assert!(!layer.read(&files[1], 0));
    assert_ne!(files[1].epoch(), before);
    assert_eq!(files[1].first_missing(0..1), Some(0));
    // Each of these is what a look at each check says.
    for file in &files {
        let missing = (0..layer.count()).find(|check| file.state(*check) == State::Missing);
        assert_eq!(file.first_missing(0..layer.count()), missing);
    }
}

/// Between the first and the last step of an eviction a reader finds nothing: what it verified then would be gone the next moment.
#[test]
fn nothing_is_verified_of_what_is_being_evicted() {
    let temp = tempfile::tempdir().unwrap();
    let layer = Layer::new(1, 3 * MIB);
    let caches = [Cache::of_size(temp.path(), 100 * MIB), Cache::of_size(temp.path(), 100 * MIB)];
    let files = caches.each_ref().map(|cache| layer.open(cache));
    assert!(layer.publish(&files[0], 0) && layer.read(&files[0], 0) && layer.read(&files[1], 0));
    let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
    let stored = Stored::open(&dir, &layer_dir(&layer.key)).unwrap();
    stored.present.end_generation(0).unwrap();
    assert!(stored.present.is_there(0), "it is not cleared yet");
    for file in &files {
        assert_eq!(file.state(0), State::Missing);
        assert_eq!(file.verify(0, layer.checks[0], Some(layer.digests[0])), State::Missing);
    }
    assert!(stored.evict(0, std::time::Duration::ZERO).is_some_and(|freed| freed > 0));
    assert!(files.iter().all(|file| !layer.read(file, 0)));
    assert!(layer.publish(&files[1], 0) && files.iter().all(|file| layer.read(file, 0)));
}

/// A generator of numbers that are the same in every run (Marsaglia's xorshift64).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Processes that read, store and evict at random: whoever reads something reads what belongs there, and the limit holds.
#[test]
fn no_reader_ever_sees_evicted_bytes_and_the_limit_holds() {
    const LIMIT: u64 = 12 * MIB;
    let temp = tempfile::tempdir().unwrap();
    let layers = [1, 2, 3].map(|number| Layer::new(number, 9 * MIB));
    let (done, hits, worst) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // Nobody changes anything while it is counted: a walk would meet bytes twice that are evicted behind it and stored before it.
    let at_work = RwLock::new(());
    thread::scope(|scope| {
        let process = |seed: u64| {
            let (layers, hits, path, at_work) = (&layers, &hits, temp.path(), &at_work);
            scope.spawn(move || {
                let cache = Cache::of_size(path, LIMIT);
                let files = layers.each_ref().map(|layer| layer.open(&cache));
                thread::scope(|threads| {
                    for thread in 0..2 {
                        let (files, mut state) = (&files, seed * 7919 + thread + 1);
                        threads.spawn(move || {
                            for _ in 0..1500 {
                                let number = (random(&mut state) % 3) as usize;
                                let (layer, file) = (&layers[number], &files[number]);
                                let check = (random(&mut state) % u64::from(layer.count())) as u32;
                                let _at_work = at_work.read().unwrap();
                                if layer.read(file, check) {
                                    hits.fetch_add(1, Ordering::Relaxed);
                                } else {
                                    layer.publish(file, check);
                                }
                            }
                        });
                    }
                });
            })
        };
        let processes: Vec<_> = (1..=4).map(process).collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let counting = at_work.write().unwrap();
                worst.fetch_max(du(temp.path()), Ordering::Relaxed);
                drop(counting);
                thread::yield_now();
            }
        });
        let ended: Vec<_> = processes.into_iter().map(|process| process.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "wrong bytes");
    });
    let (hits, worst) = (hits.into_inner(), worst.into_inner());
    assert!(hits > 500, "{hits} reads found something");
    assert!(worst <= LIMIT + LIMIT / 20 && worst > LIMIT / 2, "du was {worst} at times");
    let fresh = Cache::of_size(temp.path(), LIMIT);
    for layer in &layers {
        let file = layer.open(&fresh);
        for (check, (range, digest)) in layer.checks.iter().zip(&layer.digests).enumerate() {
            if file.state(check as u32) == State::Unverified {
                assert_eq!(
                    file.verify(check as u32, *range, Some(*digest)),
                    State::Ready,
                    "{range} was stored and is wrong"
                );
            }
        }
    }
}
