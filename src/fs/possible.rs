//! Which xattrs of an image a local filesystem could have, and what they do to a mode: nothing else is shown, since it could not be copied up.
//!
//! | xattr (xattr(7)) | possible |
//! |---|---|
//! | `user.*` | on files and directories |
//! | `trusted.*`, `security.*` | on everything |
//! | `security.capability` | where it is one (capabilities(7), versions 2 and 3) |
//! | `system.posix_acl_access` | on everything but symlinks; its permission bits are then the mode's |
//! | `system.posix_acl_default` | on directories |
//! | anything else | never |
//!
//! An ACL that says no more than permission bits do is kept as these, as the kernel does. One that the kernel would refuse is an error: without it,
//! more people could use the file than was meant, since its mask is in the bits of the group.

use super::acl::{self, Acl};
use crate::index::Kind;

/// An ACL that the kernel would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadAcl {
    pub(super) xattr: &'static str,
    pub(super) what: &'static str,
}

/// Whether a node may have an xattr; its mode becomes that which an ACL gives it.
pub(super) fn is_possible(kind: &Kind<'_>, name: &[u8], value: &[u8], mode: &mut u16) -> Result<bool, BadAcl> {
    let is_dir = matches!(kind, Kind::Dir { .. });
    match name {
        acl::ACCESS if !matches!(kind, Kind::Symlink(_)) => {
            let (kept, bits) = match read("system.posix_acl_access", value)? {
                Acl::Nothing => (false, *mode),
                Acl::Bits(bits) => (false, bits),
                Acl::Extended(bits) => (true, bits),
            };
            *mode = *mode & !0o777 | bits & 0o777;
            Ok(kept)
        }
        acl::DEFAULT if is_dir => Ok(read("system.posix_acl_default", value)? != Acl::Nothing),
        b"security.capability" => Ok(is_capability(value)),
        _ if is_in(name, b"user.") => Ok(is_dir || matches!(kind, Kind::File { .. })),
        _ => Ok(is_in(name, b"trusted.") || is_in(name, b"security.")),
    }
}

fn read(xattr: &'static str, value: &[u8]) -> Result<Acl, BadAcl> {
    acl::read(value).map_err(|what| BadAcl { xattr, what })
}

/// Whether a name is of that namespace: a name that is the prefix alone is of none.
fn is_in(name: &[u8], prefix: &[u8]) -> bool {
    name.len() > prefix.len() && name.starts_with(prefix)
}

/// Whether these are the capabilities of a file (Linux, include/uapi/linux/capability.h, `vfs_cap_data` and `vfs_ns_cap_data`): the kernel reads
/// no others.
fn is_capability(value: &[u8]) -> bool {
    const EFFECTIVE: u32 = 1;
    let word = |at: usize| value.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    let version = word(0).map(|magic| magic & !EFFECTIVE);
    match value.len() {
        20 => version == Some(0x0200_0000),
        // The last word is the user who is root where it counts.
        24 => version == Some(0x0300_0000) && word(20) != Some(u32::MAX),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Kind<'_> = Kind::File { start: 0, size: 0 };
    const DIR: Kind<'_> = Kind::Dir { opaque: false, implied: false };
    const ALL: [Kind<'_>; 6] = [
        DIR,
        FILE,
        Kind::Symlink(b"x"),
        Kind::Char { major: 0, minor: 1 },
        Kind::Block { major: 0, minor: 1 },
        Kind::Fifo,
    ];

    fn possible(name: &str, value: &[u8]) -> [bool; 6] {
        ALL.map(|kind| is_possible(&kind, name.as_bytes(), value, &mut 0o644).unwrap())
    }

    #[test]
    fn each_namespace_has_its_kinds_of_files() {
        assert_eq!(possible("user.x", b""), [true, true, false, false, false, false]);
        assert_eq!(possible("trusted.x", b""), [true; 6]);
        assert_eq!(possible("security.x", b""), [true; 6]);
        for never in ["user.", "trusted.", "security.", "system.x", "system.nfs4_acl", "userx", "com.apple.x", "x"] {
            assert_eq!(possible(never, b""), [false; 6], "{never}");
        }
    }

    #[test]
    fn capabilities_are_those_that_the_kernel_reads() {
        let of = |magic: u32, len: usize, root: u32| {
            let bytes = [&magic.to_le_bytes()[..], &[0; 16], &root.to_le_bytes()].concat();
            possible("security.capability", &bytes[..len])[1]
        };
        assert!(of(0x0200_0000, 20, 0) && of(0x0200_0001, 20, 0) && of(0x0300_0001, 24, 1000));
        assert!(
            !of(0x0200_0000, 24, 0) && !of(0x0300_0000, 20, 0) && !of(0x0100_0000, 12, 0) && !of(0x0200_0002, 20, 0)
        );
        assert!(!of(0x0300_0000, 24, u32::MAX) && !of(0x0300_0000, 3, 0) && !of(0, 0, 0));
    }

    #[test]
    fn an_acl_gives_the_mode_its_bits_and_is_kept_where_it_says_more() {
        let short = acl::tests::acl(&[(1, 7, 0), (4, 5, 0), (0x20, 0, 0)]);
        let long = acl::tests::acl(&[(1, 6, 0), (2, 4, 1000), (4, 0, 0), (0x10, 7, 0), (0x20, 0, 0)]);
        let access = |kind, value: &[u8]| {
            let mut mode = 0o4604;
            (is_possible(&kind, acl::ACCESS, value, &mut mode), mode)
        };
        assert_eq!(access(FILE, &long), (Ok(true), 0o4670));
        assert_eq!(access(Kind::Fifo, &short), (Ok(false), 0o4750));
        assert_eq!(access(DIR, b"\x02\0\0\0"), (Ok(false), 0o4604));
        assert_eq!(access(Kind::Symlink(b"x"), &long), (Ok(false), 0o4604));
        let (refused, _) = access(FILE, &long[..20]);
        assert_eq!(refused.unwrap_err().xattr, "system.posix_acl_access");

        let default = |kind, value: &[u8]| is_possible(&kind, acl::DEFAULT, value, &mut 0).map_err(|bad| bad.xattr);
        assert_eq!([default(DIR, &long), default(DIR, &short), default(FILE, &long)], [Ok(true), Ok(true), Ok(false)]);
        assert_eq!([default(DIR, b""), default(DIR, b"x")], [Ok(false), Err("system.posix_acl_default")]);
    }
}
