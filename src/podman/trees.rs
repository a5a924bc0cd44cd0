//! What the FUSE mount at `overlay/` shows: the layers that are open, each with what podman wants beside it.
//!
//! Numbers: 1 is the root, 2 is `l/`; a layer's number is the upper half of all inode numbers that belong to it, so that they are the same after
//! a restart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::contents::{self, LayerContents, Part, Wants};
use super::lists;
use super::records::{Facts, Image, PulledLayer, Records};
use crate::blob::Digest;
use crate::fetch;
use crate::fs::forest::asked::{self, Asked};
use crate::fs::forest::{self, Forest, Grown, Made};
use crate::fs::tree::{OpaqueXattr, Tree};
use crate::fs::view::{Contents, View};
use crate::image;
use crate::image::layer::OpenLayer;
use crate::index::Holes;
use crate::serve::service::{Activity, distinct};
use crate::sys;

const LINKS: u64 = 2;

/// The directory of what podman asks for while it pulls (layers.rs).
pub(super) const LAYERS: &[u8] = b"layers";

/// That of a server that has no layers for podman, where one before it had some.
const NO_LAYERS: u64 = 3;

/// The directory of layers that something else than podman has, by their numbers: names that are as short as a list of many lower directories needs.
pub(super) const HELD: &str = "n";
const HELD_LAYERS: u64 = 4;

/// What `layers` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Empty,
    Asked,
}

/// What is made for each layer, by its place.
const DIRECTORY: u8 = 0;
const LINK_FILE: u8 = 1;
const LOWER_FILE: u8 = 2;
const SYMLINK: u8 = 3;
const MERGED: u8 = 4;

/// A layer that can be read.
pub(super) struct Planted {
    id: Digest,
    contents: String,
    view: Arc<View>,
    tree: Arc<Tree>,
    facts: Facts,
    shape: Digest,
    pub(super) layer: OpenLayer,
    read: Arc<LayerContents>,
}

/// All layers that are open, and what is shown of them.
pub(super) struct Trees {
    forest: Arc<Forest>,
    planted: Mutex<HashMap<u32, Planted>>,
    /// How many images the records have that were shown last.
    images: AtomicUsize,
    /// What was done by layers that are closed.
    past: Mutex<Activity>,
    /// The highest number that a layer has had: the kernel may remember what it stood for, whatever became of the layer.
    highest: AtomicU32,
    /// Who joins layers to images, if anybody does.
    wants: Option<Wants>,
    /// What podman finds where it asks for layers of images that it pulls.
    place: Mutex<Place>,
}

/// What is needed to serve a layer, and what podman is to know of it.
pub(super) struct Prepared {
    pub(super) tree: Arc<Tree>,
    holes: Holes,
    facts: Facts,
    /// What tells the tree from others.
    pub(super) shape: Digest,
}

/// One layer as a lower directory above those layers, the lowest first, where they are known. Its root has the attributes of the root
/// below it where it says nothing of its own root. Takes a while, and waits for others that build: not for whoever has the records.
pub(super) fn prepare(layer: &OpenLayer, lowers: Option<&[Arc<Tree>]>) -> Result<Prepared, image::Error> {
    let index = layer.contents.index();
    let (entries, holes) = (index.entries()?, index.holes()?);
    let lowers = lowers.map(|lowers| lowers.iter().map(AsRef::as_ref).collect());
    let tree = Tree::single_over(&entries, OpaqueXattr::Both, lowers, index.budget())?;
    let (users, groups) = tree.owners();
    let root = tree.attr(tree.root()).map_or([0o755, 0, 0], |root| [root.mode.into(), root.uid, root.gid]);
    let (users, groups) = (users.into_iter().collect(), groups.into_iter().collect());
    let facts = Facts { size: tree.totals().1, users, groups, root };
    let shape = tree.fingerprint();
    Ok(Prepared { tree: Arc::new(tree), holes, facts, shape })
}

