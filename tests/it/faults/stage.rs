//! One cell of the fault table: an image of three layers, hosts that can have trouble, and one fault in one phase.
//!
//! The fault is about the layer in the middle. The first is cached before it strikes, the last is read for the first time while it lasts.

use std::sync::Arc;
use std::time::Duration;

use crfs::blob::Digest;
use crfs::fetch::{Prefetch, prefetch};
use crfs::image::options::ImageOptions;

use super::table::{Host, Phase, Row, Span, Trouble};
use super::{Outcome, Seen};
use crate::contents::{Opened, image_options, open_with};
use crate::image::{File, Layer, config, estargz, gzip, manifest_with, noise, plain, tar, zstd_chunked};
use crate::registry::{Auth, Fault, Lasting, Lie, OCI_MANIFEST, On, Registry};
use crate::support::{pause, until, within};

/// Nothing moves for so long: EIO. Where the fault passes, no deadline must be near even on a busy machine.
const PATIENCE: [(Span, Duration); 2] = [(Span::Once, Duration::from_secs(8)), (Span::Stays, Duration::from_secs(6))];

const CHUNK: usize = 10_000;

pub(super) struct Stage<'a> {
    row: &'a Row,
    span: Span,
    phase: Phase,
    /// As mounts do it by default.
    guesses: bool,
    registry: Registry,
    storage: Registry,
    tokens: Registry,
    /// cached, struck, other.
    layers: [Layer; 3],
    cold: Vec<u8>,
    temp: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    pub(super) async fn new(row: &'a Row, span: Span, phase: Phase, guesses: bool) -> Self {
        let registry = Registry::start().await;
        let (storage, tokens) = (registry.start_sharing().await, registry.start_sharing().await);
        let cold = noise(6 * CHUNK, 7);
        let files = [File { name: "cold", content: cold.clone() }];
        let struck = match (phase, &row.trouble) {
            (Phase::Pass, _) => plain(gzip(&tar(&files))),
            // A bomb needs a codec that goes on and on.
            (_, Trouble::Bomb) => estargz(&files, CHUNK),
            _ => zstd_chunked(&files, CHUNK),
        };
        let layer = |name, seed| zstd_chunked(&[File { name, content: noise(CHUNK, seed) }], CHUNK);
        let layers = [layer("cached", 1), struck, layer("other", 3)];
        // Of the others nobody looks at the diffID.
        let config = config(&[Digest::of(&tar(&files)); 3]);
        let blobs = layers.iter().map(|layer| layer.blob.as_slice()).chain([config.as_slice()]);
        let manifest = manifest_with(&config, &layers.each_ref());
        registry.push("a", "1", OCI_MANIFEST, &manifest, &blobs.collect::<Vec<_>>());
        let stage = Self {
            row,
            span,
            phase,
            guesses,
            registry,
            storage,
            tokens,
            layers,
            cold,
            temp: tempfile::tempdir().unwrap(),
        };
        stage.set_up();
        stage
    }

    fn host(&self, host: Host) -> &Registry {
        match host {
            Host::Registry => &self.registry,
            Host::Storage => &self.storage,
            Host::Tokens => &self.tokens,
        }
    }

    fn hosts(&self) -> impl Iterator<Item = &Registry> {
        [&self.registry, &self.storage, &self.tokens].into_iter()
    }

    fn is_about(&self, wanted: Host) -> bool {
        match &self.row.trouble {
            Trouble::Lie(host, _) | Trouble::Down(host) => *host == wanted,
            Trouble::TokenEnds => wanted == Host::Tokens,
            Trouble::Bomb => false,
        }
    }

    fn set_up(&self) {
        if self.is_about(Host::Storage) {
            self.registry.redirect_blobs_to(&self.storage);
        }
        if self.is_about(Host::Tokens) {
            let realm = self.tokens.url("/token");
            self.registry.set_auth(Auth::Bearer { realm, user: None, refresh_token: None, expires_in: Some(3600) });
        }
    }

    fn options(&self) -> ImageOptions {
        let deadline = PATIENCE.iter().find(|(span, _)| *span == self.span).unwrap().1;
        let options = image_options(&self.registry, self.temp.path().join("cache"));
        ImageOptions { io_deadline: deadline, insecure_unverified_toc: false, ..options }
    }

    async fn open(&self) -> Result<Opened, crfs::image::Error> {
        let options = self.options();
        open_with(&options, options.io_deadline, self.guesses).await
    }

    fn struck(&self) -> Digest {
        self.layers[1].digest()
    }

    /// What the paths hold that the fault is about.
    fn part(&self) -> String {
        if self.phase == Phase::Manifest { "/manifests/".to_owned() } else { self.struck().to_string() }
    }

    /// All requests about it, tokens included.
    fn requests(&self) -> usize {
        let about = [&self.registry, &self.storage].map(|host| host.requests_to(&self.part()).len());
        about.iter().sum::<usize>() + self.tokens.requests().len()
    }

    async fn strike(&self) {
        let lasting = if self.span == Span::Once { Lasting::Times(1) } else { Lasting::Always };
        let on = if self.phase == Phase::Manifest { On::Manifests } else { On::Blobs };
        // A pass begins behind a look for a table of contents.
        let fault = |on, lie| {
            let spared = u32::from(self.phase == Phase::Pass && on != On::Token);
            Fault::new(on, lasting, lie).behind(spared)
        };
        if self.is_about(Host::Tokens) {
            self.registry.expire_tokens();
        }
        match self.row.trouble.clone() {
            Trouble::Lie(Host::Tokens, lie) => self.tokens.fault(fault(On::Token, lie)),
            Trouble::Lie(Host::Storage, lie) => {
                self.storage.fault(fault(On::Storage, lie).about(&self.part()));
            }
            Trouble::Lie(Host::Registry, lie) => self.registry.fault(fault(on, lie).about(&self.part())),
            Trouble::Down(host) => self.host(host).go_down().await,
            Trouble::TokenEnds if self.span == Span::Once => {}
            Trouble::TokenEnds => {
                let challenge = format!("Bearer realm=\"{}\"", self.tokens.url("/token"));
                let refusal = Lie::Status(401, vec![("WWW-Authenticate", challenge)]);
                self.registry.fault(Fault::always(on, refusal).about(&self.part()));
            }
            Trouble::Bomb => self.registry.replace_blob(&self.struck(), &bomb(&self.layers[1].blob)),
        }
    }

    fn pass(&self) {
        self.hosts().for_each(Registry::clear_faults);
        self.registry.replace_blob(&self.struck(), &self.layers[1].blob);
        self.hosts().for_each(Registry::come_up);
        self.set_up();
    }

    /// One fault in one phase, from its beginning to its end.
    pub(super) async fn play(self) -> Seen {
        let seen = match self.phase {
            Phase::Manifest | Phase::Toc | Phase::Pass => self.mount().await,
            Phase::Read => self.read().await,
            Phase::Prefetch => self.prefetch().await,
        };
        let outcome = match seen.outcome {
            Outcome::Failed(message) => Outcome::Failed(self.same_each_time(&message)),
            outcome => outcome,
        };
        Seen { outcome, ..seen }
    }

    async fn mount(&self) -> Seen {
        self.strike().await;
        let opened = self.open().await;
        let requests = self.requests();
        self.pass();
        let outcome = match opened {
            Ok(opened) => {
                self.assert_cold(&opened).await;
                Outcome::Unseen
            }
            Err(error) => {
                // What was refused once is not refused for ever.
                let again = within(async {
                    loop {
                        if let Ok(again) = self.open().await {
                            return again;
                        }
                        pause().await;
                    }
                });
                self.assert_cold(&again.await).await;
                Outcome::Failed(error.chain())
            }
        };
        Seen { outcome, requests }
    }

    async fn read(&self) -> Seen {
        let opened = self.opened().await;
        let before = self.requests();
        self.strike().await;
        let (read, ()) = tokio::join!(opened.read("cold", 0, u64::MAX), self.assert_others(&opened, before));
        let requests = self.requests() - before;
        let outcome = match read {
            Ok(bytes) => {
                assert!(bytes == self.cold, "wrong bytes were served");
                Outcome::Unseen
            }
            Err(_) => Outcome::Failed(opened.image.layers[1].contents.last_error().unwrap()),
        };
        self.pass();
        self.assert_cold(&opened).await;
        Seen { outcome, requests }
    }

    async fn prefetch(&self) -> Seen {
        let opened = self.opened().await;
        let before = self.requests();
        self.strike().await;
        let contents = Arc::clone(&opened.image.layers[1].contents);
        let mounting = contents.stats().requests;
        let prefetch = tokio::spawn(prefetch(vec![Arc::clone(&contents)], Prefetch::All));
        let mut outcome = Outcome::Unseen;
        if self.span == Span::Stays {
            // The reader comes for what prefetch has asked for already: the error that it gets was prefetch's own, or came after it.
            until(|| contents.stats().requests > mounting).await;
            let (read, ()) = tokio::join!(opened.read("cold", 0, u64::MAX), self.assert_others(&opened, before));
            match read {
                Ok(bytes) => assert!(bytes == self.cold, "wrong bytes were served"),
                Err(_) => outcome = Outcome::PutOff,
            }
            self.pass();
        }
        within(prefetch).await.unwrap();
        let requests = self.requests() - before;
        // It brought everything: nobody needs to be asked.
        self.registry.go_down().await;
        self.assert_cold(&opened).await;
        Seen { outcome, requests }
    }

    /// Mounted, and the first layer read.
    async fn opened(&self) -> Opened {
        let opened = self.open().await.unwrap();
        opened.read("cached", 0, u64::MAX).await.unwrap();
        opened
    }

    /// Cached contents are read whatever happens; the last layer is read for the first time where the fault is about another.
    async fn assert_others(&self, opened: &Opened, before: usize) {
        if self.row.one_layer {
            until(|| self.requests() > before).await;
            assert_eq!(opened.read("other", 0, u64::MAX).await.unwrap().len(), CHUNK, "another layer");
        }
        assert_eq!(opened.read("cached", 0, u64::MAX).await.unwrap().len(), CHUNK, "cached contents");
    }

    /// The struck layer can be read, now or soon: a failure is remembered for a moment, and a host may have asked for restraint.
    async fn assert_cold(&self, opened: &Opened) {
        let read = within(async {
            loop {
                if let Ok(bytes) = opened.read("cold", 0, u64::MAX).await {
                    return bytes;
                }
                pause().await;
            }
        });
        assert!(read.await == self.cold, "wrong bytes were served");
    }

    /// Without what differs from run to run: ports, digests, times, and which of several tries was the last.
    fn same_each_time(&self, message: &str) -> String {
        let hosts = [(&self.registry, "REGISTRY"), (&self.storage, "STORAGE"), (&self.tokens, "TOKENS")];
        let mut text = message.to_owned();
        for (host, name) in hosts {
            text = text.replace(&host.host(), name);
        }
        for layer in &self.layers {
            text = text.replace(&layer.digest().to_string(), "sha256:...");
        }
        if let Some(at) = text.find("nothing moved for") {
            text.truncate(at);
            text += "nothing moved for ... s and ... tries, the last: ...";
        }
        text.replace('|', "\\|")
    }
}

/// The blob with a first unit that goes on for five million bytes, in as many bytes as before.
fn bomb(blob: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 500 * CHUNK]).unwrap();
    let unit = encoder.finish().unwrap();
    // Behind the unit that stands for a tar header.
    let start = blob.windows(3).skip(1).position(|magic| magic == [0x1f, 0x8b, 8]).unwrap() + 1;
    let mut blob = blob.to_vec();
    blob[start..start + unit.len()].copy_from_slice(&unit);
    blob
}
