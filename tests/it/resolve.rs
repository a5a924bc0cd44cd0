//! From a reference to a manifest: verified, of the right platform, remembered, and asked for again where that helps.

use std::sync::Arc;
use std::time::Duration;

use crfs::blob::Digest;
use crfs::registry::{Client, Error, ImageRef, Options};

use crate::registry::{Fault, Lasting, Lie, OCI_INDEX, OCI_MANIFEST, On, Registry, image_manifest};
use crate::support::{Memory, client, options, resolve, within};

fn index_of(entries: &[(&str, Option<&str>)], digests: &[(Digest, usize)]) -> Vec<u8> {
    let entries = entries.iter().zip(digests).map(|((media_type, platform), (digest, size))| {
        let mut entry = serde_json::json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
        if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
            entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
        }
        entry
    });
    let entries: Vec<_> = entries.collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string().into_bytes()
}

#[tokio::test]
async fn a_tag_and_a_digest_lead_to_one_image() {
    let registry = Registry::start().await;
    let digest = registry.push_image("a/b", "1", &[b"one", b"second"]);
    let client = client(options());
    for name in ["a/b:1".to_owned(), format!("a/b@{digest}"), format!("a/b:gone@{digest}")] {
        let image = resolve(&client, &format!("{}/{name}", registry.host())).await.unwrap();
        assert_eq!((image.digest, image.layers.len()), (digest, 2));
        assert_eq!(image.name, format!("{}/a/b", registry.host()));
        assert_eq!((image.layers[1].size, image.layers[1].digest), (6, Digest::of(b"second")));
    }
    // What the tag led to is remembered by its digest.
    assert_eq!(registry.requests().len(), 1);
    let request = &registry.requests()[0];
    assert!(request.header("user-agent").unwrap().starts_with("crfs/"));
    assert_eq!(request.header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn what_is_not_there_fails_at_once() {
    let registry = Registry::start().await;
    let error = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.err().unwrap();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(registry.requests_to("/manifests/").len(), 1);
}

#[tokio::test]
async fn wrong_bytes_are_asked_for_past_caches_and_then_refused() {
    let registry = Registry::start().await;
    let digest = registry.push_image("a", "1", &[b"x"]);
    let reference = format!("{}/a@{digest}", registry.host());
    registry.fault(Fault::new(On::Manifests, Lasting::UntilNoCache, Lie::WrongBytes));
    assert_eq!(resolve(&client(options()), &reference).await.unwrap().digest, digest);
    registry.clear_faults();
    registry.fault(Fault::always(On::Manifests, Lie::WrongBytes));
    let error = resolve(&client(options()), &reference).await.err().unwrap();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert_eq!(registry.requests().len(), 4);
}

#[tokio::test]
async fn a_registry_that_lies_about_a_tags_digest_is_not_believed() {
    let registry = Registry::start().await;
    let digest = registry.push_image("a", "1", &[b"x"]);
    let other = Digest::of(b"other").to_string();
    registry.fault(Fault::always(On::Manifests, Lie::Header("Docker-Content-Digest", other)));
    let image = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(registry.requests()[1].header("cache-control"), Some("no-cache"));
}

#[tokio::test]
async fn an_index_leads_to_the_wanted_platform() {
    let registry = Registry::start().await;
    let manifest = image_manifest(&[b"amd64"]);
    let amd64 = registry.push("a", "amd64", OCI_MANIFEST, &manifest, &[]);
    let inner = index_of(&[(OCI_MANIFEST, Some("linux/amd64"))], &[(amd64, manifest.len())]);
    let nested = registry.push("a", "nested", OCI_INDEX, &inner, &[]);
    let entries = [("m", Some("unknown/unknown")), ("m", Some("linux/s390x")), (OCI_INDEX, None)];
    let digests = [(Digest::of(b""), 0), (Digest::of(b""), 0), (nested, inner.len())];
    registry.push("a", "1", OCI_INDEX, &index_of(&entries, &digests), &[]);
    let reference = format!("{}/a:1", registry.host());
    let image = resolve(&client(options()), &reference).await.unwrap();
    assert_eq!(image.digest, amd64);
    assert_eq!(image.platform.unwrap().to_string(), "linux/amd64");
    let arm = client(Options { platform: "linux/arm64".parse().unwrap(), ..options() });
    let error = resolve(&arm, &reference).await.err().unwrap().to_string();
    for part in ["linux/arm64", "linux/s390x", "linux/amd64"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(error.ends_with("linux/s390x, linux/amd64; left out: 1 entry for unknown/unknown"), "{error}");
}

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An entry of an index; `more` is added to it, or takes the place of what it has.
fn entry(digest: Digest, bytes: &[u8], more: serde_json::Value) -> serde_json::Value {
    let mut entry = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": bytes.len()});
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

fn index_with(entries: &[serde_json::Value]) -> Vec<u8> {
    serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()
}

#[tokio::test]
async fn an_index_by_go_containerregistry_has_images() {
    let registry = Registry::start().await;
    let manifest = image_manifest(&[b"x"]);
    let digest = registry.push("a", "image", OCI_MANIFEST, &manifest, &[b"x"]);
    let amd64 = serde_json::json!({"os": "linux", "architecture": "amd64"});
    for kind in [OCI_CONFIG, "application/vnd.docker.container.image.v1+json"] {
        let named = serde_json::json!({"artifactType": kind, "platform": amd64});
        let inner = index_with(&[entry(digest, &manifest, named)]);
        let nested = registry.push("a", "inner", OCI_INDEX, &inner, &[]);
        let outer =
            index_with(&[entry(nested, &inner, serde_json::json!({"artifactType": kind, "mediaType": OCI_INDEX}))]);
        registry.push("a", "1", OCI_INDEX, &outer, &[]);
        let image = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.unwrap();
        assert_eq!((image.digest, image.platform.unwrap().to_string().as_str()), (digest, "linux/amd64"), "{kind}");
    }
}

#[tokio::test]
async fn what_an_index_has_beside_images_is_left_out_and_counted() {
    let registry = Registry::start().await;
    let manifest = image_manifest(&[b"x"]);
    let digest = registry.push("a", "image", OCI_MANIFEST, &manifest, &[b"x"]);
    let amd64 = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let beside = [
        serde_json::json!({"platform": amd64, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}),
        serde_json::json!({"platform": {"os": "unknown", "architecture": "unknown"}}),
        serde_json::json!({"platform": amd64, "artifactType": "application/vnd.example.sbom"}),
    ];
    let beside: Vec<_> = beside.into_iter().map(|more| entry(Digest::of(b"gone"), b"gone", more)).collect();
    registry.push("a", "1", OCI_INDEX, &index_with(&beside), &[]);
    let reference = format!("{}/a:1", registry.host());
    let error = resolve(&client(options()), &reference).await.err().unwrap().to_string();
    let text = "has nothing for linux/amd64; it has: (none); left out: 1 attestation, 1 entry for unknown/unknown, \
        1 artifact of type \"application/vnd.example.sbom\"";
    assert!(error.contains(text), "{error}");
    let image = entry(digest, &manifest, serde_json::json!({ "platform": amd64 }));
    registry.push("a", "1", OCI_INDEX, &index_with(&[beside, vec![image]].concat()), &[]);
    assert_eq!(resolve(&client(options()), &reference).await.unwrap().digest, digest);
}

#[tokio::test]
async fn manifests_that_leave_out_what_others_do_without_are_taken() {
    let registry = Registry::start().await;
    let image = String::from_utf8(image_manifest(&[b"x"])).unwrap();
    let image = image.replace(",\"schemaVersion\":2", "").replace("\"schemaVersion\":2,", "");
    assert!(!image.contains("schemaVersion"), "{image}");
    let digest = registry.push("a", "image", OCI_MANIFEST, image.as_bytes(), &[b"x"]);
    let entry = serde_json::json!({"digest": digest.to_string(), "size": image.len(), "platform": {}});
    let index = serde_json::json!({"manifests": [entry]}).to_string();
    registry.push("a", "index", OCI_INDEX, index.as_bytes(), &[]);
    for tag in ["image", "index"] {
        let image = resolve(&client(options()), &format!("{}/a:{tag}", registry.host())).await.unwrap();
        assert_eq!((image.digest, image.platform), (digest, None));
    }
}

/// A manifest that is no image.
fn artifact(artifact_type: Option<&str>, config: &str, layer: &str) -> Vec<u8> {
    let descriptor =
        |kind: &str| serde_json::json!({"mediaType": kind, "digest": Digest::of(b"x").to_string(), "size": 1});
    let (config, layer) = (descriptor(config), descriptor(layer));
    let mut manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    artifact_type.iter().for_each(|kind| manifest["artifactType"] = (*kind).into());
    manifest.to_string().into_bytes()
}

#[tokio::test]
async fn artifacts_are_called_what_they_are_and_cost_one_request() {
    let registry = Registry::start().await;
    let cases = [
        (
            artifact(
                None,
                "application/vnd.cncf.helm.config.v1+json",
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            ),
            "a Helm chart",
        ),
        (
            artifact(
                Some("application/vnd.example"),
                "application/vnd.oci.empty.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            ),
            "an artifact of type \"application/vnd.example\"",
        ),
    ];
    for (manifest, says) in cases {
        registry.push("a", "1", OCI_MANIFEST, &manifest, &[b"x"]);
        let before = registry.requests().len();
        let error = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.err().unwrap();
        assert!(matches!(error, Error::Artifact { .. }) && error.to_string().contains(says), "{error}");
        assert_eq!(registry.requests().len(), before + 1);
    }
}

#[tokio::test]
async fn an_artifact_beside_an_image_is_passed_over() {
    let registry = Registry::start().await;
    let model = artifact(None, "application/vnd.cncf.model.config.v1+json", "application/vnd.cncf.model.weight.v1.raw");
    let there = registry.push("a", "model", OCI_MANIFEST, &model, &[]);
    let image = image_manifest(&[b"x"]);
    let digest = registry.push("a", "image", OCI_MANIFEST, &image, &[b"x"]);
    let amd64 = serde_json::json!({"platform": {"os": "linux", "architecture": "amd64"}});
    let arm64 = serde_json::json!({"platform": {"os": "linux", "architecture": "arm64"}});
    let reference = format!("{}/a:1", registry.host());
    for platform in [serde_json::json!({}), amd64.clone()] {
        let both = [entry(there, &model, platform.clone()), entry(digest, &image, platform.clone())];
        registry.push("a", "1", OCI_INDEX, &index_with(&both), &[]);
        assert_eq!(resolve(&client(options()), &reference).await.unwrap().digest, digest);
        registry.push("a", "1", OCI_INDEX, &index_with(&[entry(there, &model, platform.clone())]), &[]);
        let error = resolve(&client(options()), &reference).await.err().unwrap();
        assert!(matches!(error, Error::Artifact { .. }), "{error}");
        let others = [entry(there, &model, platform), entry(digest, &image, arm64.clone())];
        registry.push("a", "1", OCI_INDEX, &index_with(&others), &[]);
        let error = resolve(&client(options()), &reference).await.err().unwrap().to_string();
        assert!(
            error.contains("it has: linux/arm64; left out: 1 artifact of type \"application/vnd.cncf.model.config"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_index_without_end_is_left() {
    let registry = Registry::start().await;
    let empty = |number: usize| format!("{{\"schemaVersion\":2,\"manifests\":[],\"x\":{number}}}").into_bytes();
    let (mut deep, mut wide) = (empty(0), Vec::new());
    for number in 0..40 {
        let inner = empty(number);
        wide.push((registry.push("a", "inner", OCI_INDEX, &inner, &[]), inner.len()));
        let digest = registry.push("a", "inner", OCI_INDEX, &deep, &[]);
        deep = index_of(&[(OCI_INDEX, None)], &[(digest, deep.len())]);
    }
    registry.push("a", "deep", OCI_INDEX, &deep, &[]);
    registry.push("a", "wide", OCI_INDEX, &index_of(&[(OCI_INDEX, None); 40], &wide), &[]);
    for (tag, says) in [("deep", "nested"), ("wide", "without a platform")] {
        let error = resolve(&client(options()), &format!("{}/a:{tag}", registry.host())).await.err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(registry.requests().len() < 50);
}

#[tokio::test]
async fn huge_old_and_ambiguous_manifests_are_refused() {
    let registry = Registry::start().await;
    let huge = [b"{\"schemaVersion\":2,\"x\":\"".as_slice(), &vec![b'a'; 5 << 20], b"\"}"].concat();
    for (manifest, says) in [(&huge[..], "4194304"), (b"{\"schemaVersion\":1}", "schema 1"), (b"[]", "manifest")] {
        registry.push("a", "1", OCI_MANIFEST, manifest, &[]);
        let error = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.err().unwrap();
        assert!(matches!(error, Error::Manifest { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_dead_registry_is_answered_for_by_what_its_tag_meant_last() {
    let registry = Registry::start().await;
    let digest = registry.push_image("a", "1", &[b"x"]);
    let short = Options { io_deadline: Duration::from_millis(400), ..options() };
    let memory = Arc::new(Memory::default());
    let client = Client::new(short.clone(), memory.clone()).unwrap();
    let reference = format!("{}/a:1", registry.host());
    assert_eq!(resolve(&client, &reference).await.unwrap().digest, digest);
    registry.go_down().await;
    assert_eq!(resolve(&Client::new(short, memory).unwrap(), &reference).await.unwrap().digest, digest);
    let error = resolve(&client, &format!("{}/a:2", registry.host())).await.err().unwrap();
    assert!(error.is_unreachable(), "{error}");
    registry.come_up();
    registry.push_image("a", "1", &[b"y"]);
    assert_ne!(resolve(&client, &reference).await.unwrap().digest, digest);
    registry.fault(Fault::always(On::Manifests, Lie::Status(403, Vec::new())));
    assert!(matches!(resolve(&client, &reference).await, Err(Error::Denied { .. })));
}

#[tokio::test]
async fn a_registry_that_comes_back_in_time_was_never_away() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    registry.fault(Fault::times(2, On::Manifests, Lie::Status(500, Vec::new())));
    registry.fault(Fault::times(1, On::Manifests, Lie::Cut(10)));
    registry.go_down().await;
    let client = client(options());
    let reference = format!("{}/a:1", registry.host());
    let (image, ()) = tokio::join!(resolve(&client, &reference), async { registry.come_up() });
    assert_eq!(image.unwrap().layers.len(), 1);
}

#[tokio::test]
async fn a_silent_registry_ends_at_the_deadline_and_is_named() {
    let registry = Registry::start().await;
    registry.fault(Fault::always(On::Manifests, Lie::Silence));
    let client = client(Options { io_deadline: Duration::from_millis(400), ..options() });
    let error = resolve(&client, &format!("{}/a:1", registry.host())).await.err().unwrap();
    assert!(matches!(&error, Error::NoProgress { .. }), "{error}");
    assert!(error.to_string().contains(&registry.host()), "{error}");
}

#[tokio::test]
async fn a_toc_image_stands_beside_its_image() {
    let registry = Registry::start().await;
    let digest = registry.push_image("a", "1-esgztoc", &[b"toc"]);
    let client = client(options());
    let image: ImageRef = format!("{}/a:1", registry.host()).parse().unwrap();
    assert_eq!(within(client.resolve_sibling(&image, "-esgztoc")).await.unwrap().digest, digest);
    assert!(within(client.resolve_sibling(&image, "-other")).await.err().unwrap().is_not_found());
}
