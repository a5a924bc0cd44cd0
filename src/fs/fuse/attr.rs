//! The tree's attributes in fuser's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, ReplyXattr};

use super::{FOR_EVER, errno};
use crate::fs::errno::Refused;
use crate::fs::forest::Stat;
use crate::fs::sparse::Seek;
use crate::fs::tree::{Attr, Ino, Type};
use crate::fs::view::BLOCK_SIZE;
use crate::fs::xattr;
use crate::index::Time;

/// Seconds count from the floor, also before 1970.
pub(super) fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let floor = if time.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    floor.and_then(|floor| floor.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// A device number the way FUSE has it (Linux `new_encode_dev`): 12 bits of major, 20 bits of minor, which is all that the kernel has.
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

fn file_type(kind: Type) -> FileType {
    match kind {
        Type::Dir => FileType::Directory,
        Type::File => FileType::RegularFile,
        Type::Symlink => FileType::Symlink,
        Type::Char => FileType::CharDevice,
        Type::Block => FileType::BlockDevice,
        Type::Fifo => FileType::NamedPipe,
        Type::Socket => FileType::Socket,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let time = system_time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.ino.get()),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.major, attr.minor),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The entry for a name that does not exist: only its inode number, 0, counts.
pub(super) fn no_entry() -> FileAttr {
    let nothing = Attr {
        ino: Ino::ROOT,
        kind: Type::File,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Time::default(),
        major: 0,
        minor: 0,
    };
    FileAttr { ino: INodeNo(0), ..file_attr(&nothing) }
}

pub(super) fn reply_attr(stat: &Stat) -> (Duration, FileAttr) {
    let ttl = if stat.lasting { FOR_EVER } else { Duration::ZERO };
    (ttl, FileAttr { ino: INodeNo(stat.number), blocks: stat.allocated.div_ceil(512), ..file_attr(&stat.attr) })
}

/// What an LSEEK asks for; the kernel does all other kinds by itself.
pub(super) fn wanted(offset: i64, whence: i32) -> Result<(u64, Seek), Refused> {
    let wanted = match whence {
        nix::libc::SEEK_DATA => Seek::Data,
        nix::libc::SEEK_HOLE => Seek::Hole,
        _ => return Err(Refused::NoSuchSeek),
    };
    Ok((u64::try_from(offset).map_err(|_| Refused::NoMoreData)?, wanted))
}

pub(super) fn reply_xattr(reply: ReplyXattr, answer: Result<xattr::Answer<'_>, Refused>) {
    match answer {
        Ok(xattr::Answer::Size(size)) => reply.size(size),
        Ok(xattr::Answer::Bytes(bytes)) => reply.data(&bytes),
        Err(refused) => reply.error(errno(&refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let before = UNIX_EPOCH - Duration::from_millis(250);
        assert_eq!(system_time(Time { secs: -1, nanos: 750_000_000 }), before);
        assert_eq!(system_time(Time { secs: 7, nanos: 1 }), UNIX_EPOCH + Duration::new(7, 1));
        assert_eq!(system_time(Time { secs: i64::MAX, nanos: 2_000_000_000 }), UNIX_EPOCH);
        for (secs, nanos) in [(i64::MAX, 999_999_999), (i64::MIN, 0)] {
            let extreme = system_time(Time { secs, nanos });
            let distance = extreme.duration_since(UNIX_EPOCH).unwrap_or_else(|error| error.duration());
            assert_eq!((distance.as_secs(), distance.subsec_nanos()), (secs.unsigned_abs(), nanos));
        }
    }

    #[test]
    fn device_numbers_have_more_than_8_bits() {
        assert_eq!(device(1, 3), 0x0103);
        assert_eq!(device(0xabc, 0xd_efff), 0xdef_abcff);
    }
}
