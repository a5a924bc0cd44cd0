//! Mirrors: each request goes to one that is well, and to the next where it is not.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crfs::blob::Digest;
use crfs::registry::{Blob, Client, Freshness, Image, Options, Places};
use futures_util::StreamExt as _;

use crate::faults::table::{Host, Row, Trouble, rows};
use crate::registry::{Auth, Fault, Lasting, Lie, On, Registry, ramp};
use crate::support::{client, options, range, read, read_with, resolve};

const LENGTH: usize = 300_000;

/// A registry, and mirrors of it that have the same contents: the last is the registry itself.
struct Fleet {
    hosts: Vec<Registry>,
    bytes: Vec<u8>,
    conf: tempfile::NamedTempFile,
}

impl Fleet {
    async fn of(mirrors: usize) -> Self {
        let upstream = Registry::start().await;
        let bytes = ramp(LENGTH);
        upstream.push_image("a/b", "1", &[&bytes]);
        let mut hosts = Vec::new();
        for _ in 0..mirrors {
            hosts.push(upstream.start_sharing().await);
        }
        hosts.push(upstream);
        let mut conf = tempfile::NamedTempFile::new().unwrap();
        writeln!(conf, "[[registry]]\nlocation = \"{}\"", hosts.last().unwrap().host()).unwrap();
        for mirror in hosts.iter().take(mirrors) {
            writeln!(conf, "[[registry.mirror]]\nlocation = \"{}\"", mirror.host()).unwrap();
        }
        Self { hosts, bytes, conf }
    }

    fn options(&self) -> Options {
        let places = Places { registries_conf: Some(self.conf.path().to_owned()), ..Places::default() };
        Options { places, ..options() }
    }

    async fn open(&self, client: &Client) -> Image {
        resolve(client, &self.reference()).await.unwrap()
    }

    fn reference(&self) -> String {
        format!("{}/a/b:1", self.hosts.last().unwrap().host())
    }

    /// The requests that each has got for a kind of thing.
    fn asked(&self, part: &str) -> Vec<usize> {
        self.hosts.iter().map(|host| host.requests_to(part).len()).collect()
    }

    /// Reads a part, and looks at it.
    async fn read(&self, blob: &Blob, start: u64, end: u64) {
        let read = read(blob, range(start, end)).await.unwrap_or_else(|error| panic!("{start}..{end}: {error}"));
        assert!(read == self.bytes[start as usize..end as usize], "{start}..{end}");
    }
}

/// What a host may do wrong, but for lying about bytes. Bodies end behind so many bytes.
fn troubles(behind: usize) -> Vec<(&'static str, Lie)> {
    let status = |status| Lie::Status(status, Vec::new());
    vec![
        ("400", status(400)),
        ("401", status(401)),
        ("403", status(403)),
        ("404", status(404)),
        ("416", status(416)),
        ("429", Lie::Status(429, vec![("retry-after", "60".to_owned())])),
        ("500", status(500)),
        ("503", status(503)),
        ("no answer", Lie::Silence),
        ("a redirect to nowhere", Lie::Redirect("http://127.0.0.1:1/x".to_owned())),
        ("a redirect that is refused", Lie::Redirect("ftp://127.0.0.1/x".to_owned())),
        ("another body", Lie::Body(b"<html>maintenance</html>".to_vec())),
        ("cut", Lie::Cut(behind)),
        ("reset", Lie::Reset(behind)),
        ("stalled", Lie::Stall(behind)),
    ]
}

/// What it may do wrong with blobs alone.
fn troubles_with_parts() -> Vec<(&'static str, Lie)> {
    vec![
        ("all of it", Lie::Whole),
        ("no ranges", Lie::RefusesRanges(416)),
        ("another range", Lie::ContentRange(Some("bytes 0-9/300000".to_owned()))),
        ("no range", Lie::ContentRange(None)),
        ("multipart", Lie::Multipart),
        ("compressed", Lie::Header("content-encoding", "gzip".to_owned())),
    ]
}

#[tokio::test]
async fn the_first_mirror_is_asked_for_everything_and_the_registry_for_nothing() {
    let fleet = Fleet::of(2).await;
    let image = fleet.open(&client(fleet.options())).await;
    fleet.read(&image.layers[0].blob, 10, 5000).await;
    assert_eq!(fleet.asked("/"), [2, 0, 0]);
}

async fn is_passed_over(name: &'static str, lie: Lie) {
    let fleet = Fleet::of(1).await;
    let image = fleet.open(&client(fleet.options())).await;
    fleet.hosts[0].fault(Fault::always(On::Blobs, lie));
    for part in 0..20 {
        fleet.read(&image.layers[0].blob, part * 10_000, part * 10_000 + 9000).await;
    }
    let asked = fleet.asked("/blobs/");
    assert!(asked[1] >= 20 && asked[0] <= 6, "{name}: {asked:?}");
}

