//! Images on disk give the same as a registry: a manifest and byte sources. Against images of other people's writers.

use crfs::blob::Digest;
use crfs::registry::{Error, Image, Options};

use crate::fixtures::{docker_archive, fixtures};
use crate::registry::Registry;
use crate::support::{client, options, range, read, resolve};

async fn layers_are_right(image: &Image) {
    for layer in &image.layers {
        let bytes = read(&layer.blob, range(0, layer.size)).await.unwrap();
        assert_eq!(Digest::of(&bytes), layer.digest);
        let middle = layer.size / 2;
        let part = read(&layer.blob, range(middle, layer.size)).await.unwrap();
        assert_eq!(part, bytes[usize::try_from(middle).unwrap()..]);
    }
}

#[tokio::test]
async fn every_layout_gives_its_layers() {
    let dir = fixtures();
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.join("index.json").exists() {
            let image = resolve(&client(options()), &format!("oci:{}:latest", path.display())).await.unwrap();
            assert_eq!(image.name, format!("oci:{}", path.display()));
            layers_are_right(&image).await;
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen}");
}

#[tokio::test]
async fn a_registry_gives_the_same_images_as_their_layouts() {
    let dir = fixtures();
    let registry = Registry::start().await;
    for name in ["sink-index", "sink-docker", "sink-soci2", "sink-estargz-ext", "late-zc-new"] {
        registry.push_layout(name, &dir.join(name));
        let there = resolve(&client(options()), &format!("{}/{name}", registry.host())).await.unwrap();
        let here = resolve(&client(options()), &format!("oci:{}:latest", dir.join(name).display())).await.unwrap();
        assert_eq!(there.digest, here.digest, "{name}");
        assert_eq!(there.platform, here.platform, "{name}");
        for (there, here) in there.layers.iter().zip(&here.layers) {
            assert_eq!((there.digest, &there.annotations), (here.digest, &here.annotations), "{name}");
        }
        layers_are_right(&there).await;
    }
}

#[tokio::test]
async fn an_archive_gives_the_same_image_as_its_layout() {
    let dir = fixtures();
    let archive = format!("oci-archive:{}", dir.join("sink.oci-archive.tar").display());
    let image = resolve(&client(options()), &archive).await.unwrap();
    assert_eq!(image.layers.len(), 4);
    layers_are_right(&image).await;
    let docker = format!("oci-archive:{}", docker_archive().display());
    let error = resolve(&client(options()), &docker).await.err().unwrap();
    assert!(matches!(error, Error::NotALayout { .. }), "{error}");
}

#[tokio::test]
async fn a_docker_archive_gives_the_tars_that_its_config_names() {
    let dir = fixtures();
    let archive = format!("docker-archive:{}", docker_archive().display());
    let packed = resolve(&client(options()), &format!("oci:{}", dir.join("sink-gz").display())).await.unwrap();
    let packed = packed.config.unwrap();
    let config = read(&packed.blob, range(0, packed.size)).await.unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    for name in ["", ":fixtures.invalid/sink", ":fixtures.invalid/sink:latest", ":@0"] {
        let image = resolve(&client(options()), &format!("{archive}{name}")).await.unwrap();
        assert_eq!((&image.name, image.layers.len()), (&archive, 4));
        for (layer, diff_id) in image.layers.iter().zip(diff_ids) {
            assert_eq!(layer.digest.to_string(), diff_id.as_str().unwrap());
            assert!(layer.media_type.ends_with("layer.v1.tar"), "{}", layer.media_type);
        }
        layers_are_right(&image).await;
        assert_eq!(image.config.unwrap().digest, packed.digest);
    }
    let error = resolve(&client(options()), &format!("{archive}:sink")).await.err().unwrap();
    assert!(error.is_not_found() && error.to_string().contains("fixtures.invalid/sink:latest"), "{error}");
    let layout = format!("docker-archive:{}", dir.join("sink.oci-archive.tar").display());
    let error = resolve(&client(options()), &layout).await.err().unwrap();
    assert!(error.to_string().contains("manifest.json"), "{error}");
}

