//! The SOCI index of an image is found where its writers put it, verified, and never mistaken for the image.

use std::sync::Arc;
use std::time::Duration;

use crfs::blob::Digest;
use crfs::registry::{Client, Error, Image, ImageRef, Options, Soci, SociChoice, SociSource};

use crate::fixtures::{docker_archive, fixtures};
use crate::registry::{Fault, Lie, OCI_INDEX, OCI_MANIFEST, On, Registry};
use crate::support::{Memory, client, options, range, read, resolve, within};

const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

async fn look(client: &Client, reference: &str, choice: SociChoice) -> (Image, Result<Option<Soci>, Error>) {
    let image = resolve(client, reference).await.unwrap();
    let image_ref: ImageRef = reference.parse().unwrap();
    let found = within(client.soci(&image_ref, &image, choice)).await;
    (image, found)
}

/// The index that must be there, its zTOCs read.
async fn found(reference: &str, choice: SociChoice) -> Soci {
    let (image, soci) = look(&client(options()), reference, choice).await;
    let soci = soci.unwrap().expect("no SOCI index");
    assert!(!soci.layers.is_empty());
    for (layer, ztoc) in &soci.layers {
        assert!(image.layers.iter().any(|of_image| of_image.digest == *layer));
        assert_eq!(ztoc.annotations[LAYER_DIGEST], layer.to_string());
        let bytes = read(&ztoc.blob, range(0, ztoc.size)).await.unwrap();
        assert_eq!(Digest::of(&bytes), ztoc.digest);
    }
    soci
}

#[tokio::test]
async fn the_manifest_names_a_version_2_index() {
    let dir = fixtures();
    let registry = Registry::start().await;
    for (name, layers) in [("sink-soci2", 4), ("twice-soci2-multi", 1), ("odd-soci2-tar", 2)] {
        registry.push_layout(name, &dir.join(name));
        for reference in [format!("oci:{}", dir.join(name).display()), format!("{}/{name}", registry.host())] {
            let soci = found(&reference, SociChoice::Annotated).await;
            assert_eq!((soci.layers.len(), soci.source), (layers, SociSource::Manifest), "{reference}");
            assert_eq!(found(&reference, SociChoice::Referring).await.source, SociSource::Manifest);
        }
    }
}

#[tokio::test]
async fn a_version_1_index_refers_to_its_image_and_is_found_only_when_asked_for() {
    let dir = fixtures();
    for name in ["sink-soci1", "big-soci1"] {
        let registry = Registry::start().await;
        registry.push_layout(name, &dir.join(name));
        let remote = format!("{}/{name}", registry.host());
        let mut digests = Vec::new();
        for reference in [&remote, &format!("oci:{}", dir.join(name).display())] {
            let (_, nothing) = look(&client(options()), reference, SociChoice::Annotated).await;
            assert!(nothing.unwrap().is_none());
            let soci = found(reference, SociChoice::Referring).await;
            assert_eq!(soci.source, SociSource::Referrer);
            let given = found(reference, SociChoice::Digest(soci.digest)).await;
            assert_eq!((given.digest, given.source), (soci.digest, SociSource::Given));
            digests.push(soci.digest);
        }
        assert_eq!(digests[0], digests[1]);
        let asked = registry.requests_to("/referrers/");
        assert_eq!(asked.len(), 1);
        assert!(asked[0].path.contains("?artifactType=application%2Fvnd.amazon.soci.index.v1%2Bjson"), "{asked:?}");
        assert_eq!(registry.requests_to("/manifests/sha256-").len(), 1);
    }
}

#[tokio::test]
async fn an_index_is_found_in_archives_too() {
    let dir = fixtures();
    for (name, choice) in [("twice-soci2-tar", SociChoice::Annotated), ("big-soci1", SociChoice::Referring)] {
        let archive = tempfile::NamedTempFile::new().unwrap();
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(dir.join(name)).arg("-cf").arg(archive.path()).arg(".");
        assert!(tar.status().unwrap().success());
        assert_eq!(found(&format!("oci-archive:{}", archive.path().display()), choice).await.layers.len(), 1);
    }
    let docker = format!("docker-archive:{}", docker_archive().display());
    let (_, nothing) = look(&client(options()), &docker, SociChoice::Referring).await;
    assert!(nothing.unwrap().is_none());
    let (_, error) = look(&client(options()), &docker, SociChoice::Digest(Digest::of(b""))).await;
    assert!(matches!(error, Err(Error::NoBlob { .. })));
}

