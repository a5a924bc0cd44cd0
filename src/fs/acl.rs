//! Whether the kernel would take an ACL (acl(5)).
//!
//! It enforces an ACL that it gets from FUSE without looking at its order or at what is missing, hence that is done here.

use super::ids::Ids;
pub(super) use crate::index::acl::{ACCESS, DEFAULT};
use crate::index::acl::{ENTRY, GROUP, GROUP_OBJ, HEADER, MASK, OTHER, USER, USER_OBJ, VERSION};

/// Bytes of the longest ACL that the kernel takes from FUSE: a page, as ext4 has it. A longer one would refuse every access.
const LONGEST: usize = 4096;

/// No user or group has that number.
const NOBODY: u32 = u32::MAX;

/// What setxattr(2) of an ACL would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acl {
    /// Nothing: it has no entries, or is of a version that Linux does not know.
    Nothing,
    /// It says no more than these permission bits do.
    Bits(u16),
    /// It stays, and stands for these permission bits: those of the group are the mask.
    Extended(u16),
}

/// For the fuzz target, which cannot see this module: whether there would be an ACL, and the permission bits that come of it.
///
/// # Errors
/// As [`read`].
#[cfg(fuzzing)]
pub fn read_for_fuzzing(value: &[u8]) -> Result<(bool, Option<u16>), &'static str> {
    Ok(match read(value)? {
        Acl::Nothing => (false, None),
        Acl::Bits(mode) => (false, Some(mode)),
        Acl::Extended(mode) => (true, Some(mode)),
    })
}

/// What the kernel would make of an ACL.
///
/// # Errors
/// What is wrong with it, where it would refuse it.
pub(super) fn read(value: &[u8]) -> Result<Acl, &'static str> {
    read_for(Ids::of_this_process(), value)
}

fn read_for(ids: &Ids, value: &[u8]) -> Result<Acl, &'static str> {
    if value.is_empty() {
        return Ok(Acl::Nothing);
    }
    let (version, entries) = value.split_first_chunk::<HEADER>().ok_or("it is cut")?;
    if u32::from_le_bytes(*version) != VERSION {
        return Ok(Acl::Nothing);
    }
    if entries.len() % ENTRY != 0 {
        return Err("it is cut");
    }
    if value.len() > LONGEST {
        return Err("it has more than 4096 bytes, which is more than the kernel takes");
    }
    if entries.is_empty() {
        Ok(Acl::Nothing)
    } else {
        entries.chunks_exact(ENTRY).try_fold(Parsed::new(), |so_far, entry| add(ids, so_far, entry))?.acl()
    }
}

/// What the entries so far say.
struct Parsed {
    last: u16,
    owner: u16,
    group: Option<u16>,
    mask: Option<u16>,
    other: Option<u16>,
    needs_mask: bool,
}

impl Parsed {
    const fn new() -> Self {
        Self { last: 0, owner: 0, group: None, mask: None, other: None, needs_mask: false }
    }

    fn acl(self) -> Result<Acl, &'static str> {
        let Self { owner, mask, needs_mask, .. } = self;
        let (Some(group), Some(other)) = (self.group, self.other) else {
            return Err("it has no entry for the owning group, or none for others");
        };
        match mask {
            None if needs_mask => Err("it names users or groups, but has no mask"),
            None => Ok(Acl::Bits(owner << 6 | group << 3 | other)),
            Some(mask) => Ok(Acl::Extended(owner << 6 | mask << 3 | other)),
        }
    }
}

fn add(ids: &Ids, mut so_far: Parsed, entry: &[u8]) -> Result<Parsed, &'static str> {
    let Some(([tag_low, tag_high, permissions, 0], id)) =
        entry.split_first_chunk().and_then(|(head, id)| Some((head, id.first_chunk()?)))
    else {
        return Err(NOT_PERMISSIONS);
    };
    let (tag, permissions) = (u16::from_le_bytes([*tag_low, *tag_high]), u16::from(*permissions));
    if permissions > 7 {
        return Err(NOT_PERMISSIONS);
    }
    let is_named = matches!(tag, USER | GROUP);
    let id = u32::from_le_bytes(*id);
    if is_named && id == NOBODY {
        return Err("it names a user or group that cannot exist");
    }
    if is_named && !(if tag == USER { ids.has_user(id) } else { ids.has_group(id) }) {
        return Err(
            "it names a user or group that this user namespace has no number for (/proc/self/uid_map, gid_map)",
        );
    }
    // Only those for named users and groups may be there more than once; the first is for the owner.
    let in_order =
        if so_far.last == 0 { tag == USER_OBJ } else { tag > so_far.last || (is_named && tag == so_far.last) };
    let after_group = so_far.group.is_some() || tag <= GROUP_OBJ;
    if !in_order || !after_group {
        return Err("its entries are not in order, or one is there twice");
    }
    match tag {
        USER_OBJ => so_far.owner = permissions,
        USER | GROUP => so_far.needs_mask = true,
        GROUP_OBJ => so_far.group = Some(permissions),
        MASK => so_far.mask = Some(permissions),
        OTHER => so_far.other = Some(permissions),
        _ => return Err("it has an entry of an unknown kind"),
    }
    so_far.last = tag;
    Ok(so_far)
}