#[tokio::test]
async fn whatever_a_mirror_does_wrong_another_is_asked() {
    let troubles = troubles(1000).into_iter().chain(troubles_with_parts());
    futures_util::future::join_all(troubles.map(|(name, lie)| is_passed_over(name, lie))).await;
}

/// A host that has trouble from now on, and those that it sends others to.
async fn troubled(host: &Registry, trouble: Trouble) -> Option<Registry> {
    let other = host.start_sharing().await;
    match &trouble {
        Trouble::Lie(Host::Storage, _) | Trouble::Down(Host::Storage) => host.redirect_blobs_to(&other),
        Trouble::Lie(Host::Tokens, _) | Trouble::Down(Host::Tokens) | Trouble::TokenEnds => host
            .set_auth(Auth::Bearer { realm: other.url("/token"), user: None, refresh_token: None, expires_in: None }),
        _ => {}
    }
    match trouble {
        Trouble::Lie(Host::Registry, lie) => host.fault(Fault::always(On::Blobs, lie)),
        Trouble::Lie(Host::Storage, lie) => other.fault(Fault::always(On::Storage, lie)),
        Trouble::Lie(Host::Tokens, lie) => other.fault(Fault::always(On::Token, lie)),
        // Among so many hosts the port of one that is down would soon be another's.
        Trouble::Down(Host::Registry) => host.fault(Fault::always(On::Blobs, Lie::Reset(0))),
        Trouble::Down(Host::Storage) => other.fault(Fault::always(On::Storage, Lie::Reset(0))),
        Trouble::Down(Host::Tokens) => other.fault(Fault::always(On::Token, Lie::Reset(0))),
        Trouble::TokenEnds => host.fault(Fault::always(On::Blobs, Lie::Status(401, Vec::new()))),
        // What decodes to too much is no matter of where it comes from.
        Trouble::Bomb => return None,
    }
    Some(other)
}

/// Reads a part of a blob that two of three hosts have trouble with.
async fn is_had_of(good: usize, [one, two]: [&Row; 2]) {
    let (fleet, _logins) = with_logins(2).await;
    let image = fleet.open(&client(fleet.options())).await;
    let ill = (0..3).filter(|host| *host != good);
    let mut others = Vec::new();
    for (host, row) in ill.zip([one, two]) {
        others.push(troubled(&fleet.hosts[host], row.trouble.clone()).await);
    }
    let blob = &image.layers[0].blob;
    for part in 0..4 {
        let (start, end) = (part * 50_000, part * 50_000 + 30_000);
        let expected = &fleet.bytes[start..end];
        let part = range(start as u64, end as u64);
        let mut came = read(blob, part).await;
        for _ in 0..blob.places() {
            if came.as_ref().is_ok_and(|came| came == expected) {
                break;
            }
            came = came.and(read_with(blob, part, Freshness::PastCaches).await);
        }
        let faults = [one.fault, two.fault];
        assert!(came.as_ref().is_ok_and(|came| came == expected), "{faults:?}, {good} is good: {:?}", came.err());
    }
}

/// The table of docs/reliability.md, of any two of three hosts.
#[tokio::test]
async fn one_good_host_is_enough_wherever_it_stands() {
    let rows = rows();
    let mut cases = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let other = &rows[(number * 7 + 1) % rows.len()];
        cases.extend((0..3).map(|good| is_had_of(good, [row, other])));
    }
    futures_util::future::join_all(cases).await;
}

#[tokio::test]
async fn manifests_are_had_of_any_host_that_has_them() {
    for (name, lie) in troubles(10) {
        // A registry decides what a tag means: this one would mean what the mirror says.
        if name == "another body" {
            continue;
        }
        let fleet = Fleet::of(2).await;
        for mirror in &fleet.hosts[..2] {
            mirror.fault(Fault::always(On::Manifests, lie.clone()));
        }
        let image = fleet.open(&client(fleet.options())).await;
        fleet.read(&image.layers[0].blob, 0, 100).await;
        assert_eq!(fleet.asked("/manifests/")[2], 1, "{name}");
    }
}

#[tokio::test]
async fn a_manifest_by_digest_is_had_of_who_has_the_right_one() {
    for lie in [Lie::WrongBytes, Lie::Body(b"{}".to_vec()), Lie::LastByte] {
        let fleet = Fleet::of(1).await;
        let digest = fleet.open(&client(fleet.options())).await.digest;
        fleet.hosts[0].fault(Fault::always(On::Manifests, lie));
        let reference = format!("{}/a/b@{digest}", fleet.hosts[1].host());
        assert_eq!(resolve(&client(fleet.options()), &reference).await.unwrap().digest, digest);
    }
}