/// A small registry: an image, and SOCI indexes that may be of it.
struct Made {
    registry: Registry,
    image: Digest,
    layer: &'static [u8],
}

impl Made {
    async fn new(annotations: serde_json::Value) -> Self {
        let (registry, layer) = (Registry::start().await, b"layer");
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let layers = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)];
        let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
        let manifest =
            serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": annotations});
        let image = registry.push("a", "1", OCI_MANIFEST, manifest.to_string().as_bytes(), &[layer]);
        Self { registry, image, layer }
    }

    fn reference(&self) -> String {
        format!("{}/a:1", self.registry.host())
    }

    /// An index of a version, of some image: its digest, and its size.
    fn index(&self, version: u32, subject: &Digest) -> (Digest, usize) {
        let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
        let layer = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len(), "annotations": {LAYER_DIGEST: digest(self.layer)}});
        let other = serde_json::json!({"mediaType": "application/octet-stream", "digest": digest(b"x"), "size": 1, "annotations": {LAYER_DIGEST: digest(b"other")}});
        let layers = [
            layer("application/vnd.amazon.soci.prefetch.v1+json", b"prefetch"),
            other,
            layer("application/octet-stream", b"ztoc"),
        ];
        let config = serde_json::json!({"mediaType": format!("application/vnd.amazon.soci.index.v{version}+json"), "digest": digest(b"{}"), "size": 2});
        let subject = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": subject.to_string(), "size": 1});
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers, "subject": subject});
        let bytes = manifest.to_string().into_bytes();
        (self.registry.push("a", &format!("index{version}"), OCI_MANIFEST, &bytes, &[b"ztoc"]), bytes.len())
    }

    /// An index of descriptors, as the referrers API answers.
    fn listed(entries: &[(Digest, usize)]) -> Vec<u8> {
        let entry = |(digest, size): &(Digest, usize)| serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": size, "artifactType": "application/vnd.amazon.soci.index.v1+json"});
        let entries: Vec<_> = entries.iter().map(entry).collect();
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string().into_bytes()
    }
}

#[tokio::test]
async fn the_referrers_api_is_asked_first_and_only_an_index_of_this_image_is_taken() {
    let made = Made::new(serde_json::json!({})).await;
    let (other, own) = (made.index(1, &Digest::of(b"other")), made.index(1, &made.image));
    let gone = (Digest::of(b"gone"), 4);
    made.registry.push_referrers("a", &made.image, &Made::listed(&[gone, other, own]));
    let soci = found(&made.reference(), SociChoice::Referring).await;
    assert_eq!((soci.digest, soci.layers.len()), (own.0, 1));
    assert_eq!(soci.layers[&Digest::of(made.layer)].digest, Digest::of(b"ztoc"));
    assert!(made.registry.requests_to("/manifests/sha256-").is_empty());
    made.registry.push_referrers("a", &made.image, &Made::listed(&[other]));
    let (_, nothing) = look(&client(options()), &made.reference(), SociChoice::Referring).await;
    assert!(nothing.unwrap().is_none());
}

#[tokio::test]
async fn registries_without_the_api_answer_in_many_ways() {
    let made = Made::new(serde_json::json!({})).await;
    let own = made.index(1, &made.image);
    let (_, nothing) = look(&client(options()), &made.reference(), SociChoice::Referring).await;
    assert!(nothing.unwrap().is_none());
    let tag = format!("sha256-{}", made.image.hex());
    made.registry.push("a", &tag, OCI_INDEX, &Made::listed(&[own]), &[]);
    for status in [404, 400, 405] {
        made.registry.fault(Fault::always(On::Referrers, Lie::Status(status, Vec::new())));
        assert_eq!(found(&made.reference(), SociChoice::Referring).await.digest, own.0, "{status}");
        made.registry.clear_faults();
    }
    made.registry.push_referrers("a", &made.image, b"<html>");
    assert_eq!(found(&made.reference(), SociChoice::Referring).await.digest, own.0);
    made.registry.fault(Fault::always(On::Referrers, Lie::Status(403, Vec::new())));
    let (_, error) = look(&client(options()), &made.reference(), SociChoice::Referring).await;
    assert!(matches!(error, Err(Error::Denied { .. })));
}

