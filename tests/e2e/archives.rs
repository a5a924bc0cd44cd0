//! Archives and layouts on disk that are not what they seem: compressed, of several names, or no images at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crfs::blob::Digest;
use serde_json::{Value, json};

use crate::fixtures::{docker_archive, fixtures};
use crate::support::podman::Store;
use crate::support::{Lab, run};

const ARCHIVES: [&str; 2] = ["oci-archive", "docker-archive"];

/// The fixture sink in an archive, compressed by a program under a name that does not say so.
fn compressed(lab: &Lab, transport: &str, program: &[&str]) -> PathBuf {
    let (name, options) = program.split_first().unwrap();
    let packed = lab.path(format!("{transport}.{name}.tar"));
    let oci = fixtures().join("sink.oci-archive.tar");
    let archive = fs::File::open(if transport == "docker-archive" { docker_archive() } else { &oci }).unwrap();
    let mut command = Command::new(name);
    command.args(options).stdin(archive).stdout(fs::File::create(&packed).unwrap());
    assert!(command.status().unwrap().success(), "{command:?}");
    packed
}

#[test]
fn a_compressed_archive_is_mounted() {
    let Some(lab) = Lab::new() else { return };
    for transport in ARCHIVES {
        for program in [&["gzip", "-c"][..], &["zstd", "-qc"]] {
            let packed = compressed(&lab, transport, program);
            let image = format!("{transport}:{}", packed.display());
            let cache = lab.fresh("cache");
            // The second finds indexes and contents in the cache.
            for _ in 0..2 {
                lab.assert_equal(lab.mount_with(&image, &cache, &[]).dir(), "sink", &[]);
            }
            let mount = lab.mount_with(&image, &lab.fresh("cache"), &["--prefetch", "none"]);
            fs::remove_file(packed).unwrap();
            lab.assert_equal(mount.dir(), "sink", &[]);
        }
    }
}

#[test]
fn an_archive_that_is_too_large_for_the_cache_is_refused_and_leaves_nothing_there() {
    let Some(lab) = Lab::new() else { return };
    let packed = compressed(&lab, "docker-archive", &["gzip", "-c"]);
    let (image, cache) = (format!("docker-archive:{}", packed.display()), lab.fresh("cache"));
    let refused = lab.try_mount(&image, &cache, &["--cache-size", "2MiB"]).err().expect("it was mounted").refused();
    assert!(refused.contains(packed.to_str().unwrap()) && refused.contains("--cache-size"), "{refused}");
    let cache = cache.to_str().unwrap();
    let show = lab.crfs(&["cache", "show", "--json", "--cache-dir", cache, "--cache-size", "2MiB"]).ok();
    let show: Value = serde_json::from_str(&show).unwrap();
    assert!(show["total"].as_u64().unwrap() < 1 << 20, "{show}");
    lab.assert_equal(lab.mount_with(&image, Path::new(cache), &["--cache-size", "64MiB"]).dir(), "sink", &[]);
}

#[test]
fn an_archive_in_another_compression_is_named() {
    let Some(lab) = Lab::new() else { return };
    for (program, magic) in [("xz", b"\xfd7zXZ\0\0\x04".as_slice()), ("bzip2", b"BZh91AY&SY")] {
        let packed = lab.path("image.tar");
        fs::write(&packed, magic).unwrap();
        for transport in ARCHIVES {
            let refused = lab.crfs(&["ls", &format!("{transport}:{}", packed.display())]).refused();
            assert!(refused.contains(program) && refused.contains("unpack it first"), "{refused}");
        }
    }
}

/// An OCI layout with what is put into it.
struct Layout(PathBuf);

impl Layout {
    fn new(lab: &Lab) -> Self {
        let dir = lab.fresh("layout");
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        Self(dir)
    }

    /// A descriptor of a blob that is put in.
    fn put(&self, media_type: &str, blob: &[u8]) -> Value {
        let digest = Digest::of(blob);
        fs::write(self.0.join("blobs/sha256").join(digest.hex()), blob).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": blob.len()})
    }