#[tokio::test]
async fn hosts_that_are_down_are_passed_over_and_come_back() {
    let fleet = Fleet::of(1).await;
    let image = fleet.open(&client(fleet.options())).await;
    let blob = &image.layers[0].blob;
    fleet.hosts[0].go_down().await;
    for part in 0..10 {
        fleet.read(blob, part * 1000, part * 1000 + 999).await;
    }
    assert_eq!(fleet.asked("/blobs/"), [0, 10]);
    fleet.hosts[0].come_up();
    crate::support::within(async {
        while fleet.asked("/blobs/")[0] == 0 {
            fleet.read(blob, 0, 10).await;
            crate::support::pause().await;
        }
    })
    .await;
    let before = fleet.asked("/blobs/");
    fleet.read(blob, 20, 30).await;
    assert_eq!(fleet.asked("/blobs/"), [before[0] + 1, before[1]], "it is well, and stands first");
}

#[tokio::test]
async fn nothing_is_had_where_all_are_ill_and_each_is_named() {
    let fleet = Fleet::of(2).await;
    for (host, status) in fleet.hosts.iter().zip([404, 403, 404]) {
        host.fault(Fault::always(On::Manifests, Lie::Status(status, Vec::new())));
    }
    let error = resolve(&client(fleet.options()), &fleet.reference()).await.err().unwrap().to_string();
    for host in &fleet.hosts {
        assert!(error.contains(&host.host()), "{error}");
    }
    assert!(error.contains("403") && error.contains("404"), "{error}");
}

#[tokio::test]
async fn all_of_a_blob_is_taken_where_nobody_sends_parts() {
    let fleet = Fleet::of(1).await;
    let image = fleet.open(&client(fleet.options())).await;
    fleet.hosts[0].fault(Fault::always(On::Blobs, Lie::Whole));
    fleet.hosts[1].go_down().await;
    fleet.read(&image.layers[0].blob, 1000, 2000).await;
    assert!(image.layers[0].blob.is_sent_whole());
    fleet.hosts[1].come_up();
    crate::support::until(|| !image.layers[0].blob.is_sent_whole()).await;
}

#[tokio::test]
async fn wrong_bytes_are_not_asked_for_again_where_they_came_from() {
    let fleet = Fleet::of(2).await;
    let image = fleet.open(&client(fleet.options())).await;
    let blob = &image.layers[0].blob;
    for liar in &fleet.hosts[..2] {
        liar.fault(Fault::always(On::Blobs, Lie::WrongBytes));
    }
    assert_eq!(blob.places(), 3);
    let part = range(1000, 2000);
    let mut came = vec![read(blob, part).await.unwrap()];
    for _ in 0..blob.places() {
        if came.last().unwrap() == &fleet.bytes[1000..2000] {
            break;
        }
        came.push(read_with(blob, part, Freshness::PastCaches).await.unwrap());
    }
    assert_eq!(came.len(), 3);
    assert_eq!(fleet.asked("/blobs/"), [1, 1, 1]);
    // Also when they have rested.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fleet.read(blob, 1500, 1600).await;
    assert_eq!(fleet.asked("/blobs/"), [1, 1, 2]);
}

#[tokio::test]
async fn a_body_goes_on_where_another_has_stopped() {
    for lie in [Lie::Cut(100_000), Lie::Stall(100_000)] {
        let fleet = Fleet::of(1).await;
        let image = fleet.open(&client(fleet.options())).await;
        let digest = Digest::of(&fleet.bytes);
        fleet.hosts[0].fault(Fault::always(On::Blobs, lie));
        fleet.read(&image.layers[0].blob, 0, LENGTH as u64 - 1).await;
        let sent = fleet.hosts[1].sent(&digest);
        assert!(sent <= LENGTH as u64 - 90_000, "{sent} bytes came once more");
    }
}

#[tokio::test]
async fn a_configuration_that_was_broken_since_does_not_end_an_image() {
    let fleet = Fleet::of(1).await;
    let image = fleet.open(&client(fleet.options())).await;
    let reference = fleet.reference().parse().unwrap();
    for text in ["no toml", "[[registry]]\nlocation = \"127.0.0.1\"\nblocked = true"] {
        std::fs::write(fleet.conf.path(), text).unwrap();
        let client = client(fleet.options());
        assert!(resolve(&client, &fleet.reference()).await.is_err());
        let again = client.resolve_pinned(&reference, image.manifest.clone()).await.unwrap();
        let error = read(&again.layers[0].blob, range(0, 10)).await.unwrap_err().to_string();
        assert!(error.contains(fleet.conf.path().to_str().unwrap()), "{error}");
    }
}

