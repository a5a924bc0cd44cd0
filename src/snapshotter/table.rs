//! What the snapshotter knows of its snapshots: a file (redb) that is on the disk before anybody is answered, and the same in memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::{Database, Durability, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::error::{Code, Error, Status};
use crate::blob::Digest;

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const NEXT: &str = "next";

/// Bytes of pages that redb keeps: all is in memory anyway.
const PAGES: usize = 1 << 20;

/// Limits of what is kept for a client.
const MOST: usize = 1 << 16;
const LONGEST_NAME: usize = 4096;
const LONGEST_LABEL: usize = 4096;
const LABELS: usize = 64 << 10;

/// What redb says is wrong.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    View,
    Active,
    Committed,
}

/// Seconds and nanoseconds since 1970.
pub(super) type Moment = (i64, i32);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Its directory. It is given once.
    pub(super) id: u64,
    /// Empty: none.
    pub(super) parent: String,
    pub(super) kind: Kind,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) created: Moment,
    pub(super) updated: Moment,
    /// Bytes and inodes of one that is committed.
    pub(super) usage: (i64, i64),
    /// A layer that is served, and was not unpacked.
    pub(super) lazy: Option<Lazy>,
    /// Why it is unpacked, where that is known.
    pub(super) reason: Option<String>,
}

/// Where a layer comes from, and by which number it is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lazy {
    /// The image, by its digest.
    pub(super) reference: String,
    pub(super) place: usize,
    pub(super) blob: Digest,
    pub(super) number: u32,
    /// User and group of its root.
    pub(super) owner: (u32, u32),
}

pub(super) struct Table {
    path: PathBuf,
    /// `None`: it could not be written. It is opened again then.
    file: Option<Database>,
    snapshots: BTreeMap<String, Snapshot>,
    children: HashMap<String, usize>,
    next: u64,
}

impl Table {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |reason: Failure| Error::Table { path: path.to_owned(), reason: reason.to_string() };
        let file = database(path).map_err(failed)?;
        let (snapshots, children) = (BTreeMap::new(), HashMap::new());
        let mut table = Self { path: path.to_owned(), file: None, snapshots, children, next: 1 };
        table.load(&file).map_err(failed)?;
        table.file = Some(file);
        Ok(table)
    }

    /// Takes over what is on the disk.
    fn load(&mut self, file: &Database) -> Result<(), Failure> {
        let (read, next) = read(file)?;
        let parsed = read.into_iter().map(|(name, text)| match serde_json::from_slice(&text) {
            Ok(snapshot) => Ok((name, snapshot)),
            Err(error) => Err(format!("the entry {name:?} is not understood ({error})")),
        });
        let parsed: Vec<(String, Snapshot)> = parsed.collect::<Result<_, String>>()?;
        self.snapshots.clear();
        self.children.clear();
        self.next = self.next.max(next);
        parsed.into_iter().for_each(|(name, snapshot)| self.put(name, snapshot));
        Ok(())
    }

    /// Whether what it has is what is on the disk. After a change that failed nobody can tell, until the next one.
    pub(super) const fn is_known(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn get(&self, name: &str) -> Result<&Snapshot, Status> {
        self.snapshots.get(name).ok_or_else(|| Status::missing(name))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.snapshots.contains_key(name)
    }

    /// In the order of their names, as containerd's own table has them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &Snapshot)> {
        self.snapshots.iter()
    }

    pub(super) fn has_children(&self, name: &str) -> bool {
        self.children.contains_key(name)
    }

    /// The number of the next directory.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// A snapshot and those below it, the topmost first.
    pub(super) fn chain(&self, top: &str) -> Result<Vec<&Snapshot>, Status> {
        let (mut chain, mut name) = (Vec::new(), top);
        while !name.is_empty() {
            let snapshot = self.get(name)?;
            chain.push(snapshot);
            name = &snapshot.parent;
        }
        Ok(chain)
    }

    /// Adds a snapshot, whose parent is there and committed.
    pub(super) fn add(&mut self, name: &str, snapshot: Snapshot) -> Result<(), Status> {
        if self.snapshots.len() >= MOST {
            return Err(Status::new(Code::ResourceExhausted, format!("there are {MOST} snapshots; remove some")));
        }
        self.change(vec![(name.to_owned(), Some(snapshot))])
    }

    /// Makes changes, all or none. They are on the disk when this comes back.
    pub(super) fn change(&mut self, changes: Vec<(String, Option<Snapshot>)>) -> Result<(), Status> {
        changes.iter().try_for_each(|(name, snapshot)| snapshot.as_ref().map_or(Ok(()), |new| check(name, new)))?;
        let ids = changes.iter().filter_map(|(_, snapshot)| Some(snapshot.as_ref()?.id.saturating_add(1)));
        let next = ids.fold(self.next, u64::max);
        let written = self.write(&changes, next);
        if let Err(error) = written {
            // redb writes no more once that has failed.
            self.file = None;
            let path = self.path.display();
            tracing::error!("{path} cannot be written: {error}");
            return Err(Status::new(Code::Unavailable, format!("{path} cannot be written: {error}")));
        }
        self.next = next;
        for (name, snapshot) in changes {
            self.take(&name);
            if let Some(snapshot) = snapshot {
                self.put(name, snapshot);
            }
        }
        Ok(())
    }

    fn write(&mut self, changes: &[(String, Option<Snapshot>)], next: u64) -> Result<(), Failure> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = database(&self.path)?;
                self.load(&file)?;
                file
            }
        };
        let file = self.file.insert(file);
        let mut transaction = file.begin_write()?;
        transaction.set_durability(Durability::Immediate);
        {
            let mut table = transaction.open_table(SNAPSHOTS)?;
            for (name, snapshot) in changes {
                match snapshot {
                    Some(snapshot) => {
                        // Maps of strings and numbers can be written.
                        let text = serde_json::to_vec(snapshot).unwrap_or_default();
                        table.insert(name.as_str(), text.as_slice())?;
                    }
                    None => drop(table.remove(name.as_str())?),
                }
            }
            transaction.open_table(NUMBERS)?.insert(NEXT, next)?;
        }
        Ok(transaction.commit()?)
    }

    fn put(&mut self, name: String, snapshot: Snapshot) {
        if !snapshot.parent.is_empty() {
            let count = self.children.entry(snapshot.parent.clone()).or_default();
            *count = count.saturating_add(1);
        }
        self.snapshots.insert(name, snapshot);
    }

    fn take(&mut self, name: &str) {
        let Some(old) = self.snapshots.remove(name) else { return };
        if let Some(count) = self.children.get_mut(&old.parent) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.children.remove(&old.parent);
            }
        }
    }
}

