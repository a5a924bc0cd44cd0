//! What a file may say of other files: words that stand for themselves in it, such as the names of the modules that a module imports.
//!
//! | contents | words that count |
//! |---|---|
//! | binary (a zero byte near the start) | strings behind a byte that is their length, as in compiled Python and in much else, or between zero bytes, as in programs |
//! | text | those of lines that bring something in: `import numpy`, `require("./lib")`, `source /etc/profile` |
//!
//! A path or a dotted name is as many words as it has parts. Text inside of binary strings does not count: documentation mentions everything.

use std::collections::HashSet;

/// Where a zero byte tells that a file is binary.
const START: usize = 512;

/// Bytes of a word that may be the name of a file without its suffix.
pub(super) const LENGTHS: std::ops::RangeInclusive<usize> = 2..=64;

/// Words of a file that are looked at.
const MOST: usize = 2048;

/// Words that bring something in, in the languages that name files or modules so.
const BRINGS_IN: [&[u8]; 9] =
    [b"import", b"from", b"require", b"require_relative", b"use", b"include", b"source", b"load", b"exec"];

/// The words of a file, each once, in the order in which they stand in it.
#[must_use]
pub fn words(contents: &[u8]) -> Vec<&[u8]> {
    let mut words = Words::default();
    if contents.iter().take(START).any(|byte| *byte == 0) {
        of_binary(contents, &mut words);
    } else {
        of_text(contents, &mut words);
    }
    words.found
}

/// Whether the first line says which program runs the file.
pub(super) fn is_script(contents: &[u8]) -> bool {
    contents.starts_with(b"#!")
}

#[derive(Default)]
struct Words<'a> {
    found: Vec<&'a [u8]>,
    known: HashSet<&'a [u8]>,
}

impl<'a> Words<'a> {
    fn push(&mut self, string: &'a [u8]) {
        for part in string.split(|byte| matches!(byte, b'.' | b'/')).filter(|part| LENGTHS.contains(&part.len())) {
            if self.found.len() < MOST && self.known.insert(part) {
                self.found.push(part);
            }
        }
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/' | b'+' | b'@')
}

/// The runs of bytes that names are made of, each with the byte before and the one behind it.
fn runs(contents: &[u8]) -> impl Iterator<Item = (Option<u8>, &[u8], Option<u8>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + contents.get(at..)?.iter().position(|byte| is_of_name(*byte))?;
        let rest = contents.get(start..)?;
        let run = rest.get(..rest.iter().position(|byte| !is_of_name(*byte)).unwrap_or(rest.len()))?;
        at = start + run.len();
        Some((start.checked_sub(1).and_then(|before| contents.get(before)).copied(), run, contents.get(at).copied()))
    })
}

fn of_binary<'a>(contents: &'a [u8], words: &mut Words<'a>) {
    for (before, run, behind) in runs(contents) {
        match (before.map(usize::from), behind) {
            (Some(0), Some(0)) => words.push(run),
            (Some(len), _) if LENGTHS.contains(&len) => run.get(..len).into_iter().for_each(|name| words.push(name)),
            _ => {}
        }
    }
}

fn of_text<'a>(contents: &'a [u8], words: &mut Words<'a>) {
    for line in contents.split(|byte| *byte == b'\n') {
        if runs(line).any(|(_, run, _)| BRINGS_IN.contains(&run)) {
            runs(line).filter(|(_, run, _)| !BRINGS_IN.contains(run)).for_each(|(_, run, _)| words.push(run));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(contents: &[u8]) -> Vec<&str> {
        words(contents).into_iter().map(|word| std::str::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn lines_that_bring_something_in() {
        let text = b"#!/usr/bin/python3\nimport numpy.core, os\nfrom . import version\nprint('json')\nx = require(\"./lib/app.js\")\n";
        assert_eq!(shown(text), ["numpy", "core", "os", "version", "lib", "app", "js"]);
        assert!(is_script(text) && !is_script(b"import os"));
        assert!(shown(b"importing nothing, as requirements say").is_empty(), "other words");
        assert!(shown(b"").is_empty());
    }

    #[test]
    fn strings_of_known_length() {
        let compiled =
            b"\xa7\r\r\n\0\0\0\0Z\x05numpyz\x04corer\x01\xda\x08warningsr\x02s\x1ause random, os and json aaa";
        assert_eq!(shown(compiled), ["numpy", "core", "warnings"], "what text says does not count");
    }

    #[test]
    fn strings_between_zeros() {
        assert_eq!(shown(b"\x7fELF\0_hashlib\0libcrypto.so.3\0half"), ["_hashlib", "libcrypto", "so"]);
    }

    #[test]
    fn bounded_and_each_once() {
        let many: Vec<u8> = (0..10_000).flat_map(|number| format!("import m{number} m0\n").into_bytes()).collect();
        assert_eq!(words(&many).len(), MOST);
        let long = [b"import ".as_slice(), &[b'a'; 65]].concat();
        assert!(words(&long).is_empty());
    }
}
