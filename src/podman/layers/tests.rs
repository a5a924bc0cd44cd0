use std::sync::Arc;

use super::*;
use crate::podman::records::tests::{layer, source};

const REFERENCE: &str = "docker.io/library/a:1";

fn layers() -> Layers {
    Layers {
        store: Weak::new(),
        options: LayerOptions { source: source(), deadline: Duration::from_secs(1) },
        own_logins: Vec::new(),
        logins: AsyncMutex::default(),
        shown: RwLock::default(),
        pinned: RwLock::default(),
        names: Mutex::default(),
        tries: Tries::default(),
        blobs: Blobs::default(),
        in_use: AtomicUsize::default(),
        idle: Mutex::default(),
    }
}

fn there(layers: &Layers, dir: u64, name: &str) -> Option<u64> {
    match layers.find(dir, name.as_bytes()) {
        Finding::There(number) => Some(number),
        Finding::Nothing => None,
        Finding::Later(_) => panic!("{name} is waited for"),
    }
}

#[test]
fn only_what_podman_may_ask_for_has_a_name() {
    let layers = layers();
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    let image = there(&layers, ROOT, &encoded(REFERENCE)).unwrap();
    assert_eq!(there(&layers, ROOT, &encoded(REFERENCE)), Some(image));
    assert_ne!(there(&layers, ROOT, &encoded("docker.io/library/a:2")), Some(image));
    for refused in [
        REFERENCE,
        "",
        "=",
        &encoded("oci:/srv/a"),
        &encoded("docker-archive:/etc/shadow"),
        &encoded("a b"),
        &encoded(""),
    ] {
        assert_eq!(there(&layers, ROOT, refused), None, "{refused:?}");
    }
    let digest = Digest::of(b"l").to_string();
    let dir = there(&layers, image, &digest).unwrap();
    for refused in ["sha256:1", "diff", "use", ".."] {
        assert_eq!(there(&layers, image, refused), None, "{refused:?}");
    }
    for refused in ["use", "diffs", "info/", &digest] {
        assert_eq!(there(&layers, dir, refused), None, "{refused:?}");
    }
    assert_eq!(there(&layers, dir, "diff"), None, "the store is gone");
    assert!(matches!(layers.made(dir), Some(Made::Dir { lasting: false, .. })));
    assert!(layers.made(dir + 2).is_none());
}

/// Who looks up names without end gets no more than so many.
#[test]
fn names_are_kept_for_as_long_as_the_kernel_knows_them() {
    let layers = layers();
    let image = there(&layers, ROOT, &BASE64_STANDARD.encode(REFERENCE)).unwrap();
    layers.remember(image);
    let find = |number: usize| there(&layers, image, &Digest::of(&number.to_le_bytes()).to_string());
    let first = find(0).unwrap();
    layers.remember(first);
    layers.remember(first);
    assert!((1..MOST_NAMES - 1).all(|number| find(number).is_some()));
    assert_eq!(find(MOST_NAMES), None);
    layers.forget(first, 1);
    assert_eq!(find(MOST_NAMES), None);
    layers.forget(first, 1);
    assert!(layers.made(first).is_none() && find(MOST_NAMES).is_some());
}

#[test]
fn podman_is_told_what_its_version_asks_for() {
    let mut records = Records::default();
    let layer = layer(&mut records, "one", None);
    let (blob, toc) = (Digest::of(b"blob"), Digest::of(b"toc"));
    let pulled = PulledLayer {
        place: 0,
        layer: layer.clone(),
        blob,
        size: 9,
        toc: Some(toc),
        compression: 2,
        has_lowers: true,
        uses: 0,
        held: false,
    };
    let told = |asked| serde_json::from_slice::<serde_json::Value>(&info(&pulled, asked)).unwrap();
    let by_blob = json!({"compressed-diff-digest": blob, "compressed-size": 9, "compression": 2, "diff-digest": layer.diff_id, "diff-size": 7});
    assert_eq!(told(&blob), by_blob);
    let flags = json!({"expected-layer-diffid": layer.diff_id});
    assert_eq!(told(&toc), json!({"toc-digest": toc, "compression": 2, "diff-size": -1, "flags": flags}));
    assert!(pulled.is(&blob) && pulled.is(&toc) && !pulled.is(&layer.diff_id));
}

/// They are the same for the next server, and never those of a view.
#[test]
fn numbers_follow_from_names() {
    let digest = Digest::of(b"l");
    let names = [
        Name::Reference(REFERENCE.into()),
        Name::Layer(REFERENCE.into(), digest),
        Name::Info(Bytes::from_static(b"{}")),
        Name::Blob { layer: 1, size: 2 },
    ];
    let numbers: HashSet<u64> = names.iter().map(Name::number).collect();
    assert_eq!(numbers.len(), 4);
    assert!(numbers.iter().all(|number| *number > ROOT));
    assert_eq!(Name::Blob { layer: 1, size: 2 }.number(), names[3].number());
    let _shared: Arc<dyn Asked> = Arc::new(layers());
}
