use std::io::Write;

use proptest::prelude::*;

use super::gzip::LEAST;
use super::*;
use crate::index::plain::window::unpack;
use crate::sys::inflate::{Inflate, Stop, Wrapping};

/// Text whose repetitions reach back by all distances.
fn content(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut out: Vec<u8> = Vec::with_capacity(len + 100);
    while out.len() < len {
        let (back, count) = (1 + next() % 40_000, 3 + next() % 60);
        if back < out.len() && next() % 3 > 0 {
            let start = out.len() - back;
            for at in start..start + count.min(back) {
                out.push(out[at]);
            }
        } else {
            out.extend((0..count).map(|_| (next() % 256) as u8));
        }
    }
    out.truncate(len);
    out
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Debug, Default)]
struct Told {
    bytes: Vec<u8>,
    units: Vec<(u64, u64, Start)>,
    windows: Vec<(u32, Vec<u8>)>,
    end: Option<u64>,
}

fn told(format: Format, blob: &[u8], cut: usize) -> io::Result<Told> {
    let mut told = Told::default();
    let mut unpacker = Unpacker::new(format)?;
    let mut tell = |event| {
        assert!(told.end.is_none());
        match event {
            Event::Unit { compressed, decoded, start } => {
                assert_eq!(decoded, told.bytes.len() as u64);
                told.units.push((compressed, decoded, start));
            }
            Event::Bytes(bytes) => told.bytes.extend(bytes),
            Event::Window { unit, packed } => told.windows.push((unit, packed)),
            Event::Holds(_) => {}
            Event::End { compressed } => told.end = Some(compressed),
        }
        Ok(())
    };
    blob.chunks(cut).try_for_each(|part| unpacker.push(part, &mut tell))?;
    unpacker.finish(&mut tell)?;
    Ok(told)
}

/// Every span, decompressed from its checkpoint alone, has the bytes that the stream has there.
fn check_spans(told: &Told, blob: &[u8]) {
    for (number, (compressed, decoded, start)) in told.units.iter().enumerate() {
        let Start::Deflate { bits } = *start else { panic!("{start:?}") };
        let window =
            told.windows.iter().find(|(unit, _)| *unit as usize == number).map(|(_, packed)| unpack(packed).unwrap());
        let mut inflate = Inflate::new(Wrapping::Raw).unwrap();
        window.iter().for_each(|window| inflate.set_window(window).unwrap());
        let mut at = *compressed as usize;
        if bits > 0 {
            inflate.prime(bits, blob[at]).unwrap();
            at += 1;
        }
        let next = told.units.get(number + 1).map_or(told.bytes.len(), |unit| unit.1 as usize);
        let wanted = &told.bytes[*decoded as usize..next];
        let mut got = vec![0; wanted.len()];
        let mut given = 0;
        while given < got.len() {
            let step = inflate.step(&blob[at..], &mut got[given..]).unwrap();
            (at, given) = (at + step.consumed, given + step.produced);
            if step.stop == Stop::End {
                break;
            }
        }
        assert!(given == wanted.len() && got == wanted, "unit {number}");
    }
}

#[test]
fn gzip_units_start_about_every_span_and_need_only_their_windows() {
    let content = content(9 << 20);
    for level in [1, 6, 9] {
        let blob = gzip(&content, level);
        let told = told(Format::TarGzip, &blob, 50_000).unwrap();
        assert!(told.bytes == content);
        assert_eq!(told.end, Some(blob.len() as u64));
        // At level 1 some writers make blocks of several MiB.
        let (least, most) = (if level == 1 { 2 } else { 7 }, 9);
        assert!((least..=most).contains(&told.units.len()), "{level}: {}", told.units.len());
        assert_eq!(told.windows.len(), told.units.len() - 1);
        check_spans(&told, &blob);
    }
}

