//! What containerd asks of snapshots, answered as its overlay snapshotter does; and layers of images, which are served and not unpacked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::dirs::Dirs;
use super::error::{Code, Status};
use super::filter::Filters;
use super::labels::{self, Labels, Mapping, Wanted};
use super::pool::Pool;
use super::table::{Kind, Lazy, Moment, Snapshot, Table, now};
use crate::blob::Digest;
use crate::podman::held::State;

/// A mount, as containerd makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) kind: &'static str,
    pub(super) source: String,
    pub(super) options: Vec<String>,
}

/// What containerd is told of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) name: String,
    pub(super) parent: String,
    pub(super) kind: Kind,
    pub(super) labels: Labels,
    pub(super) created: Moment,
    pub(super) updated: Moment,
}

impl Info {
    fn of(name: &str, snapshot: &Snapshot) -> Self {
        Self {
            name: name.to_owned(),
            parent: snapshot.parent.clone(),
            kind: snapshot.kind,
            labels: snapshot.labels.clone(),
            created: snapshot.created,
            updated: snapshot.updated,
        }
    }

    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(
                match self.kind {
                    Kind::View => "view",
                    Kind::Active => "active",
                    Kind::Committed => "committed",
                }
                .to_owned(),
            ),
            "name" => Some(self.name.clone()),
            "parent" => Some(self.parent.clone()),
            "labels" => self.labels.get(&rest.join(".")).cloned(),
            _ => None,
        }
    }
}

/// What came of a layer that was asked for.
pub(super) enum Layer {
    /// It is there: containerd fetches nothing.
    Served(Status),
    /// containerd is to unpack it: why.
    Unpacked(String),
}

pub(super) struct Snapshots {
    table: Mutex<Table>,
    dirs: Dirs,
    pub(super) pool: Pool,
    /// What overlayfs is told besides.
    options: Vec<String>,
}

impl Snapshots {
    pub(super) fn new(table: Table, dirs: Dirs, pool: Pool) -> Self {
        // As containerd's own has it, where the kernel knows it.
        let knows_index = Path::new("/sys/module/overlay/parameters/index").exists();
        let options = if knows_index { vec!["index=off".to_owned()] } else { Vec::new() };
        Self { table: Mutex::new(table), dirs, pool, options }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layer is served, so that there has to be a server.
    pub(super) fn has_served(&self) -> bool {
        self.table().all().any(|(_, snapshot)| snapshot.lazy.is_some())
    }

    pub(super) fn stat(&self, key: &str) -> Result<Info, Status> {
        Ok(Info::of(key, self.table().get(key)?))
    }

    pub(super) fn list(&self, filters: &[String]) -> Result<Vec<Info>, Status> {
        let filters = Filters::parse(filters)?;
        let table = self.table();
        let all = table.all().map(|(name, snapshot)| Info::of(name, snapshot));
        Ok(all.filter(|info| filters.matches(|path| info.field(path))).collect())
    }

    /// `paths`: what is changed of it; nothing: all that can be.
    pub(super) fn update(&self, name: &str, new: Labels, paths: &[String]) -> Result<Info, Status> {
        let mut table = self.table();
        let mut snapshot = table.get(name)?.clone();
        if paths.is_empty() {
            snapshot.labels = new.clone();
        }
        for path in paths {
            match path.strip_prefix("labels.") {
                Some(label) => {
                    drop(snapshot.labels.insert(label.to_owned(), new.get(label).cloned().unwrap_or_default()))
                }
                None if path == "labels" => snapshot.labels = new.clone(),
                None => {
                    let message = format!("cannot update {path:?} field on snapshot {name:?}");
                    return Err(Status::new(Code::InvalidArgument, message));
                }
            }
        }
        // An empty one is none, as containerd writes it.
        snapshot.labels.retain(|_, value| !value.is_empty());
        snapshot.updated = now();
        let info = Info::of(name, &snapshot);
        table.change(vec![(name.to_owned(), Some(snapshot))])?;
        Ok(info)
    }

    /// Bytes and inodes.
    pub(super) fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let (id, kind, usage) = {
            let table = self.table();
            let snapshot = table.get(key)?;
            (snapshot.id, snapshot.kind, snapshot.usage)
        };
        if kind == Kind::Active { self.dirs.usage(id) } else { Ok(usage) }
    }

