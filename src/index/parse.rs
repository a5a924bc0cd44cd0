//! From a decoded TOC to what it describes, its digest taken on the way.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::builder::{Builder, Layer};
use super::error::{Error, Problem, Rejected};
use super::stored::Codec;
use super::toc;
use crate::blob::Digest;
use crate::budget::Charge;

/// Where the blob's payload ends, and what its units are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload {
    pub(super) codec: Codec,
    pub(super) end: u64,
}

/// Parses a TOC's JSON of exactly `len` bytes. Nothing comes out before its digest was found to be what the manifest names, if it names one.
pub(super) fn layer(
    json: impl Read,
    len: u64,
    named: Option<Digest>,
    payload: Payload,
    blob: Digest,
    charge: Charge,
) -> Result<Layer, Error> {
    let mut json = Hashing { inner: json, hasher: Sha256::new(), len: 0, limit: len };
    let mut builder = Builder::new(payload.codec, payload.end).charged(charge);
    let parsed = toc::parse(&mut json, &mut |entry| builder.add(entry)).and_then(|()| builder.finish());
    if let Some(named) = named {
        // After an error the rest counts too: wrong bytes are told from a wrong TOC.
        let rest = io::copy(&mut json, &mut io::sink());
        let got = Digest::from_bytes(json.hasher.clone().finalize().into());
        if got != named {
            return match (rest, parsed) {
                (Err(_), Err(rejected)) if json.len > len => Err(rejected.at(blob)),
                (Err(_), _) => Err(Error::TocDamaged { layer: blob }),
                _ => Err(Error::TocDigest { layer: blob, named, got }),
            };
        }
    }
    let layer = parsed.map_err(|rejected| rejected.at(blob))?;
    if json.len == len { Ok(layer) } else { Err(Rejected::from(Problem::DecodedLength { said: len }).at(blob)) }
}

/// Counts and hashes what is read, and reads one byte past its declared length at most.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    len: u64,
    limit: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.len += got as u64;
        if self.len > self.limit {
            return Err(io::Error::other(Problem::DecodedLength { said: self.limit }));
        }
        self.hasher.update(buffer.get(..got).unwrap_or_default());
        Ok(got)
    }
}
