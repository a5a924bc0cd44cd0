//! The lying registry of the integration tests, for real mounts: images made here, and faults.

use std::sync::Arc;

use super::counts::{Account, Answers};
use crate::image::{Layer, config, manifest_with};
use crate::lying::{OCI_MANIFEST, Registry};
use crate::tls_front::Front;

/// A registry on threads of its own.
pub(crate) struct Liar {
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    account: Arc<Account>,
}

impl Liar {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start());
        let (port, answered) = (registry.host().rsplit_once(':').unwrap().1.parse().unwrap(), registry.answered());
        let account = Account::new(port, move || {
            let mut answers = Answers::default();
            answered.lock().unwrap().iter().for_each(|(status, of_blob)| answers.add(*status, *of_blob));
            answers
        });
        Self { runtime, registry, account }
    }

    /// Pushes an image of these layers, whose config does not say what they are unpacked, and gives its reference.
    pub(crate) fn push(&self, layers: &[&Layer]) -> String {
        let config = config(&[]);
        let blobs: Vec<_> = layers.iter().map(|layer| layer.blob.as_slice()).chain([config.as_slice()]).collect();
        self.registry.push("a", "1", OCI_MANIFEST, &manifest_with(&config, layers), &blobs);
        format!("{}/a:1", self.registry.host())
    }

    /// The same registry by TLS, with a certificate of tests/data/tls.
    pub(crate) fn behind_tls(&self, name: &str) -> Front {
        self.account.is_shared();
        self.runtime.block_on(Front::start(self.registry.host(), &[name], None))
    }

    /// Ends all connections, and takes no more of them until it is started.
    pub(crate) fn stop(&self) {
        self.account.is_unknown();
        self.runtime.block_on(self.registry.go_down());
    }

    /// At the same port.
    pub(crate) fn start(&self) {
        self.runtime.block_on(async { self.registry.come_up() });
    }

    /// Ends all connections, those among them that were left waiting.
    pub(crate) fn restart(&self) {
        self.account.is_unknown();
        self.runtime.block_on(async {
            self.registry.go_down().await;
            self.registry.come_up();
        });
    }
}

impl std::ops::Deref for Liar {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}