const NOT_PERMISSIONS: &str = "it has other permissions than to read, to write and to execute";

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ACL of tags, permissions and ids.
    pub(in crate::fs) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, permissions, id)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        VERSION.to_le_bytes().into_iter().chain(entries).collect()
    }

    const OWNER: (u16, u16, u32) = (USER_OBJ, 6, NOBODY);
    const NAMED: (u16, u16, u32) = (USER, 4, 1000);
    const OWNING: (u16, u16, u32) = (GROUP_OBJ, 0, NOBODY);
    const OTHER_GROUP: (u16, u16, u32) = (GROUP, 7, 50);
    const MASKED: (u16, u16, u32) = (MASK, 5, NOBODY);
    const OTHERS: (u16, u16, u32) = (OTHER, 1, NOBODY);

    #[test]
    fn an_acl_stands_for_permission_bits() {
        let whole = [OWNER, NAMED, (USER, 1, 7), OWNING, OTHER_GROUP, OTHER_GROUP, MASKED, OTHERS];
        assert_eq!(read(&acl(&whole)), Ok(Acl::Extended(0o651)));
        assert_eq!(read(&acl(&[OWNER, OWNING, MASKED, OTHERS])), Ok(Acl::Extended(0o651)));
        assert_eq!(read(&acl(&[OWNER, OWNING, OTHERS])), Ok(Acl::Bits(0o601)));
    }

    #[test]
    fn what_linux_would_ignore_is_nothing() {
        for nothing in [&b""[..], b"\x02\0\0\0", b"\x01\0\0\0\x01\0\x06\0\xff\xff\xff\xff", b"\0\0\0\0x"] {
            assert_eq!(read(nothing), Ok(Acl::Nothing));
        }
    }

    #[test]
    fn what_linux_would_refuse_is_an_error() {
        let good = [OWNER, NAMED, OWNING, MASKED, OTHERS];
        assert!(read(&acl(&good)).is_ok());
        for missing in 0..good.len() {
            let rest: Vec<_> =
                good.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, entry)| *entry).collect();
            // Without the named user, it still has a mask.
            assert_eq!(read(&acl(&rest)).is_ok(), missing == 1, "without entry {missing}");
        }
        for (one, other) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
            let mut swapped = good;
            swapped.swap(one, other);
            assert!(read(&acl(&swapped)).is_err(), "{one} and {other}");
        }
        let twice = |entry| read(&acl(&[OWNER, OWNING, entry, MASKED, OTHERS]));
        assert!(twice(OWNING).is_err() && twice(MASKED).is_err() && twice(OWNER).is_err());
        assert!(read(&acl(&[OWNER, (USER, 4, NOBODY), OWNING, MASKED, OTHERS])).is_err(), "nobody");
        for permissions in [8, 0x100, 0xffff] {
            assert!(read(&acl(&[(USER_OBJ, permissions, NOBODY), OWNING, OTHERS])).is_err(), "{permissions}");
        }
        assert!(
            read(&acl(&[OWNER, OWNING, (0x11, 0, 0), OTHERS])).is_err()
                && read(&acl(&[OWNER, OWNING, OTHERS, (0x40, 0, 0)])).is_err()
        );
        let bytes = acl(&good);
        assert!((1..bytes.len()).filter(|len| *len != HEADER).all(|len| read(&bytes[..len]).is_err()));
    }

    #[test]
    fn one_of_ids_that_the_namespace_lacks_is_an_error() {
        let ids = Ids::parse("0 100000 1000\n1000 5 1\n", "0 0 50\n");
        let named =
            |tag, id| read_for(&ids, &acl(&[OWNER, OWNING, MASKED, OTHERS])).and(read_for(&ids, &acl_with(tag, id)));
        assert!(named(USER, 0).is_ok() && named(USER, 1000).is_ok() && named(GROUP, 49).is_ok());
        for (tag, id) in [(USER, 1001), (USER, 100_000), (GROUP, 50), (GROUP, 1000), (USER, NOBODY - 1)] {
            assert!(named(tag, id).unwrap_err().contains("namespace"), "{tag} {id}");
        }
    }

    fn acl_with(tag: u16, id: u32) -> Vec<u8> {
        match tag {
            USER => acl(&[OWNER, (USER, 4, id), OWNING, MASKED, OTHERS]),
            _ => acl(&[OWNER, OWNING, (tag, 4, id), MASKED, OTHERS]),
        }
    }

    #[test]
    fn one_that_fuse_cannot_carry_is_an_error() {
        let of = |users: u32| {
            let named = (0..users).map(|user| (USER, 4, user));
            let all: Vec<_> = [OWNER].into_iter().chain(named).chain([OWNING, MASKED, OTHERS]).collect();
            read(&acl(&all))
        };
        assert_eq!((of(507).is_ok(), of(508).is_ok()), (true, false));
    }
}
