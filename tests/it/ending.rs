//! A runtime that ends while a thread waits for a registry: the thread hears of it.

use std::sync::mpsc;

use crfs::blob::ByteSource as _;
use crfs::threads::{self, Runtime, Work};

use crate::registry::{Fault, Lie, On, Registry};
use crate::support::{client, options, range, resolve};

/// What a thread hears that reads a layer's first byte when the runtime ends. A thread that panics says nothing.
fn heard(lie: Lie) -> Option<String> {
    let (tell, heard) = mpsc::channel();
    let (_alive, registry) = registry_apart(lie);
    let runtime = threads::runtime().unwrap();
    runtime.block_on(async {
        let client = client(options());
        let image = resolve(&client, &format!("{}/a:1", registry.host())).await.unwrap();
        let blob = image.layers[0].blob.clone();
        threads::run(Work::Opening, move || tell.send(blob.read_at(range(0, 1))));
        crate::support::until(|| !registry.requests_to("/blobs/").is_empty()).await;
    });
    drop(runtime);
    heard.recv().ok().map(|read| read.unwrap_err().to_string())
}

/// A registry that outlives its client.
fn registry_apart(lie: Lie) -> (Runtime, Registry) {
    let runtime = threads::runtime().unwrap();
    let registry = runtime.block_on(Registry::start());
    registry.push_image("a", "1", &[b"layer"]);
    registry.fault(Fault::always(On::Blobs, lie));
    (runtime, registry)
}

#[test]
fn a_thread_that_waits_for_an_answer_hears_of_the_end() {
    assert_eq!(heard(Lie::Silence).as_deref(), Some("crfs is ending"));
}

#[test]
fn a_thread_that_waits_to_ask_again_hears_of_the_end() {
    let after = vec![("retry-after", "9".to_owned())];
    assert_eq!(heard(Lie::Status(503, after)).as_deref(), Some("crfs is ending"));
}
