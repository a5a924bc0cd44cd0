//! Layers that are small and would take much memory: for each format some.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crfs::blob::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::image::{Layer, estargz_footer, plain, skippable, tar_header, zstd};

/// What a layer has of each of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evil {
    /// An xattr of 60,000 bytes that differs from all others in a few.
    Xattrs,
    /// A symlink whose target has 4,000 bytes.
    Links,
    /// A path of 15 directories that no other entry has, each with a name of 250 bytes.
    Paths,
    /// A path of 2,000 directories that no other entry has, each with the same name.
    Implied,
    /// Nothing: one of a thousand directories below a symlink that leads elsewhere after each thousand, so that their text repeats and packs to nothing.
    Repeated,
    /// A hard link to one and the same path of 4,000 bytes, which the layer does not have.
    Below,
}

impl Evil {
    pub(crate) const ALL: [Self; 5] = [Self::Xattrs, Self::Links, Self::Paths, Self::Implied, Self::Below];

    /// How many entries take `bytes`.
    pub(crate) fn entries(self, bytes: usize) -> usize {
        bytes
            / match self {
                Self::Xattrs => 60_000,
                // 64 for each directory.
                Self::Implied => 128_000,
                Self::Repeated => 64,
                Self::Links | Self::Paths | Self::Below => 4_000,
            }
    }

    fn entry(self, number: usize) -> Entry {
        let name = format!("entry-{number}");
        let of = |kind: u8, typed: &'static str, name: String| Entry {
            kind,
            typed,
            name,
            link: String::new(),
            xattr: Vec::new(),
        };
        match self {
            Self::Xattrs => {
                let mut xattr = vec![b'x'; 60_000];
                xattr[..8].copy_from_slice(format!("{number:08}").as_bytes());
                Entry { xattr, ..of(b'5', "dir", name) }
            }
            Self::Links => Entry { link: format!("{number:0>4000}"), ..of(b'2', "symlink", name) },
            Self::Below => Entry { link: vec!["b".repeat(250); 15].join("/"), ..of(b'1', "hardlink", name) },
            Self::Repeated => match number % 1_000 {
                0 => of(b'5', "dir", format!("d{}", number / 1_000)),
                1 => Entry { link: format!("d{}", number / 1_000), ..of(b'2', "symlink", "c".to_owned()) },
                below => of(b'5', "dir", format!("c/{below}")),
            },
            Self::Implied => of(b'5', "dir", format!("{name}/{}d", "d/".repeat(1_998))),
            Self::Paths => {
                let names = (0..15).map(|depth| format!("{:0>250}", number * 15 + depth));
                of(b'5', "dir", names.collect::<Vec<_>>().join("/"))
            }
        }
    }

    fn toc(self, entries: usize, out: &mut dyn Write) {
        write!(out, r#"{{"version":1,"entries":["#).unwrap();
        for number in 0..entries {
            let Entry { typed, name, link, xattr, .. } = self.entry(number);
            let comma = if number > 0 { "," } else { "" };
            let xattr = BASE64_STANDARD.encode(xattr);
            write!(
                out,
                r#"{comma}{{"name":"{name}","type":"{typed}","linkName":"{link}","xattrs":{{"user.x":"{xattr}"}}}}"#
            )
            .unwrap();
        }
        write!(out, "]}}").unwrap();
    }

    fn tar(self, entries: usize, out: &mut dyn Write) {
        for number in 0..entries {
            let Entry { kind, name, link, xattr, .. } = self.entry(number);
            let mut records = Vec::new();
            for (key, value) in
                [("SCHILY.xattr.user.x", &xattr[..]), ("path", name.as_bytes()), ("linkpath", link.as_bytes())]
            {
                if !value.is_empty() {
                    records.extend(record(key, value));
                }
            }
            let len = records.len();
            records.resize(len.next_multiple_of(512), 0);
            out.write_all(&tar_header(b'x', "pax", "", len)).unwrap();
            out.write_all(&records).unwrap();
            out.write_all(&tar_header(kind, "short", "short", 0)).unwrap();
        }
        out.write_all(&[0; 1024]).unwrap();
    }
}

struct Entry {
    /// Of a tar header.
    kind: u8,
    /// Of a TOC's entry.
    typed: &'static str,
    name: String,
    link: String,
    xattr: Vec<u8>,
}

/// A pax record (POSIX.1-2017): its length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let with = |digits: usize| body.len() + digits;
    let len = (1..9).map(with).find(|len| len.to_string().len() + body.len() == *len).unwrap();
    [len.to_string().as_bytes(), &body].concat()
}

/// Makes a layer with so many entries.
pub(crate) type Writer = fn(Evil, usize) -> Layer;

pub(crate) const WRITERS: [(&str, Writer); 5] = [
    ("estargz", estargz),
    ("zstd:chunked", zstd_chunked),
    ("tar", |evil, entries| plain(written(|out| evil.tar(entries, out)))),
    ("tar+gzip", |evil, entries| plain(gzipped(|out| evil.tar(entries, out)))),
    ("tar+zstd", |evil, entries| plain(zstd(&written(|out| evil.tar(entries, out))))),
];

fn written(write: impl FnOnce(&mut dyn Write)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

/// Compressed while it is written: it may be large.
fn gzipped(write: impl FnOnce(&mut dyn Write)) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    write(&mut gzip);
    gzip.finish().unwrap()
}

/// Counts and hashes.
#[derive(Default)]
struct Sum(usize, Sha256);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        self.1.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn estargz(evil: Evil, entries: usize) -> Layer {
    let mut toc = Sum::default();
    evil.toc(entries, &mut toc);
    let Sum(len, hash) = toc;
    let mut blob = gzipped(|out| out.write_all(b"payload").unwrap());
    let offset = blob.len();
    blob.extend(gzipped(|out| {
        out.write_all(&tar_header(b'0', "stargz.index.json", "", len)).unwrap();
        evil.toc(entries, out);
        out.write_all(&vec![0; len.next_multiple_of(512) - len + 1024]).unwrap();
    }));
    blob.extend(estargz_footer(offset as u64));
    let digest = Digest::from_bytes(hash.finalize().into()).to_string();
    let annotations = BTreeMap::from([("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest)]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", annotations }
}

pub(crate) fn zstd_chunked(evil: Evil, entries: usize) -> Layer {
    let toc = written(|out| evil.toc(entries, out));
    let packed = zstd(&toc);
    let mut blob = zstd(b"payload");
    let position = blob.len() + 8;
    blob.extend(skippable(&packed));
    let numbers = [position, packed.len(), toc.len(), 1, 0, 0, 0].map(|number| (number as u64).to_le_bytes());
    blob.extend(skippable(&[&numbers.concat()[..], b"GNUlInUx"].concat()));
    let of = |key: &str| format!("io.github.containers.zstd-chunked.{key}");
    let annotations = BTreeMap::from([
        (of("manifest-checksum"), Digest::of(&packed).to_string()),
        (of("manifest-position"), format!("{position}:{}:{}:1", packed.len(), toc.len())),
    ]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+zstd", annotations }
}