#[tokio::test]
async fn platforms_tags_and_siblings_are_found_in_a_layout() {
    let dir = fixtures();
    let index = format!("oci:{}", dir.join("sink-index").display());
    let amd64 = resolve(&client(options()), &index).await.unwrap();
    assert_eq!(amd64.layers.len(), 4);
    let arm = client(Options { platform: "linux/arm64".parse().unwrap(), ..options() });
    assert_ne!(resolve(&arm, &index).await.unwrap().digest, amd64.digest);
    let riscv = client(Options { platform: "linux/riscv64".parse().unwrap(), ..options() });
    let error = resolve(&riscv, &index).await.err().unwrap().to_string();
    assert!(error.contains("linux/arm64/v8, linux/amd64"), "{error}");

    let external = format!("oci:{}", dir.join("sink-estargz-ext").display()).parse().unwrap();
    let toc = client(options()).resolve_sibling(&external, "-esgztoc").await.unwrap();
    assert!(toc.layers[0].annotations.contains_key("containerd.io/snapshot/stargz/layer.digest"));
    let error = resolve(&client(options()), &format!("{index}:nope")).await.err().unwrap();
    assert!(error.is_not_found() && error.to_string().contains("latest"), "{error}");
}

/// A layout with the blobs that are put into it.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Self(dir)
    }

    /// Puts in a blob, and gives a descriptor of it, to which `more` is added.
    fn put(&self, bytes: &[u8], more: serde_json::Value) -> serde_json::Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.0.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        let mut entry = serde_json::json!({"digest": digest.to_string(), "size": bytes.len()});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    }

    fn image(&self, layer: &[u8], more: serde_json::Value) -> serde_json::Value {
        self.put(layer, serde_json::json!({}));
        self.put(&crate::registry::image_manifest(&[layer]), more)
    }

    fn index(&self, entries: &[serde_json::Value]) {
        let index = serde_json::json!({ "manifests": entries }).to_string();
        std::fs::write(self.0.path().join("index.json"), index).unwrap();
    }

    async fn resolve(&self, tag: &str) -> Result<Image, Error> {
        resolve(&client(options()), &format!("oci:{}{tag}", self.0.path().display())).await
    }
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[tokio::test]
async fn a_layout_by_go_containerregistry_has_images() {
    let layout = Layout::new();
    let kind = "application/vnd.oci.image.config.v1+json";
    let inner = layout
        .image(b"x", serde_json::json!({"artifactType": kind, "platform": {"os": "linux", "architecture": "amd64"}}));
    let index = serde_json::json!({ "manifests": [inner] }).to_string();
    let index = layout.put(index.as_bytes(), serde_json::json!({"artifactType": kind, "annotations": {REF_NAME: "i"}}));
    let image = layout.image(b"y", serde_json::json!({"artifactType": kind, "annotations": {REF_NAME: "t"}}));
    layout.index(&[index, image]);
    for (tag, layer) in [(":i", b"x"), (":t", b"y")] {
        assert_eq!(layout.resolve(tag).await.unwrap().layers[0].digest, Digest::of(layer), "{tag}");
    }
}

#[tokio::test]
async fn a_blob_that_is_missing_or_of_another_size_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let layer = b"0123456789";
    let manifest = crate::registry::image_manifest(&[layer]);
    let blobs = dir.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let reference = format!("oci:{}", dir.path().display());
    let error = resolve(&client(options()), &reference).await.err().unwrap();
    assert!(error.to_string().contains("no index.json"), "{error}");
    let digest = Digest::of(&manifest);
    let entry = serde_json::json!({"mediaType": "m", "digest": digest.to_string(), "size": manifest.len()});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    std::fs::write(blobs.join(digest.hex()), &manifest).unwrap();
    let error = resolve(&client(options()), &reference).await.err().unwrap();
    assert!(matches!(&error, Error::NoBlob { digest, .. } if *digest == Digest::of(layer)), "{error}");
    std::fs::write(blobs.join(Digest::of(layer).hex()), b"012345678").unwrap();
    let error = resolve(&client(options()), &reference).await.err().unwrap();
    assert!(matches!(error, Error::BlobSize { expected: 10, found: 9, .. }), "{error}");
    std::fs::write(blobs.join(Digest::of(layer).hex()), layer).unwrap();
    layers_are_right(&resolve(&client(options()), &reference).await.unwrap()).await;
    std::fs::write(blobs.join(digest.hex()), vec![b' '; manifest.len()]).unwrap();
    assert!(matches!(resolve(&client(options()), &reference).await, Err(Error::WrongDigest { .. })));
}