#[tokio::test]
async fn an_index_that_is_not_there_is_none_unless_the_user_named_it() {
    let digest = Digest::of(b"gone");
    let made = Made::new(serde_json::json!({"com.amazon.soci.index-digest": digest.to_string()})).await;
    let (_, nothing) = look(&client(options()), &made.reference(), SociChoice::Annotated).await;
    assert!(nothing.unwrap().is_none());
    let (_, error) = look(&client(options()), &made.reference(), SociChoice::Digest(digest)).await;
    assert!(error.err().unwrap().is_not_found());
    let (_, error) = look(&client(options()), &made.reference(), SociChoice::Digest(made.image)).await;
    let error = error.err().unwrap().to_string();
    assert!(error.contains("SOCI index is refused") && error.contains("something else"), "{error}");
    let made = Made::new(serde_json::json!({"com.amazon.soci.index-digest": "sha256:12"})).await;
    let (_, error) = look(&client(options()), &made.reference(), SociChoice::Annotated).await;
    assert!(error.err().unwrap().to_string().contains("com.amazon.soci.index-digest"));
}

#[tokio::test]
async fn wrong_bytes_are_no_index() {
    let made = Made::new(serde_json::json!({})).await;
    let own = made.index(1, &made.image);
    made.registry.push_referrers("a", &made.image, &Made::listed(&[own]));
    made.registry.fault(Fault::always(On::Manifests, Lie::WrongBytes).about(&own.0.to_string()));
    for choice in [SociChoice::Referring, SociChoice::Digest(own.0)] {
        let (_, error) = look(&client(options()), &made.reference(), choice).await;
        assert!(matches!(error, Err(Error::WrongDigest { .. })));
    }
}

#[tokio::test]
async fn the_index_of_last_time_is_used_where_the_registry_cannot_be_reached() {
    let made = Made::new(serde_json::json!({})).await;
    let own = made.index(1, &made.image);
    made.registry.push_referrers("a", &made.image, &Made::listed(&[own]));
    let short = Options { io_deadline: Duration::from_millis(400), ..options() };
    let memory = Arc::new(Memory::default());
    let clients = [memory.clone(), memory].map(|memory| Client::new(short.clone(), memory).unwrap());
    let (_, online) = look(&clients[0], &made.reference(), SociChoice::Referring).await;
    assert!(online.unwrap().is_some());
    made.registry.go_down().await;
    let (_, offline) = look(&clients[1], &made.reference(), SociChoice::Referring).await;
    assert_eq!(offline.unwrap().unwrap().digest, own.0);
}

#[tokio::test]
async fn an_index_is_never_taken_for_the_image() {
    let made = Made::new(serde_json::json!({})).await;
    let soci = made.index(2, &made.image);
    let image = within(client(options()).resolve(&made.reference().parse().unwrap())).await.unwrap();
    // A registry or a tool may have dropped what tells them apart without a look at them.
    let entry = |digest: &Digest, size: usize| serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": size, "platform": {"os": "linux", "architecture": "amd64"}});
    let entries = [entry(&soci.0, soci.1), entry(&image.digest, 1)];
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
    made.registry.push("a", "both", OCI_INDEX, index.as_bytes(), &[]);
    let both = format!("{}/a:both", made.registry.host());
    assert_eq!(resolve(&client(options()), &both).await.unwrap().digest, made.image);
    let alone = format!("{}/a:index2", made.registry.host());
    let error = resolve(&client(options()), &alone).await.err().unwrap().to_string();
    assert!(error.contains("SOCI index"), "{error}");
}
