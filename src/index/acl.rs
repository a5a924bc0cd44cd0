//! POSIX ACLs as xattrs hold them (acl(5); Linux, include/uapi/linux/posix_acl_xattr.h), and what chmod(2) does to one.
//!
//! ```text
//! u32 version, 2      then for each entry, sorted by tag: u16 tag, u16 permissions (rwx: 4, 2, 1), u32 user or group
//! ```

pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

pub(crate) const VERSION: u32 = 2;
pub(crate) const HEADER: usize = 4;
pub(crate) const ENTRY: usize = 8;

pub(crate) const USER_OBJ: u16 = 0x01;
pub(crate) const USER: u16 = 0x02;
pub(crate) const GROUP_OBJ: u16 = 0x04;
pub(crate) const GROUP: u16 = 0x08;
pub(crate) const MASK: u16 = 0x10;
pub(crate) const OTHER: u16 = 0x20;

/// An ACL with the permission bits of a mode: those of the group go to the mask where there is one. What is no ACL stays as it is.
pub(super) fn with_mode(acl: &[u8], mode: u16) -> Vec<u8> {
    let mut acl = acl.to_vec();
    let Some((version, entries)) = acl.split_first_chunk_mut::<HEADER>() else { return acl };
    if u32::from_le_bytes(*version) != VERSION {
        return acl;
    }
    let has_mask = entries.chunks_exact(ENTRY).any(|entry| tag(entry) == Some(MASK));
    for entry in entries.chunks_exact_mut(ENTRY) {
        let bits = match tag(entry) {
            Some(USER_OBJ) => mode >> 6,
            Some(MASK) => mode >> 3,
            Some(GROUP_OBJ) if !has_mask => mode >> 3,
            Some(OTHER) => mode,
            _ => continue,
        };
        if let Some(permissions) = entry.get_mut(2..4) {
            permissions.copy_from_slice(&(bits & 7).to_le_bytes());
        }
    }
    acl
}

fn tag(entry: &[u8]) -> Option<u16> {
    entry.first_chunk().map(|tag| u16::from_le_bytes(*tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let entry = |(tag, bits): &(u16, u16)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &[0xff; 4]].concat();
        VERSION.to_le_bytes().into_iter().chain(entries.iter().flat_map(entry)).collect()
    }

    #[test]
    fn a_mode_sets_owner_mask_and_others() {
        let named = |owner, mask, other| {
            acl(&[(USER_OBJ, owner), (USER, 7), (GROUP_OBJ, 5), (GROUP, 7), (MASK, mask), (OTHER, other)])
        };
        assert_eq!(with_mode(&named(6, 7, 4), 0o4610), named(6, 1, 0));
        assert_eq!(with_mode(&named(0, 0, 0), 0o755), named(7, 5, 5));
        let bare = |owner, group, other| acl(&[(USER_OBJ, owner), (GROUP_OBJ, group), (OTHER, other)]);
        assert_eq!(with_mode(&bare(7, 7, 7), 0o640), bare(6, 4, 0));
        for none in [&b""[..], b"\x02\0", b"\x01\0\0\0\x01\0\x07\0\xff\xff\xff\xff", b"\x02\0\0\0\x01\0"] {
            assert_eq!(with_mode(none, 0), none);
        }
    }
}
