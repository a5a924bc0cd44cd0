//! What is fetched around a miss: more than what was read, no more than it may be, and nothing wrong.

use std::time::Duration;

use crate::contents::{FORMATS, Lab, Writer, open_guessing};
use crate::image::{File, noise, zstd_chunked};
use crate::registry::{Fault, Lie, On};
use crate::support::within;

const SMALL: usize = 3000;
const PIECE: u64 = 1 << 20;

fn leak(name: String) -> &'static str {
    Box::leak(name.into_boxed_str())
}

/// Small files in directories, and large ones beside them.
fn files() -> Vec<File> {
    let small = |dir: u64| {
        (0..60)
            .map(move |file| File { name: leak(format!("{dir}/{file:02}")), content: noise(SMALL, 100 * dir + file) })
    };
    let large = |dir: u64| File { name: leak(format!("{dir}/large")), content: noise(3 << 20, dir) };
    (1..4).flat_map(|dir| small(dir).chain([large(dir)])).collect()
}

async fn lab(write: Writer) -> Lab {
    Lab::with(write, files()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_of_a_directory_come_together() {
    for (format, write) in FORMATS {
        let lab = lab(write).await;
        let opened = open_guessing(&lab.options()).await.unwrap();
        let before = lab.sent().0;
        for file in lab.files.iter().take(60) {
            assert!(opened.read(file.name, 0, u64::MAX).await.unwrap() == file.content, "{format}: {}", file.name);
        }
        let requests = lab.sent().0 - before;
        assert!(requests < 30, "{format}: {requests} requests for 60 files");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_guessed_wrong_is_bounded() {
    let lab = lab(zstd_chunked).await;
    let opened = open_guessing(&lab.options()).await.unwrap();
    let before = lab.sent().1;
    let mut read = 0;
    for file in lab.files.iter().step_by(13) {
        let part = opened.read(file.name, 0, SMALL as u64).await.unwrap();
        read += part.len() as u64;
    }
    // A chunk of a large file is more than what was read of it.
    let needed = read + 3 * 10_000;
    let waste = lab.layer.blob.len() as u64 / 16;
    let sent = lab.sent().1 - before;
    assert!(sent <= needed * 9 / 4 + waste + PIECE, "{sent} bytes were sent, {needed} needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_brings_its_libraries() {
    let program = std::fs::read("/bin/true").unwrap();
    let large = |name, seed| File { name, content: noise(3 << 20, seed) };
    // Too large to be taken for a small neighbour of anything.
    let library = |name, seed| File { name, content: noise(200 << 10, seed) };
    let files = vec![
        File { name: "bin/true", content: program },
        large("bin/zzz", 1),
        library("lib/libc.so.6", 2),
        large("lib/libz", 3),
    ];
    let lab = Lab::with(zstd_chunked, files).await;
    let opened = open_guessing(&lab.options()).await.unwrap();
    let before = lab.sent().1;
    for _ in 0..2 {
        opened.read("bin/true", 0, u64::MAX).await.unwrap();
    }
    within(async {
        while lab.sent().1 - before < 200 << 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    lab.assert_right(&opened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_that_fail_are_nobodys_error() {
    let faults = [
        Lie::Cut(100),
        Lie::Reset(1000),
        Lie::Status(503, Vec::new()),
        Lie::WrongBytesInCaches,
        Lie::ContentRange(None),
        Lie::Whole,
    ];
    for lie in faults {
        let lab = lab(zstd_chunked).await;
        let opened = open_guessing(&lab.options()).await.unwrap();
        let name = format!("{lie:?}");
        lab.registry.fault(Fault::times(2, On::Blobs, lie));
        for file in lab.files.iter().step_by(7) {
            assert!(opened.read(file.name, 0, u64::MAX).await.unwrap() == file.content, "{name}: {}", file.name);
        }
    }
}

/// Modules far from each other, each with text that hardly packs behind what it brings in.
fn modules() -> Vec<File> {
    let module = |name: &'static str, brings_in: &str, seed| {
        let text: Vec<u8> = noise(40_000, seed).into_iter().map(|byte| b' ' + byte % 64).collect();
        File { name, content: [brings_in.as_bytes(), b"\n#", &text].concat() }
    };
    let between = |name, seed| File { name, content: noise(3 << 20, seed) };
    vec![
        module("app/main.py", "import thing", 1),
        between("app/zzz", 2),
        between("bin/py3", 3),
        module("lib/py3/first.py", "import second, folder", 4),
        between("lib/py3/first.zzz", 5),
        module("lib/py3/folder/__init__.py", "from . import part", 6),
        between("lib/py3/folder/between", 7),
        module("lib/py3/folder/part.py", "", 8),
        between("lib/py3/other", 9),
        module("lib/py3/second.py", "import first, nothing", 10),
        between("lib/py3/site/between", 11),
        module("lib/py3/site/thing/__init__.py", "import second", 12),
    ]
}

/// Reads each of some files; gives the requests that this took.
async fn requests_for(lab: &Lab, opened: &crate::contents::Opened, names: &[&str]) -> usize {
    let before = lab.sent().0;
    for name in names {
        let file = lab.files.iter().find(|file| file.name == *name).unwrap();
        assert!(opened.read(name, 0, u64::MAX).await.unwrap() == file.content, "{name}");
    }
    lab.sent().0 - before
}

async fn sent_from(lab: &Lab, before: u64, bytes: u64) {
    within(async {
        while lab.sent().1 - before < bytes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_brings_in_comes_with_it() {
    let lab = Lab::with(zstd_chunked, modules()).await;
    let opened = open_guessing(&lab.options()).await.unwrap();
    let before = lab.sent().1;
    opened.read("lib/py3/first.py", 0, u64::MAX).await.unwrap();
    // First itself, what it names, and what that names.
    sent_from(&lab, before, 4 * 27_000).await;
    let named = ["lib/py3/second.py", "lib/py3/folder/__init__.py", "lib/py3/folder/part.py"];
    assert_eq!(requests_for(&lab, &opened, &named).await, 0, "all of them were there");
    lab.assert_right(&opened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_commands_script_brings_in_comes_before_it_is_read() {
    let lab = Lab::with(zstd_chunked, modules()).await;
    let opened = open_guessing(&lab.options()).await.unwrap();
    let before = lab.sent().1;
    let around = std::sync::Arc::clone(&opened.around);
    let command = ["/bin/py3", "/app/main.py"].map(|word| vec![word.to_owned()]).to_vec();
    around.starts(command).await;
    // The program, its script, what that names wherever it is, and what that names in the program's own directory.
    sent_from(&lab, before, (3 << 20) + 3 * 25_000).await;
    let named = ["app/main.py", "lib/py3/site/thing/__init__.py", "lib/py3/second.py"];
    assert_eq!(requests_for(&lab, &opened, &named).await, 0, "all of them were there");
    lab.assert_right(&opened).await;
}
