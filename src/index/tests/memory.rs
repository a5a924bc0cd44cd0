//! What making an index takes is charged before it is taken, and what honest layers need is honest.

use std::collections::VecDeque;

use crate::blob::{ByteRange, Digest};
use crate::budget::{Budget, Charge, Exceeded};
use crate::index::builder::Builder;
use crate::index::error::Problem;
use crate::index::stored::{self, Codec, Piece, Tables, Unit};
use crate::index::tar::tests::Head;
use crate::index::tar_split::Order;
use crate::index::toc::{EntryType, TocEntry};
use crate::index::{Error, Failed, Format, Unpacker, split};

fn within(limit: u64, stored: u64) -> Charge {
    Budget::of_process().of_image(limit).charge(stored)
}

fn entry(name: &str, kind: EntryType) -> TocEntry {
    let mut entry = TocEntry::default();
    (entry.name, entry.kind) = (name.as_bytes().to_vec(), Some(kind));
    entry
}

#[test]
fn what_the_last_step_takes_is_charged() {
    const COUNT: u64 = 100_000;
    let built = |limit: u64| {
        let mut builder = Builder::new(Codec::Gzip, 100).charged(within(limit, 0));
        for _ in 0..COUNT {
            builder.add(&mut entry("again", EntryType::Dir)).unwrap();
        }
        builder.finish()
    };
    // 48 for each while they are gathered; then a number, and a place in the order.
    assert!(matches!(built(52 * COUNT).unwrap_err().problem, Problem::Memory(Exceeded::Image { .. })));
    assert_eq!(built(62 * COUNT).unwrap().entries.len(), 2);
}

/// A file of so many chunks, each of which takes so many bytes of the blob.
fn chunked(chunks: u64, packed: u64, charge: Charge) -> Result<bytes::Bytes, String> {
    const SIZE: u64 = 64 << 10;
    let mut builder = Builder::new(Codec::Zstd, (chunks + 1) * packed).charged(charge);
    for number in 0..chunks {
        let mut chunk = entry("file", if number == 0 { EntryType::File } else { EntryType::Chunk });
        (chunk.size, chunk.chunk_size, chunk.chunk_offset) = (chunks * SIZE, SIZE, number * SIZE);
        (chunk.offset, chunk.chunk_digest) = ((number + 1) * packed, Some(Digest::of(&number.to_le_bytes())));
        builder.add(&mut chunk).map_err(|rejected| format!("{rejected:?}"))?;
    }
    let layer = builder.finish().map_err(|rejected| format!("{rejected:?}"))?;
    let encoded = stored::encode(Digest::of(b""), None, Format::ZstdChunked, 0, None, layer);
    encoded.map(|encoded| encoded.bytes).map_err(|error| error.to_string())
}

#[test]
fn chunks_of_real_contents_are_honest_and_those_that_stand_for_nothing_are_not() {
    const CHUNKS: u64 = 20_000;
    const LIMIT: u64 = 100_000;
    // Their digests alone take so much of a table of contents.
    let stored = CHUNKS * 40;
    chunked(CHUNKS, 4 << 10, within(LIMIT, stored)).unwrap();
    assert!(chunked(CHUNKS, 20, within(LIMIT, stored)).is_err(), "no contents");
    assert!(chunked(CHUNKS, 4 << 10, within(LIMIT, stored / 40)).is_err(), "no digests");
    // 200 for each until the file ends.
    assert!(chunked(CHUNKS, 20, within(150 * CHUNKS, stored)).is_err(), "what the last chunk makes is charged before");
    // And as many again where they are encoded.
    chunked(CHUNKS, 20, within(400 * CHUNKS, stored)).unwrap();
}

#[test]
fn windows_are_as_honest_in_the_index_as_they_were_before() {
    let encoded = |share: u64| {
        let mut tables = Tables::default();
        let window: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(at) >> 7) as u8).collect();
        let window = tables.window(&window);
        let range = ByteRange { start: 0, end: 5 };
        tables.piece(&Piece { unit: 0, in_unit: 0, range });
        tables.unit(&Unit { compressed: range, codec: Codec::Deflate { bits: 0, window }, pieces: 0..1 });
        let builder = Builder::new(Codec::Stored, 0).charged(within(100_000, 1 << 20));
        let layer = builder.finish_placed(tables, share).unwrap();
        stored::encode(Digest::of(b""), None, Format::TarGzip, 0, None, layer).map(drop)
    };
    encoded(2 << 20).unwrap();
    assert!(matches!(encoded(0), Err(Error::Memory { what: "its index", .. })));
}

#[test]
fn what_a_decoder_keeps_of_a_layer_is_charged() {
    let zeros = vec![0; 8 << 20];
    let tar = [Head::new(b'0', b"zeros").with(&zeros), vec![0; 1024]].concat();
    let mut packer = zstd::bulk::Compressor::new(1).unwrap();
    packer.window_log(24).unwrap();
    packer.include_contentsize(false).unwrap();
    let blob = packer.compress(&tar).unwrap();
    let read = |limit: u64| {
        let (mut events, mut unpacker) = (VecDeque::new(), Unpacker::new(Format::TarZstd).unwrap());
        let tell = &mut |event| {
            events.push_back(event);
            Ok(())
        };
        unpacker.push(&blob, tell).unwrap();
        unpacker.finish(tell).unwrap();
        let order = Order { file: tempfile::tempfile().unwrap(), raw: Default::default() };
        split(Digest::of(&blob), &mut || Ok(events.pop_front()), order, within(limit, 0)).map(drop)
    };
    assert!(read(9 << 20).is_ok());
    let Err(Failed::Stream(error)) = read(6 << 20) else { panic!("it was read") };
    assert!(matches!(error.get_ref().unwrap().downcast_ref(), Some(Exceeded::Image { .. })));
}