    /// A layer of an image that is asked for as such. `None`: it is none.
    pub(super) fn layer(&self, parent: &str, labels: &Labels) -> Option<Layer> {
        let wanted = match labels::wanted(labels)? {
            Ok(wanted) => wanted,
            Err(why) => return Some(Layer::Unpacked(why)),
        };
        Some(self.served(&wanted, parent, labels).unwrap_or_else(|status| Layer::Unpacked(status.message)))
    }

    fn served(&self, wanted: &Wanted, parent: &str, labels: &Labels) -> Result<Layer, Status> {
        let turn = self.pool.turn(&wanted.reference);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match self.known(wanted, parent)? {
            Known::Served(status) => return Ok(Layer::Served(status)),
            Known::Unpacked => return Ok(Layer::Unpacked("another layer has its chain id and its parent".to_owned())),
            Known::New { place } => place,
        };
        let held = self.pool.hold(&wanted.reference)?;
        let is_it = |place: usize| {
            move |layer: &&crate::podman::held::HeldLayer| layer.place == place && layer.blob == wanted.blob
        };
        let at_place = held.layers.iter().find(is_it(place));
        let layer = at_place.or_else(|| held.layers.iter().find(|layer| layer.blob == wanted.blob));
        let Some(layer) = layer else {
            return Ok(Layer::Unpacked(format!("{} has no such layer", wanted.reference)));
        };
        let (number, owner) = match &layer.state {
            State::Held { number, owner } => (*number, *owner),
            State::Refused(why) => return Ok(Layer::Unpacked(why.clone())),
        };
        let lazy = Lazy { reference: wanted.reference.clone(), place: layer.place, blob: layer.blob, number, owner };
        self.take_in(wanted, parent, labels, lazy).map(Layer::Served)
    }

    /// Whether a layer is there already; else its place in the image, if those below it are all of the image.
    fn known(&self, wanted: &Wanted, parent: &str) -> Result<Known, Status> {
        let table = self.table();
        check_parent(&table, parent)?;
        let name = name_of(wanted, parent);
        match table.get(&name) {
            Ok(snapshot) => Ok(match &snapshot.lazy {
                // Another blob may have other contents: containerd compares what it unpacks with the chain id.
                Some(lazy) if lazy.blob == wanted.blob => Known::Served(exists(&name)),
                _ => Known::Unpacked,
            }),
            Err(_missing) => Ok(Known::New { place: table.chain(parent)?.len() }),
        }
    }

    fn take_in(&self, wanted: &Wanted, parent: &str, labels: &Labels, lazy: Lazy) -> Result<Status, Status> {
        let mut table = self.table();
        check_parent(&table, parent)?;
        let name = name_of(wanted, parent);
        if table.has(&name) {
            return Ok(exists(&name));
        }
        let mut labels = labels.clone();
        labels.insert(labels::LAZY.to_owned(), lazy.reference.clone());
        let created = now();
        let snapshot = Snapshot {
            id: table.next(),
            parent: parent.to_owned(),
            kind: Kind::Committed,
            labels,
            created,
            updated: created,
            usage: (0, 0),
            lazy: Some(lazy),
            reason: None,
        };
        table.add(&name, snapshot)?;
        Ok(exists(&name))
    }

    /// Makes a snapshot that can be written, or a view. `reason`: why it is to be unpacked, where it is a layer.
    pub(super) fn create(
        &self,
        kind: Kind,
        key: &str,
        (parent, labels): (&str, Labels),
        reason: Option<String>,
    ) -> Result<Vec<Mount>, Status> {
        let mapping = labels::mapping(&labels)?;
        let snapshot = {
            let mut table = self.table();
            check_parent(&table, parent)?;
            if table.has(key) {
                return Err(exists(key));
            }
            let owner = match (mapping.root, table.get(parent)) {
                (Some(root), _) => Some(root),
                (None, Ok(parent)) => match &parent.lazy {
                    Some(lazy) => Some(lazy.owner),
                    None => Some(self.dirs.owner(parent.id)?),
                },
                (None, Err(_no_parent)) => None,
            };
            let (id, created) = (table.next(), now());
            let snapshot = Snapshot {
                id,
                parent: parent.to_owned(),
                kind,
                labels,
                created,
                updated: created,
                usage: (0, 0),
                lazy: None,
                reason,
            };
            self.dirs.make(id, kind == Kind::Active, owner)?;
            table.add(key, snapshot.clone()).inspect_err(|_| self.dirs.remove(id))?;
            snapshot
        };
        // Nobody was told of it: who tries again is not to hear that it is there.
        self.mounts_of(&snapshot, &mapping).inspect_err(|_| drop(self.remove(key)))
    }