    /// A manifest with one layer, called `tag`.
    fn manifest(&self, tag: &str, mut manifest: Value, config: &str, layer: Value) -> Value {
        manifest["schemaVersion"] = 2.into();
        manifest["config"] = self.put(config, b"{}");
        manifest["layers"] = json!([layer]);
        let mut entry = self.put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entry
    }

    fn index(&self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        fs::write(self.0.join("index.json"), index).unwrap();
    }

    fn named(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.display())
    }
}

#[test]
fn artifacts_are_called_what_they_are() {
    let Some(lab) = Lab::new() else { return };
    let layout = Layout::new(&lab);
    let mut file = layout.put("application/vnd.oci.image.layer.v1.tar", b"hi\n");
    file["annotations"] = json!({"org.opencontainers.image.title": "f.txt"});
    let weight = layout.put("application/vnd.cncf.model.weight.v1.raw", b"w");
    let gguf = layout.put("application/vnd.ollama.image.model", b"g");
    let (empty, image) = ("application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json");
    let (docker, unknown) = ("application/vnd.docker.container.image.v1+json", "application/vnd.unknown.artifact.v1");
    let model = "application/vnd.cncf.model.manifest.v1+json";
    let pushed = json!({ "artifactType": unknown });
    layout.index(&[
        layout.manifest("oras", pushed.clone(), empty, file.clone()),
        layout.manifest("config", pushed, image, file.clone()),
        layout.manifest("old", json!({}), "application/vnd.unknown.config.v1+json", file),
        layout.manifest("model", json!({ "artifactType": model }), "application/vnd.cncf.model.config.v1+json", weight),
        layout.manifest("ollama", json!({}), docker, gguf),
    ]);
    let kinds = [
        ("oras", unknown),
        ("config", unknown),
        ("old", "application/vnd.unknown.config.v1+json"),
        ("model", "a ModelPack model"),
        ("ollama", "an Ollama model"),
    ];
    for (tag, kind) in kinds {
        let image = layout.named(tag);
        let said =
            |refused: String| assert!(refused.contains(kind) && refused.contains("no artifacts yet"), "{refused}");
        said(lab.try_mount(&image, &lab.fresh("cache"), &[]).err().expect("it was mounted").refused());
        for command in [&["ls"][..], &["inspect"], &["index"]] {
            said(lab.crfs(&[command, &[&image]].concat()).refused());
        }
        said(lab.crfs(&["cat", &image, "f.txt"]).refused());
    }
    let Some(store) = Store::unserved(&lab) else { return };
    let refused = store.crfs("add", &[&layout.named("ollama")]).refused();
    assert!(refused.contains("an Ollama model") && store.list().is_empty(), "{refused}");
}

#[test]
fn images_are_found_by_whole_names() {
    let Some(lab) = Lab::new() else { return };
    let layout = PathBuf::from(lab.layout("late-gz").trim_start_matches("oci:").trim_end_matches(":latest"));
    let copy = lab.path("copy");
    run(Command::new("cp").arg("-a").arg(layout).arg(&copy)).ok();
    let index: Value = serde_json::from_slice(&fs::read(copy.join("index.json")).unwrap()).unwrap();
    let mut image = index["manifests"][0].clone();
    image["annotations"] = json!({"io.containerd.image.name": "docker.io/library/late:1"});
    let mut other = image.clone();
    other["digest"] = Digest::of(b"other").to_string().into();
    other["annotations"]["io.containerd.image.name"] = "docker.io/library/other:1".into();
    let write =
        |entries: &[&Value]| fs::write(copy.join("index.json"), json!({"manifests": entries}).to_string()).unwrap();
    write(&[&image, &other]);
    for name in ["late:1", "docker.io/library/late:1"] {
        lab.assert_equal(lab.mount(&format!("oci:{}:{name}", copy.display()), &[]).dir(), "late", &[]);
    }
    other["annotations"] = image["annotations"].clone();
    write(&[&image, &other]);
    let refused = lab.crfs(&["ls", &format!("oci:{}:late:1", copy.display())]).refused();
    assert!([&image, &other].iter().all(|entry| refused.contains(entry["digest"].as_str().unwrap())), "{refused}");
}