fn check(name: &str, snapshot: &Snapshot) -> Result<(), Status> {
    let wrong = |what: &str| Err(Status::new(Code::InvalidArgument, what.to_owned()));
    if name.is_empty() || name.len() > LONGEST_NAME {
        return wrong("the name of a snapshot is empty, or longer than 4096 bytes");
    }
    let lengths = || snapshot.labels.iter().map(|(key, value)| key.len().saturating_add(value.len()));
    if lengths().any(|length| length > LONGEST_LABEL) || lengths().fold(0_usize, usize::saturating_add) > LABELS {
        return wrong("a label is longer than 4096 bytes, or all labels together than 64 KiB");
    }
    Ok(())
}

fn database(path: &Path) -> Result<Database, Failure> {
    Ok(Database::builder().set_cache_size(PAGES).create(path)?)
}

type Read = (Vec<(String, Vec<u8>)>, u64);

fn read(file: &Database) -> Result<Read, Failure> {
    let transaction = file.begin_write()?;
    let (mut all, mut next) = (Vec::new(), 1);
    {
        // They are made where they are missing.
        for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
            let (name, text) = entry?;
            all.push((name.value().to_owned(), text.value().to_owned()));
        }
        if let Some(found) = transaction.open_table(NUMBERS)?.get(NEXT)? {
            next = found.value();
        }
    }
    transaction.commit()?;
    Ok((all, next))
}

/// The time of day.
pub(super) fn now() -> Moment {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), i32::try_from(since.subsec_nanos()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: u64, parent: &str) -> Snapshot {
        Snapshot {
            id,
            parent: parent.to_owned(),
            kind: Kind::Committed,
            labels: BTreeMap::new(),
            created: now(),
            updated: now(),
            usage: (1, 2),
            lazy: None,
            reason: None,
        }
    }

    #[test]
    fn what_was_written_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let mut table = Table::open(&path).unwrap();
        table.add("a", snapshot(1, "")).unwrap();
        table.add("b", snapshot(2, "a")).unwrap();
        table.change(vec![("b".to_owned(), None), ("c".to_owned(), Some(snapshot(2, "a")))]).unwrap();
        assert!(Table::open(&path).is_err(), "one process has it");
        drop(table);
        let mut table = Table::open(&path).unwrap();
        assert_eq!(table.all().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert!(table.has_children("a") && !table.has_children("b") && table.next() == 3);
        assert_eq!(table.chain("c").unwrap().iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [2, 1]);
        table.change(vec![("c".to_owned(), None)]).unwrap();
        assert!(!table.has_children("a"));
    }

    #[test]
    fn after_a_change_that_failed_the_disk_says_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let mut table = Table::open(&path).unwrap();
        table.add("a", snapshot(1, "")).unwrap();
        // As where it cannot be written, and was written all the same.
        table.file = None;
        assert!(!table.is_known());
        Table::open(&path)
            .unwrap()
            .change(vec![("a".to_owned(), None), ("b".to_owned(), Some(snapshot(7, "")))])
            .unwrap();
        table.add("c", snapshot(8, "b")).unwrap();
        assert!(table.is_known() && !table.has("a") && table.has_children("b") && table.next() == 9);
    }

    #[test]
    fn clients_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::open(&dir.path().join("t")).unwrap();
        assert!(table.add("", snapshot(1, "")).is_err());
        assert!(table.add(&"x".repeat(LONGEST_NAME + 1), snapshot(1, "")).is_err());
        let labelled = |labels: BTreeMap<String, String>| Snapshot { labels, ..snapshot(1, "") };
        assert!(table.add("a", labelled([("k".to_owned(), "v".repeat(LONGEST_LABEL))].into())).is_err());
        let many = (0..20).map(|key| (key.to_string(), "v".repeat(LONGEST_LABEL - 2))).collect();
        assert!(table.add("a", labelled(many)).is_err());
    }

    #[test]
    fn what_is_no_table_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, b"something else").unwrap();
        assert!(Table::open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }
}