    pub(super) fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let snapshot = self.table().get(key)?.clone();
        if snapshot.kind == Kind::Committed {
            let message = format!("requested snapshot {key:?} is not active or view");
            return Err(Status::new(Code::FailedPrecondition, message));
        }
        let mapping = labels::mapping(&snapshot.labels)?;
        self.mounts_of(&snapshot, &mapping)
    }

    fn mounts_of(&self, snapshot: &Snapshot, mapping: &Mapping) -> Result<Vec<Mount>, Status> {
        let served: Vec<Lazy> =
            self.table().chain(&snapshot.parent)?.iter().filter_map(|below| below.lazy.clone()).collect();
        if !served.is_empty() {
            let moved = self.pool.ready(&served)?;
            self.note_moved(&moved)?;
        }
        let path = |path: std::path::PathBuf| path.display().to_string();
        let lowers: Vec<String> = {
            let table = self.table();
            let place = |below: &&Snapshot| match &below.lazy {
                Some(lazy) => path(self.pool.place(lazy)),
                None => path(self.dirs.fs(below.id)),
            };
            table.chain(&snapshot.parent)?.iter().map(place).collect()
        };
        let is_active = snapshot.kind == Kind::Active;
        let own = path(self.dirs.fs(snapshot.id));
        let mut options = mapping.options.clone();
        let bind = |source: &String, mut options: Vec<String>, mode: &str| {
            options.extend([mode.to_owned(), "rbind".to_owned()]);
            vec![Mount { kind: "bind", source: source.clone(), options }]
        };
        Ok(match &*lowers {
            [] => bind(&own, options, if is_active { "rw" } else { "ro" }),
            [lower] if !is_active => bind(lower, options, "ro"),
            lowers => {
                if is_active {
                    options
                        .extend([format!("workdir={}", path(self.dirs.work(snapshot.id))), format!("upperdir={own}")]);
                }
                options.push(format!("lowerdir={}", lowers.join(":")));
                options.extend(self.options.clone());
                vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
            }
        })
    }

    /// Writes down by which numbers layers are served now.
    fn note_moved(&self, moved: &[Lazy]) -> Result<(), Status> {
        if moved.is_empty() {
            return Ok(());
        }
        let mut table = self.table();
        let new = |lazy: &Lazy| moved.iter().find(|new| new.reference == lazy.reference && new.place == lazy.place);
        let changes: Vec<_> = table
            .all()
            .filter_map(|(name, snapshot)| {
                let lazy = new(snapshot.lazy.as_ref()?)?.clone();
                Some((name.clone(), Some(Snapshot { lazy: Some(lazy), ..snapshot.clone() })))
            })
            .collect();
        table.change(changes)
    }

    pub(super) fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), Status> {
        let id = self.table().get(key)?.id;
        let usage = self.dirs.usage(id)?;
        let mut table = self.table();
        if table.has(name) {
            return Err(exists(name));
        }
        let mut snapshot = table.get(key)?.clone();
        if snapshot.kind != Kind::Active {
            return Err(Status::new(Code::FailedPrecondition, format!("snapshot {key:?} is not active")));
        }
        if snapshot.parent != parent && !parent.is_empty() {
            if !snapshot.parent.is_empty() {
                let message = format!("cannot change parent of active snapshot {key:?} on commit");
                return Err(Status::new(Code::InvalidArgument, message));
            }
            match table.get(parent)?.kind {
                Kind::Committed => snapshot.parent = parent.to_owned(),
                _ => return Err(Status::new(Code::FailedPrecondition, format!("parent {parent:?} is not committed"))),
            }
        }
        // They replace those that it had.
        snapshot.labels = labels;
        if let Some(reason) = &snapshot.reason {
            snapshot.labels.insert(labels::REASON.to_owned(), labels::shortened(reason));
        }
        snapshot.kind = Kind::Committed;
        snapshot.created = now();
        snapshot.updated = snapshot.created;
        snapshot.usage = usage;
        table.change(vec![(key.to_owned(), None), (name.to_owned(), Some(snapshot))])
    }

    /// What is left of it in the server of the layers is for [`Self::let_go`].
    pub(super) fn remove(&self, key: &str) -> Result<Option<Lazy>, Status> {
        let removed = {
            let mut table = self.table();
            let snapshot = table.get(key)?.clone();
            if table.has_children(key) {
                let message = format!("cannot remove snapshot {key:?} with child");
                return Err(Status::new(Code::FailedPrecondition, message));
            }
            table.change(vec![(key.to_owned(), None)])?;
            snapshot
        };
        if removed.lazy.is_none() {
            self.dirs.remove(removed.id);
        }
        Ok(removed.lazy)
    }

    /// Lets those layers of an image go that no snapshot is any more.
    pub(super) fn let_go(&self, reference: &str, places: &[usize]) {
        let turn = self.pool.turn(reference);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.used().remove(reference).unwrap_or_default();
        let unused: Vec<_> = places.iter().copied().filter(|place| !used.contains(place)).collect();
        if !unused.is_empty() {
            self.pool.release(reference, unused);
        }
    }

    /// The places of layers that are served, by their images.
    fn used(&self) -> HashMap<String, HashSet<usize>> {
        let mut used: HashMap<_, HashSet<_>> = HashMap::new();
        for (_, snapshot) in self.table().all() {
            if let Some(lazy) = &snapshot.lazy {
                used.entry(lazy.reference.clone()).or_default().insert(lazy.place);
            }
        }
        used
    }

    /// Removes directories that belong to no snapshot.
    pub(super) fn clean_up(&self) {
        let orphans = {
            let table = self.table();
            if !table.is_known() {
                return;
            }
            let known = table.all().map(|(_, snapshot)| snapshot.id).collect();
            let (given, not_yet): (Vec<u64>, Vec<u64>) =
                self.dirs.others(&known).into_iter().partition(|id| *id < table.next());
            // What a process has made that was killed before it wrote that down. As long as the table is locked nobody gets its number.
            not_yet.into_iter().for_each(|id| self.dirs.remove(id));
            given
        };
        // Their numbers are not given again.
        orphans.into_iter().for_each(|id| self.dirs.remove(id));
    }

    /// Layers that are held and that no snapshot is, by their images. With `whole`, of images of which no layer is one: others may be pulled just now.
    pub(super) fn unused(&self, whole: bool) -> BTreeMap<String, Vec<usize>> {
        let mut held = self.pool.held();
        let used = self.used();
        held.retain(|held| !whole || !used.contains_key(&held.reference));
        let is_used = |reference: &str, place| used.get(reference).is_some_and(|places| places.contains(&place));
        let places = |held: crate::podman::held::Held| {
            let unused: Vec<_> =
                held.layers.iter().map(|layer| layer.place).filter(|place| !is_used(&held.reference, *place)).collect();
            (held.reference, unused)
        };
        held.into_iter().map(places).filter(|(_, places)| !places.is_empty()).collect()
    }
}

enum Known {
    Served(Status),
    Unpacked,
    New { place: usize },
}

fn exists(name: &str) -> Status {
    Status::new(Code::AlreadyExists, format!("snapshot {name:?} already exists"))
}

fn check_parent(table: &Table, parent: &str) -> Result<(), Status> {
    if parent.is_empty() || table.get(parent)?.kind == Kind::Committed {
        return Ok(());
    }
    Err(Status::new(Code::InvalidArgument, format!("parent {parent:?} is not committed snapshot")))
}

/// The name of a layer's snapshot: containerd looks for one with its chain id and its parent, and takes any name. Above layers of ours it is the chain id.
fn name_of(wanted: &Wanted, parent: &str) -> String {
    match parent.is_empty() || (parent.starts_with("sha256:") && !parent.contains('@')) {
        true => wanted.chain.clone(),
        false => format!("{}@{}", wanted.chain, Digest::of(parent.as_bytes()).hex()),
    }
}