#[test]
fn units_of_what_is_packed_well_are_longer() {
    let text: Vec<u8> = (0..1_500_000u32).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
    let blob = gzip(&text, 9);
    let told = told(Format::TarGzip, &blob, 50_000).unwrap();
    assert!(told.bytes == text);
    assert!(told.units.len() > 5, "{}", told.units.len());
    for unit in told.units.windows(2) {
        let (compressed, decoded) = (unit[1].0 - unit[0].0, unit[1].1 - unit[0].1);
        assert!(compressed + 1 >= LEAST && (SPAN..3 * SPAN).contains(&decoded), "{compressed}, {decoded}");
    }
    check_spans(&told, &blob);
}

#[test]
fn windows_lose_what_nothing_refers_to() {
    // Noise that is never repeated: what follows refers to nothing.
    let mut noise = content(5 << 20);
    let mut state = 1u32;
    noise.iter_mut().for_each(|byte| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    });
    let told = told(Format::TarGzip, &gzip(&noise, 6), 1 << 20).unwrap();
    assert!(
        told.windows.iter().all(|(_, packed)| packed.len() < 1000),
        "{:?}",
        told.windows.iter().map(|w| w.1.len()).collect::<Vec<_>>()
    );
}

#[test]
fn members_empty_ones_and_what_is_none() {
    let content = content(5 << 20);
    let parts = [&content[..10], &[], &content[10..3 << 20], &content[3 << 20..]];
    let mut blob: Vec<u8> = parts.iter().zip([9, 0, 1, 0]).flat_map(|(part, level)| gzip(part, level)).collect();
    let end = blob.len() as u64;
    for garbage in [&b""[..], b"\0", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"garbage behind", b"\x1f"] {
        blob.truncate(end as usize);
        blob.extend_from_slice(garbage);
        for cut in [13_331, blob.len()] {
            let told = told(Format::TarGzip, &blob, cut).unwrap();
            assert!(told.bytes == content && told.end == Some(end), "{garbage:?}");
        }
    }
}

#[test]
fn what_is_cut_is_an_error() {
    let blob = gzip(&content(100_000), 6);
    for len in [0, 1, 5, 12, 1000, blob.len() - 9, blob.len() - 1] {
        assert!(told(Format::TarGzip, &blob[..len], 700).is_err(), "{len}");
    }
    let blob = ::zstd::encode_all(&content(100_000)[..], 3).unwrap();
    for len in [1, 5, 1000, blob.len() - 1] {
        assert!(told(Format::TarZstd, &blob[..len], 700).is_err(), "{len}");
    }
}

#[test]
fn zstd_units_are_frames_small_ones_together() {
    let content = content(3 << 20);
    let mut blob = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    for part in content.chunks(300_000) {
        blob.extend(::zstd::encode_all(part, 1).unwrap());
        blob.extend(::zstd::encode_all(&[][..], 1).unwrap());
    }
    for cut in [1, 999, blob.len()] {
        let told = told(Format::TarZstd, &blob, cut).unwrap();
        assert!(told.bytes == content);
        assert_eq!(told.end, Some(blob.len() as u64));
        assert_eq!(told.units.len(), 6);
        for unit in told.units.windows(2) {
            let [(start, from, _), (end, to, _)] = unit else { unreachable!() };
            let decoded = ::zstd::decode_all(&blob[*start as usize..*end as usize]).unwrap();
            assert!(decoded == content[*from as usize..*to as usize]);
        }
    }
}

#[test]
fn a_tar_that_is_not_compressed_is_cut_anywhere() {
    let content = content(1_500_000);
    let told = told(Format::Tar, &content, 77_777).unwrap();
    assert!(told.bytes == content);
    let starts: Vec<u64> = told.units.iter().map(|unit| unit.0).collect();
    assert_eq!(starts, [0, SMALL_SPAN, 2 * SMALL_SPAN]);
    assert_eq!(told.end, Some(1_500_000));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_the_download_is_cut(len in 0usize..300_000, cut in 1usize..100_000, level in 0u32..=9) {
        let content = content(len);
        let told = told(Format::TarGzip, &gzip(&content, level), cut).unwrap();
        prop_assert!(told.bytes == content);
    }
}
