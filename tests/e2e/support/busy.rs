//! An image to run programs in. The repository may hold nobody's programs, so that it is made here, of this machine's static busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crfs::blob::Digest;
use serde_json::{Value, json};

use super::lab::skip;
use super::tree::{Entry, estargz};

/// What [`super::Lab::dir_of`] knows it by.
pub(crate) const NAME: &str = "busy";

/// Names of busybox beside its own.
const APPLETS: [&str; 40] = [
    "[", "ash", "awk", "basename", "cat", "chmod", "chown", "cmp", "cp", "cut", "date", "dd", "echo", "env", "false",
    "find", "grep", "head", "id", "kill", "ln", "ls", "md5sum", "mkdir", "mount", "mv", "printf", "ps", "readlink",
    "rm", "sed", "sh", "sleep", "sort", "stat", "tail", "touch", "true", "wc", "zcat",
];

/// How many names are in its /bin.
pub(crate) const FILES: usize = APPLETS.len() + 1;

/// What a chunk of it holds: busybox has several.
const CHUNK: usize = 256 << 10;

/// `None`, said on stderr, where there is no static busybox.
pub(crate) fn is_there() -> Option<()> {
    match busybox() {
        Some(_) => Some(()),
        None => skip("there is no busybox that needs no libraries: install the package busybox-static"),
    }
}

fn busybox() -> Option<&'static [u8]> {
    static FOUND: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let found = FOUND
        .get_or_init(|| ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| is_static(fs::read(path).ok()?)));
    found.as_deref()
}

/// The program, if it asks for no interpreter.
fn is_static(program: Vec<u8>) -> Option<Vec<u8>> {
    let file = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(&program).ok()?;
    let asks = file.segments()?.iter().any(|segment| segment.p_type == elf::abi::PT_INTERP);
    (!asks).then_some(program)
}

/// Its OCI layout: one eStargz layer. Made once for all tests, in cargo's directory for that.
pub(crate) fn layout() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make(busybox().expect("no test asks for it where it is not there"))).clone()
}

fn make(busybox: &[u8]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busy");
    // Of an earlier run, and maybe of another busybox.
    let _gone = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let (layer, diff_id) = estargz(&entries(busybox), CHUNK);
    let config = json!({"os": "linux", "architecture": architecture(), "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]}});
    put(layer.media_type, &layer.blob);
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer.descriptor()]});
    let mut manifest: Value = put(kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    dir
}

fn entries(busybox: &[u8]) -> Vec<Entry> {
    let dirs = ["bin/", "dev/", "etc/", "proc/", "run/", "sys/"].map(Entry::dir);
    let program = Entry::file("bin/busybox", busybox).mode(0o755);
    let names = APPLETS.map(|applet| Entry::hard_link(format!("bin/{applet}").leak(), "bin/busybox").mode(0o755));
    let passwd = Entry::file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n");
    dirs.into_iter().chain([Entry::dir("tmp/").mode(0o1777), program]).chain(names).chain([passwd]).collect()
}

/// This machine's, as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
