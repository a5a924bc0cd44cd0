//! An entry of a zTOC as an entry of the layer (soci-snapshotter, ztoc/toc_builder.go and ztoc_marshaler.go).
//!
//! All values are those of Go's `archive/tar`: the mode is the tar's own, names are as they are written there, times have their fraction. A time that RFC
//! 3339 cannot say (before year 0, after 9999) is empty.

use super::problem::shortened;
use super::ztoc_generated::ztoc::FileMetadata;
use super::{ZtocProblem, size};
use crate::index::Time;
use crate::index::error::Problem;
use crate::index::toc::{EntryType, TocEntry};
use crate::index::{limits, time};

/// The prefix of pax records that are xattrs.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The prefix of the records of sparse files in pax. A zTOC has their real size, and not where their parts are.
const SPARSE: &[u8] = b"GNU.sparse.";

/// Bytes for an xattr besides what it says.
const EACH_XATTR: usize = 64;

/// Sets what the zTOC says; `entry` is empty.
pub(super) fn fill(entry: &mut TocEntry, metadata: &FileMetadata<'_>) -> Result<(), Problem> {
    entry.name.extend_from_slice(metadata.name().ok_or(Problem::NoName)?.bytes());
    entry.link_name.extend_from_slice(metadata.linkname().map_or(&[][..], |name| name.bytes()));
    let kind = kind(metadata.type_().unwrap_or_default())?;
    (entry.kind, entry.is_described) = (Some(kind), true);
    entry.offset = size("uncompressed_offset", metadata.uncompressed_offset())?;
    if kind == EntryType::File {
        // Other entries have no contents, whatever size their headers state.
        entry.size = size("uncompressed_size", metadata.uncompressed_size())?;
    }
    // Tar's mode may carry type bits above the permissions.
    entry.mode = (metadata.mode() & 0o7777) as u16;
    (entry.uid, entry.gid) = (metadata.uid(), metadata.gid());
    if matches!(kind, EntryType::Char | EntryType::Block) {
        entry.major = device_number("devmajor", metadata.devmajor())?;
        entry.minor = device_number("devminor", metadata.devminor())?;
    }
    entry.mtime = mtime(metadata.mod_time().unwrap_or_default())?;
    add_xattrs(entry, metadata)
}

/// As the writer names them; it refuses all other types.
fn kind(text: &str) -> Result<EntryType, Problem> {
    Ok(match text {
        "dir" => EntryType::Dir,
        "reg" => EntryType::File,
        "symlink" => EntryType::Symlink,
        "hardlink" => EntryType::HardLink,
        "char" => EntryType::Char,
        "block" => EntryType::Block,
        "fifo" => EntryType::Fifo,
        other => return Err(Problem::Type(shortened(other))),
    })
}

fn device_number(key: &'static str, value: i64) -> Result<u32, ZtocProblem> {
    u32::try_from(value).map_err(|_| ZtocProblem::Value { key, value })
}

fn mtime(text: &str) -> Result<Time, Problem> {
    if text.is_empty() {
        return Ok(Time::default());
    }
    time::parse(text).ok_or_else(|| Problem::Value { key: "mod_time", found: format!("{:?}", shortened(text)) })
}

fn add_xattrs(entry: &mut TocEntry, metadata: &FileMetadata<'_>) -> Result<(), Problem> {
    // Records may share what they say, so that a small zTOC can say much.
    let mut left = limits::ENTRY_JSON as usize;
    for record in metadata.xattrs().into_iter().flatten() {
        let (key, value) = (record.key().map_or(&[][..], |key| key.bytes()), record.value());
        if key.starts_with(SPARSE) {
            return Err(ZtocProblem::Sparse.into());
        }
        if let Some(name) = key.strip_prefix(XATTR) {
            let len = name.len() + value.map_or(0, |value| value.bytes().len()) + EACH_XATTR;
            left = left
                .checked_sub(len)
                .ok_or(Problem::TooMany { what: "bytes of xattrs", limit: limits::ENTRY_JSON as usize })?;
            entry.xattrs.push((name.to_vec(), value.map_or_else(Vec::new, |value| value.bytes().to_vec())));
        }
    }
    Ok(())
}