/// An auth file with a user for each host, whose password names the host.
fn logins(hosts: &[&Registry]) -> tempfile::NamedTempFile {
    let auth = |host: &&Registry| {
        let auth = STANDARD.encode(format!("user:secret-of-{}", host.host()));
        format!("\"{}\":{{\"auth\":\"{auth}\"}}", host.host())
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{{\"auths\":{{{}}}}}", hosts.iter().map(auth).collect::<Vec<_>>().join(",")).unwrap();
    file
}

/// Hosts with contents of their own, so that each has its own authorisation.
async fn with_logins(mirrors: usize) -> (Fleet, tempfile::NamedTempFile) {
    let mut fleet = Fleet::of(mirrors).await;
    for place in 0..mirrors {
        let own = Registry::start().await;
        own.push_image("a/b", "1", &[&fleet.bytes]);
        let text = std::fs::read_to_string(fleet.conf.path()).unwrap().replace(&fleet.hosts[place].host(), &own.host());
        std::fs::write(fleet.conf.path(), text).unwrap();
        fleet.hosts[place] = own;
    }
    let file = logins(&fleet.hosts.iter().collect::<Vec<_>>());
    (fleet, file)
}

/// Who is told in a request's Authorization: the password's text where it is Basic, the token else.
fn told(request: &crate::registry::Request) -> Option<String> {
    let value = request.header("authorization")?;
    let basic = value.strip_prefix("Basic ").and_then(|basic| STANDARD.decode(basic).ok());
    Some(basic.map_or_else(|| value.to_owned(), |basic| String::from_utf8(basic).unwrap()))
}

/// Numbers that look as if they were random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// How a registry wants to be convinced; its token server may be itself, or another of these.
fn random_auth(random: &mut Random, host: &Registry, hosts: &[Registry]) -> Auth {
    let user = ("user".to_owned(), format!("secret-of-{}", host.host()));
    let realm = hosts[random.below(hosts.len())].url("/token");
    match random.below(3) {
        0 => Auth::Anyone,
        1 => Auth::Basic { user: user.0, password: user.1 },
        _ => Auth::Bearer { realm, user: Some(user), refresh_token: None, expires_in: None },
    }
}

/// What leads elsewhere, or asks for what belongs elsewhere.
fn random_lie(random: &mut Random, elsewhere: &Registry) -> Option<Lie> {
    let challenge = |text: String| Lie::Status(401, vec![("www-authenticate", text)]);
    match random.below(6) {
        0 => Some(Lie::Redirect(elsewhere.url("/storage/{digest}?sig={sig}"))),
        1 => Some(Lie::Redirect(elsewhere.url("/v2/a/b/blobs/{digest}"))),
        2 => Some(challenge(format!("Bearer realm=\"{}\",service=\"s\"", elsewhere.url("/token")))),
        3 => Some(challenge("Basic realm=\"x\"".to_owned())),
        4 => Some(Lie::Status(404, Vec::new())),
        _ => None,
    }
}

/// Reads through two mirrors and a registry of which each wants or does something else, and looks at whom each secret was told.
async fn secrets_stay_at_home(round: u64) {
    let mut random = Random(round);
    let (fleet, file) = with_logins(2).await;
    let hosts = &fleet.hosts;
    let storage = hosts[2].start_sharing().await;
    for (place, host) in hosts.iter().enumerate() {
        host.set_auth(random_auth(&mut random, host, hosts));
        let elsewhere = [&hosts[random.below(3)], &storage][random.below(2)];
        let lasting = if place == 2 { Lasting::Times(1) } else { Lasting::Always };
        let on = [On::Blobs, On::Manifests][random.below(2)];
        if let Some(lie) = random_lie(&mut random, elsewhere) {
            host.fault(Fault::new(on, lasting, lie));
        }
    }
    let io_deadline = Duration::from_millis(500);
    let client = client(Options { auth_files: vec![file.path().to_owned()], io_deadline, ..fleet.options() });
    if let Ok(image) = resolve(&client, &fleet.reference()).await {
        let _read = read(&image.layers[0].blob, range(5, 500)).await;
    }
    // A token server is told the secret of the registry that names it: that is the registry's own business. Others are told nothing.
    for (place, host) in hosts.iter().chain([&storage]).enumerate() {
        for request in host.requests().iter().filter(|request| !request.path.starts_with("/token")) {
            let Some(told) = told(request) else { continue };
            assert!(place < 3, "round {round}: storage was told {told}");
            let own = format!("secret-of-{}", host.host());
            assert!(!told.contains("secret-of-") || told.ends_with(&own), "round {round}: {place} was told {told}");
        }
    }
}

#[tokio::test]
async fn credentials_go_to_their_own_host_whatever_the_others_say() {
    futures_util::stream::iter(0..1000).for_each_concurrent(50, secrets_stay_at_home).await;
}
