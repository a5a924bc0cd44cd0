//! Raw tar names to clean paths.
//!
//! A TOC has names as the tar had them: `./a`, `a/`, `/a`, `././a//b`. Cleaned, a path is its components joined by single
//! slashes, without one at either end; the root is the empty path. `..` takes away the name before it, whatever that is, as in podman.

use super::error::Problem;
use super::limits;

/// `.wh.NAME` hides NAME of the layers below (OCI image specification 1.1, "Whiteouts").
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Appends the cleaned path of `raw` to `out`, which is emptied first.
///
/// # Errors
/// Where `..` leads out of the root, a name is too long, a byte is NUL, or the path is too long.
pub(crate) fn clean_into(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    out.clear();
    if raw.contains(&0) {
        return Err(Problem::Nul);
    }
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => {
                let (dir, _) = split(out).ok_or(Problem::DotDot)?;
                out.truncate(dir.len());
                continue;
            }
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(component);
    }
    if out.len() > limits::PATH {
        return Err(Problem::PathTooLong { len: out.len() });
    }
    let (dir, name) = split(out).unwrap_or_default();
    // No filesystem holds a whiteout by its own name, only what it hides.
    let name = name.strip_prefix(WHITEOUT).unwrap_or(name);
    let is_long = |name: &&[u8]| name.len() > limits::NAME;
    let long = dir.split(|byte| *byte == b'/').chain([name]).find(is_long);
    long.map_or(Ok(()), |name| Err(Problem::NameTooLong { len: name.len() }))
}

/// The directory and the last component of a cleaned path; the root has neither.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((path.get(..slash)?, path.get(slash + 1..)?)),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::error::shown;

    fn clean(raw: &str) -> Result<String, Problem> {
        let mut out = Vec::new();
        clean_into(raw.as_bytes(), &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn tar_spellings_of_one_path_are_one_path() {
        for raw in ["a/b", "./a/b", "a/b/", "/a/b", "././a//b", "a/./b/.", "a/../a/b", "a/x/../b", "x/y/../../a/b"] {
            assert_eq!(clean(raw).unwrap(), "a/b", "{raw}");
        }
        for root in ["", ".", "./", "/", "/./", "a/..", "a/b/../../"] {
            assert_eq!(clean(root).unwrap(), "", "{root}");
        }
        assert_eq!(clean("..a/.b/...").unwrap(), "..a/.b/...");
    }

    #[test]
    fn names_that_no_filesystem_has_are_refused() {
        for out in ["..", "a/../..", "./../a", "/..", "a/../../a"] {
            assert!(matches!(clean(out), Err(Problem::DotDot)), "{out}");
        }
        assert!(matches!(clean("a\0b"), Err(Problem::Nul)));
        assert!(clean(&"x".repeat(255)).is_ok());
        assert!(matches!(clean(&"x".repeat(256)), Err(Problem::NameTooLong { len: 256 })));
        for (longest, refused) in [(".wh.", true), ("d/.wh.", true), (".wh.wh", false)] {
            assert_eq!(clean(&(longest.to_owned() + &"x".repeat(255))).is_ok(), refused, "{longest}");
            assert!(clean(&(longest.to_owned() + &"x".repeat(256))).is_err());
        }
        assert!(clean(&format!(".wh.{}/x", "x".repeat(255))).is_err(), "no directory can be called so");
        assert!(clean(&"x/".repeat(2048)).is_ok());
        assert!(matches!(clean(&"x/".repeat(2049)), Err(Problem::PathTooLong { len: 4097 })));
    }

    #[test]
    fn paths_split_into_directory_and_name() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
    }

    #[test]
    fn names_in_messages_are_escaped_and_cut() {
        assert_eq!(shown(b"a\n\xff"), "\"a\\n\u{fffd}\"");
        assert!(shown(&[b'x'; 5000]).len() < 1100);
    }
}
