//! Which xattrs a view shows, and getxattr(2) and listxattr(2) as the kernel asks them: with the size of the caller's buffer.
//!
//! | xattr | listed | read |
//! |---|---|---|
//! | `security.*`, `user.*` and ACLs of the image | yes | yes |
//! | `trusted.*` of the image, `trusted.overlay.opaque` of a single-layer view | if the server has CAP_SYS_ADMIN | if listed; the opaque one always |
//! | `user.overlay.opaque` of a single-layer view | no | yes |
//!
//! What no local filesystem could have is not in the tree (possible.rs).
//!
//! A layer of a store has both opaque xattrs, since root's overlayfs and those of users look for different ones.
//!
//! What is listed can be read and, but for the opaque one, the reverse: overlayfs's copy-up fails over an xattr that is in only one of the two.
//! FUSE does not filter `trusted.*` out of a list, as other filesystems do for callers without the capability, and copy-up by such a caller fails
//! over a name that it cannot read; a server without the capability has no caller with it, as a rule, so it does not list them.
//!
//! Where a view has no xattr at all, reading one is left to the kernel, which then never asks again: `ls -l` and overlayfs do it for each file. A
//! list is empty instead: with ENOSYS it would fail with EOPNOTSUPP, and a file without xattrs would look like one that they cannot be read of.
//!
//! overlayfs and fuse-overlayfs never copy up their own opaque xattr, listed or not.

use std::borrow::Cow;

use super::errno::Refused;
use super::tree::{Ino, OpaqueXattr};
use super::view::View;

/// What goes back to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The caller only asked how large a buffer it needs, in bytes.
    Size(u32),
    Bytes(Cow<'a, [u8]>),
}

/// The same without a view to borrow from.
pub(super) type Owned = Answer<'static>;

impl Answer<'_> {
    pub(super) fn own(self) -> Owned {
        match self {
            Self::Size(size) => Answer::Size(size),
            Self::Bytes(bytes) => Answer::Bytes(Cow::Owned(bytes.into_owned())),
        }
    }
}

/// The names of the xattrs of what has none.
pub(super) fn none(size: u32) -> Result<Owned, Refused> {
    fit(Cow::Borrowed(&[]), size)
}

fn is_opaque(name: &[u8]) -> bool {
    name == OpaqueXattr::TRUSTED || name == OpaqueXattr::USER
}

fn is_listed(name: &[u8], list_trusted: bool) -> bool {
    if name.starts_with(b"trusted.") { list_trusted } else { name != OpaqueXattr::USER }
}

/// The value of an xattr. `size` is that of the caller's buffer; 0 asks for the value's.
pub(super) fn get<'a>(
    view: &'a View,
    list_trusted: bool,
    ino: Ino,
    name: &[u8],
    size: u32,
) -> Result<Answer<'a>, Refused> {
    if !view.has_xattrs() {
        return Err(Refused::LeftToKernel);
    }
    let shown = |name: &[u8]| is_opaque(name) || is_listed(name, list_trusted);
    let mut xattrs = view.tree().xattrs(ino);
    let found = xattrs.find(|(other, _)| *other == name && shown(name));
    found.map_or(Err(Refused::NoSuchXattr), |(_, value)| fit(Cow::Borrowed(value), size))
}

/// The names of a node's xattrs, each ended by a NUL.
pub(super) fn list(view: &View, list_trusted: bool, ino: Ino, size: u32) -> Result<Answer<'_>, Refused> {
    let names = view.tree().xattrs(ino).map(|(name, _)| name).filter(|name| is_listed(name, list_trusted));
    fit(Cow::Owned(names.flat_map(|name| name.iter().copied().chain([0])).collect()), size)
}