/// Makes all that a server makes of layers, the lowest first, and lets it go again; those that are all of an image are joined, too. Takes a while.
///
/// # Errors
/// Where a layer cannot be served, with its place.
pub(super) fn try_out(layers: &[OpenLayer], is_image: bool) -> Result<(), (usize, image::Error)> {
    let (mut below, mut holes, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for (place, layer) in layers.iter().enumerate() {
        let prepared = prepare(layer, is_image.then_some(&below[..])).map_err(|error| (place, error))?;
        let tree = Arc::clone(&prepared.tree);
        let contents = LayerContents::new(0, Arc::clone(&layer.contents), Arc::clone(&tree), None);
        parts.push(Part { contents, is_own: false });
        holes.push(prepared.holes);
        below.push(tree);
    }
    if is_image {
        // A server does without where it cannot be done.
        let _unjoined = contents::join(&parts, Vec::new());
    }
    Ok(())
}

impl Trees {
    pub(super) fn new(wants: Option<Wants>) -> Self {
        let forest = Forest::store(grown(&Records::default(), &HashMap::new(), Place::Nowhere));
        let (planted, images, past, highest, place) = Default::default();
        Self { forest: Arc::new(forest), planted, images, past, highest, wants, place }
    }

    pub(super) fn forest(&self) -> Arc<Forest> {
        Arc::clone(&self.forest)
    }

    /// Makes a layer readable by its number, from now on. Gives what podman is told of it.
    pub(super) fn plant(
        &self,
        number: u32,
        (id, contents): (Digest, String),
        layer: OpenLayer,
        prepared: Prepared,
    ) -> Facts {
        let Prepared { tree, holes, facts, shape } = prepared;
        let (read, wants) = (Arc::clone(&layer.contents), self.wants.clone());
        let read = LayerContents::new(number, read, Arc::clone(&tree), wants);
        let view = View::new(Arc::clone(&tree), Arc::clone(&read) as Arc<dyn Contents>).with_holes(vec![holes]);
        let view = Arc::new(view);
        self.highest.fetch_max(number, Ordering::Relaxed);
        let planted = Planted { id, contents, view, tree, facts: facts.clone(), shape, layer, read };
        self.planted().insert(number, planted);
        facts
    }

    /// Whether more is fetched than what is read.
    pub(super) const fn guesses(&self) -> bool {
        self.wants.is_some()
    }

    /// Lets the layers of an image be read as its parts; those of it that are not open are left out. Takes a while.
    pub(super) fn join(&self, records: &Records, image: &Image, command: Vec<Vec<String>>) -> Result<(), image::Error> {
        let parts: Vec<_> = {
            let planted = self.planted();
            let part = |id: &Digest| {
                let contents = Arc::clone(&planted.get(&records.layer(id)?.number)?.read);
                let others = |other: &&Image| other.id != image.id && other.layers.contains(id);
                Some(Part { contents, is_own: !records.images.iter().any(|other| others(&other)) })
            };
            image.layers.iter().filter_map(part).collect()
        };
        contents::join(&parts, command)
    }

    /// The same of those by these numbers, the lowest first. `is_own`: whether no other image has a layer.
    pub(super) fn join_numbers(
        &self,
        numbers: &[u32],
        is_own: impl Fn(u32) -> bool,
        command: Vec<Vec<String>>,
    ) -> Result<(), image::Error> {
        let parts: Vec<_> = {
            let planted = self.planted();
            let part =
                |number: &u32| Some(Part { contents: Arc::clone(&planted.get(number)?.read), is_own: is_own(*number) });
            numbers.iter().filter_map(part).collect()
        };
        contents::join(&parts, command)
    }

    /// The number of a layer that was there before, whether or not it still is.
    pub(super) fn number(&self, id: &Digest, contents: &str, shape: &Digest) -> Option<u32> {
        let planted = self.planted();
        let is_it = |planted: &Planted| planted.id == *id && planted.contents == contents && planted.shape == *shape;
        let found = planted.iter().find(|(_, planted)| is_it(planted));
        found.map(|(number, _)| *number)
    }

    /// Whether a layer has had this number since the server began.
    pub(super) fn was_given(&self, number: u32) -> bool {
        number <= self.highest.load(Ordering::Relaxed)
    }

    pub(super) fn is_open(&self, number: u32) -> bool {
        self.planted().contains_key(&number)
    }

    /// What podman is told of a layer that is open.
    pub(super) fn facts(&self, number: u32) -> Option<Facts> {
        self.planted().get(&number).map(|planted| planted.facts.clone())
    }

    /// What tells the trees of all that are open from others, by their numbers.
    pub(super) fn shapes(&self) -> Vec<(u32, Digest)> {
        self.planted().iter().map(|(number, planted)| (*number, planted.shape)).collect()
    }

    /// Whether the kernel may know a layer by that number.
    pub(super) fn is_remembered(&self, number: u32) -> bool {
        self.forest.is_remembered(number)
    }

    /// Closes what nobody was shown.
    pub(super) fn close(&self, numbers: &[u32]) {
        self.planted().retain(|number, _| !numbers.contains(number));
    }

    pub(super) fn tree(&self, number: u32) -> Option<Arc<Tree>> {
        self.planted().get(&number).map(|planted| Arc::clone(&planted.tree))
    }

    /// The trees of a layer and of all below it, the lowest first; `None` where one of them is not open.
    pub(super) fn chain(&self, records: &Records, top: Option<&Digest>) -> Option<Vec<Arc<Tree>>> {
        let (planted, mut chain, mut next) = (self.planted(), Vec::new(), top);
        while let Some(id) = next {
            let layer = records.all_of(id).find(|layer| planted.contains_key(&layer.number))?;
            chain.push(Arc::clone(&planted.get(&layer.number)?.tree));
            next = layer.parent.as_ref();
        }
        chain.reverse();
        Some(chain)
    }

    /// Those that are open and that the records do not have: their ids.
    pub(super) fn left_over(&self, records: &Records) -> Vec<Digest> {
        let kept = kept(records);
        self.planted().iter().filter(|(number, _)| !kept.contains(number)).map(|(_, planted)| planted.id).collect()
    }

    /// Closes those of which the kernel knows nothing any more: what it still knows somebody may have open. Whatever they have taken is given back.
    pub(super) fn close_left_over(&self, records: &Records) {
        let kept = kept(records);
        let is_over = |number: &u32| !kept.contains(number) && !self.forest.is_remembered(*number);
        let closed: Vec<_> = {
            let mut planted = self.planted();
            let over: Vec<_> = planted.keys().copied().filter(is_over).collect();
            over.iter().filter_map(|number| planted.remove(number)).collect()
        };
        if !closed.is_empty() {
            self.keep_activity(&closed);
            self.show(records);
            drop(closed);
            sys::give_back_heap();
        }
    }

    /// Has podman's lookups answered, from the next time that something is shown.
    pub(super) fn answer_by(&self, asked: Arc<dyn Asked>) {
        self.forest.answer_by(asked);
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::Asked;
    }

    /// Has podman find nothing: it fails altogether where there is no directory.
    pub(super) fn answer_nothing(&self) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::Empty;
    }

    /// Shows what the records have.
    pub(super) fn show(&self, records: &Records) {
        let grown = grown(records, &self.planted(), *self.place.lock().unwrap_or_else(PoisonError::into_inner));
        self.images.store(records.images.len(), Ordering::Relaxed);
        self.forest.grow(grown);
    }

    /// How many images there are.
    pub(super) fn images(&self) -> usize {
        self.images.load(Ordering::Relaxed)
    }

    /// What those that are open read from, the lowest number first.
    pub(super) fn contents(&self) -> Vec<Arc<fetch::Layer>> {
        let planted = self.planted();
        let by_number: BTreeMap<_, _> = planted.iter().collect();
        distinct(by_number.into_values().map(|planted| &planted.layer.contents))
    }

    /// What was done by layers that are closed.
    pub(super) fn past(&self) -> Activity {
        self.past.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what layers have done that are closed, but for what others still read from.
    fn keep_activity(&self, closed: &[Planted]) {
        let open = self.contents();
        let is_over = |layer: &&Arc<fetch::Layer>| !open.iter().any(|open| Arc::ptr_eq(open, layer));
        let over = distinct(closed.iter().map(|planted| &planted.layer.contents).filter(is_over));
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        *past = std::mem::take(&mut *past).and(Activity::of(&over));
    }

    pub(super) fn planted(&self) -> MutexGuard<'_, HashMap<u32, Planted>> {
        self.planted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of what the records have.
fn kept(records: &Records) -> HashSet<u32> {
    records.layers.iter().chain(records.pulled_layers()).map(|layer| layer.number).collect()
}

/// A layer that is not open has a `diff` that gives an error, and not one that is empty.
fn grown(records: &Records, planted: &HashMap<u32, Planted>, place: Place) -> Grown {
    let mut made = HashMap::new();
    let mut root = BTreeMap::from([(b"l".to_vec(), LINKS)]);
    match place {
        Place::Nowhere => {}
        Place::Empty => {
            root.insert(LAYERS.to_vec(), NO_LAYERS);
            made.insert(NO_LAYERS, Made::Dir { entries: BTreeMap::new(), lasting: false });
        }
        Place::Asked => drop(root.insert(LAYERS.to_vec(), asked::ROOT)),
    }
    let mut links = BTreeMap::new();
    for layer in &records.layers {
        let number = |which| forest::made(layer.number, which);
        root.insert(layer.id.hex().into_bytes(), number(DIRECTORY));
        links.insert(layer.link.clone().into_bytes(), number(SYMLINK));
        made.insert(number(SYMLINK), Made::Symlink(format!("../{}/diff", layer.id.hex()).into_bytes()));
        made.insert(number(LINK_FILE), Made::File(layer.link.clone().into()));
        made.insert(number(MERGED), Made::Dir { entries: BTreeMap::new(), lasting: true });
        let mut entries = BTreeMap::from([
            (b"diff".to_vec(), forest::root_of(layer.number)),
            (b"link".to_vec(), number(LINK_FILE)),
            (b"merged".to_vec(), number(MERGED)),
        ]);
        if let Some(lower) = lists::lower(records, layer) {
            made.insert(number(LOWER_FILE), Made::File(lower.into()));
            entries.insert(b"lower".to_vec(), number(LOWER_FILE));
        }
        made.insert(number(DIRECTORY), Made::Dir { entries, lasting: planted.contains_key(&layer.number) });
    }
    let held = records.pulled.iter().flat_map(|pulled| &pulled.layers).filter(|layer| layer.held);
    let held: BTreeMap<_, _> = held
        .map(|PulledLayer { layer, .. }| (layer.number.to_string().into_bytes(), forest::root_of(layer.number)))
        .collect();
    if !held.is_empty() {
        root.insert(HELD.as_bytes().to_vec(), HELD_LAYERS);
        made.insert(HELD_LAYERS, Made::Dir { entries: held, lasting: false });
    }
    made.insert(forest::ROOT, Made::Dir { entries: root, lasting: false });
    made.insert(LINKS, Made::Dir { entries: links, lasting: false });
    let views = planted.iter().map(|(number, planted)| (*number, Arc::clone(&planted.view))).collect();
    // The directories' time changes with what is in them, so that the kernel drops what it has kept of a listing.
    Grown { views, made, changed: i64::from(records.changes()) }
}
