//! The libraries that an ELF file says it needs, read from the few parts of it that say so.
//!
//! ```text
//! file header -> program headers -+- PT_INTERP  the path of the program that loads it
//!                                 |- PT_DYNAMIC --> DT_NEEDED, DT_RUNPATH: places in the string table
//!                                 `- PT_LOAD    where an address lies in the file
//! ```
//!
//! System V ABI, "Object Files" and "Dynamic Linking". Nothing here is trusted: what is wrong only makes a bad guess.

use elf::abi::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, ELFMAGIC, PT_DYNAMIC, PT_INTERP, PT_LOAD,
};
use elf::dynamic::{Dyn, DynamicTable};
use elf::endian::AnyEndian;
use elf::file::{Class, FileHeader};
use elf::segment::{ProgramHeader, SegmentTable};
use elf::string_table::StringTable;

use super::super::files::LONGEST_PATH;
use crate::blob::ByteRange;

/// Bytes of the largest table that is read; real ones are a tenth of it. A string table of C++ names can be larger: then its head.
const LARGEST_TABLE: u64 = 256 << 10;

/// More libraries than any program names itself.
const MOST_LIBRARIES: usize = 256;

/// More directories to look for libraries in than any program names.
const MOST_DIRECTORIES: usize = 64;

/// The magic number, class, data encoding and so on (ELF's `e_ident`).
const IDENT: usize = 16;

/// A file header of 64 bits, the longer one.
const HEADER: u64 = 64;

/// What a file needs to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// Its interpreter's path.
    pub interpreter: Option<Vec<u8>>,
    /// Names of libraries, as a rule without a path.
    pub libraries: Vec<Vec<u8>>,
    /// Directories to look for them in, `$ORIGIN` for the file's own.
    pub search: Vec<Vec<u8>>,
}

/// Why nothing is known of what a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is no ELF file, or a broken one.
    NotElf,
    /// These bytes of it are not here.
    Missing,
}

/// `read` gives bytes of the file where they are here. A range that passes the file's end is cut there.
///
/// # Errors
/// Where it is no ELF file, or `read` does not give what says so.
pub fn needed(read: &dyn Fn(ByteRange) -> Option<Vec<u8>>) -> Result<Needed, Unknown> {
    let read = |start: u64, len: u64| {
        let range = ByteRange::at(start, len.min(LARGEST_TABLE)).ok_or(Unknown::NotElf)?;
        read(range).ok_or(Unknown::Missing)
    };
    let head = read(0, HEADER)?;
    if !head.starts_with(&ELFMAGIC) {
        return Err(Unknown::NotElf);
    }
    let header = file_header(&head).ok_or(Unknown::NotElf)?;
    let table = read(header.e_phoff, u64::from(header.e_phentsize).saturating_mul(header.e_phnum.into()))?;
    let segments: Vec<ProgramHeader> = SegmentTable::new(header.endianness, header.class, &table).iter().collect();
    let mut found = Needed::default();
    if let Some(segment) = segments.iter().find(|segment| segment.p_type == PT_INTERP) {
        let path = read(segment.p_offset, segment.p_filesz)?;
        let path = path.split(|byte| *byte == 0).next().filter(|path| path.len() <= LONGEST_PATH);
        found.interpreter = path.map(<[u8]>::to_vec);
    }
    if let Some(segment) = segments.iter().find(|segment| segment.p_type == PT_DYNAMIC) {
        let table = read(segment.p_offset, segment.p_filesz)?;
        let table = DynamicTable::new(header.endianness, header.class, &table);
        let entries: Vec<Dyn> = table.iter().take_while(|entry| entry.d_tag != DT_NULL).collect();
        libraries(&mut found, &entries, &segments, &read)?;
    }
    Ok(found)
}

fn file_header(head: &[u8]) -> Option<FileHeader<AnyEndian>> {
    let ident = elf::file::parse_ident::<AnyEndian>(head.get(..IDENT)?).ok()?;
    let rest = match ident.1 {
        Class::ELF32 => head.get(IDENT..52)?,
        Class::ELF64 => head.get(IDENT..64)?,
    };
    FileHeader::parse_tail(ident, rest).ok()
}

fn libraries(
    found: &mut Needed,
    entries: &[Dyn],
    segments: &[ProgramHeader],
    read: &dyn Fn(u64, u64) -> Result<Vec<u8>, Unknown>,
) -> Result<(), Unknown> {
    let value = |tag| entries.iter().find(|entry| entry.d_tag == tag).map(Dyn::d_val);
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(()) };
    let names = read(offset_of(address, segments).ok_or(Unknown::NotElf)?, size)?;
    let names = StringTable::new(&names);
    let text = |entry: &Dyn| {
        let name = names.get_raw(usize::try_from(entry.d_val()).ok()?).ok()?;
        (name.len() <= LONGEST_PATH).then(|| name.to_vec())
    };
    let texts = |tag| entries.iter().filter(move |entry| entry.d_tag == tag).filter_map(text);
    found.libraries = texts(DT_NEEDED).take(MOST_LIBRARIES).collect();
    let paths = texts(DT_RUNPATH).chain(texts(DT_RPATH));
    let split = |paths: Vec<u8>| paths.split(|byte| *byte == b':').map(<[u8]>::to_vec).collect::<Vec<_>>();
    found.search = paths.flat_map(split).take(MOST_DIRECTORIES).collect();
    Ok(())
}

/// Where in the file an address of the loaded program lies.
fn offset_of(address: u64, segments: &[ProgramHeader]) -> Option<u64> {
    let mut loaded = segments.iter().filter(|segment| segment.p_type == PT_LOAD);
    loaded.find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr).filter(|into| *into < segment.p_filesz)?;
        segment.p_offset.checked_add(into)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &[u8]) -> Result<Needed, Unknown> {
        needed(&|range| {
            let end = usize::try_from(range.end).ok()?.min(file.len());
            file.get(usize::try_from(range.start).ok()?..end).map(<[u8]>::to_vec)
        })
    }

    /// The program that runs this test: it needs a C library and has an interpreter.
    fn this() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_real_program_names_its_libraries() {
        let found = of(&this()).unwrap();
        assert!(found.libraries.iter().any(|name| name.starts_with(b"libc.")), "{found:?}");
        assert!(found.interpreter.unwrap().starts_with(b"/lib"));
    }

    #[test]
    fn what_is_not_here_is_not_guessed_at() {
        let file = this();
        let head = |range: ByteRange| (range.end <= HEADER).then(|| file[..range.end as usize].to_vec());
        assert_eq!(needed(&head), Err(Unknown::Missing));
        assert_eq!(needed(&|_| None), Err(Unknown::Missing));
    }

    #[test]
    fn whatever_stands_in_a_file_is_borne() {
        assert_eq!(of(b""), Err(Unknown::NotElf));
        assert_eq!(of(b"#!/bin/sh\n"), Err(Unknown::NotElf));
        let file = this();
        for (at, value) in (0..4096).flat_map(|at| [(at, 0), (at, 0xff)]) {
            let mut broken = file[..8192.min(file.len())].to_vec();
            broken[at] = value;
            let _whatever = of(&broken);
        }
    }
}