fn fit(bytes: Cow<'_, [u8]>, size: u32) -> Result<Answer<'_>, Refused> {
    let len = u32::try_from(bytes.len()).map_err(|_| Refused::BufferTooSmall)?;
    match size {
        0 => Ok(Answer::Size(len)),
        _ if len <= size => Ok(Answer::Bytes(bytes)),
        _ => Err(Refused::BufferTooSmall),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fs::fake::{FakeLayer, Ramp, Spec, What};
    use crate::fs::overlay::merge;
    use crate::fs::view::LastSymlink;

    fn single(opaque: OpaqueXattr) -> (View, Ino, Ino) {
        let spec = Spec::default()
            .with("d", What::Dir)
            .opaque("d")
            .with("f", What::File { size: 0 })
            .xattr("f", "security.x", "cap")
            .xattr("f", "trusted.x", "")
            .xattr("f", "user.y", "value");
        let view = View::new(
            merge(&[FakeLayer::new(&spec)], Some(opaque)).unwrap(),
            Arc::new(Ramp { none: true, ..Ramp::default() }),
        );
        let at = |path: &[u8]| view.resolve(path, LastSymlink::Keep).unwrap();
        let (dir, file) = (at(b"d"), at(b"f"));
        (view, dir, file)
    }

    fn names(view: &View, list_trusted: bool, ino: Ino) -> String {
        match list(view, list_trusted, ino, 1000).unwrap() {
            Answer::Bytes(bytes) => String::from_utf8(bytes.into_owned()).unwrap().replace('\0', " "),
            Answer::Size(_) => panic!("names were asked for"),
        }
    }

    #[test]
    fn what_is_listed_can_be_read_and_the_reverse() {
        let (view, _, file) = single(OpaqueXattr::Trusted);
        assert_eq!(names(&view, true, file), "security.x trusted.x user.y ");
        assert_eq!(names(&view, false, file), "security.x user.y ");
        for name in ["security.x", "trusted.x", "user.y", "user.missing"] {
            for list_trusted in [true, false] {
                let listed = names(&view, list_trusted, file).contains(name);
                assert_eq!(
                    get(&view, list_trusted, file, name.as_bytes(), 10).is_ok(),
                    listed,
                    "{name} {list_trusted}"
                );
            }
        }
    }

    #[test]
    fn an_opaque_directory_says_so_to_those_who_ask() {
        for (opaque, listed) in [(OpaqueXattr::Trusted, "trusted.overlay.opaque "), (OpaqueXattr::User, "")] {
            let (view, dir, _) = single(opaque);
            assert_eq!((names(&view, true, dir), names(&view, false, dir)), (listed.into(), String::new()));
            for list_trusted in [true, false] {
                let answer = get(&view, list_trusted, dir, opaque.names()[0], 1).unwrap();
                assert_eq!(answer, Answer::Bytes(Cow::Borrowed(b"y")));
            }
        }
    }

    #[test]
    fn sizes_are_those_that_xattr_7_wants() {
        let (view, dir, file) = single(OpaqueXattr::User);
        assert_eq!(get(&view, true, file, b"user.y", 0).unwrap(), Answer::Size(5));
        assert_eq!(get(&view, true, file, b"user.y", 5).unwrap(), Answer::Bytes(Cow::Borrowed(b"value")));
        assert!(matches!(get(&view, true, file, b"user.y", 4), Err(Refused::BufferTooSmall)));
        assert!(matches!(get(&view, true, dir, b"user.y", 4), Err(Refused::NoSuchXattr)));
        assert_eq!(list(&view, false, file, 0).unwrap(), Answer::Size(18));
        assert!(matches!(list(&view, false, file, 17), Err(Refused::BufferTooSmall)));
    }

    #[test]
    fn a_view_without_xattrs_is_not_asked_for_values_again_and_lists_none() {
        let view = View::new(
            merge(&[FakeLayer::new(&Spec::default())], None).unwrap(),
            Arc::new(Ramp { none: true, ..Ramp::default() }),
        );
        assert!(matches!(get(&view, true, Ino::ROOT, b"user.y", 0), Err(Refused::LeftToKernel)));
        assert_eq!(list(&view, true, Ino::ROOT, 9).unwrap(), Answer::Bytes(Cow::Owned(Vec::new())));
    }
}
