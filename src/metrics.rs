//! What this process counts, and by which names Prometheus shows it. docs/METRICS.md has a row for each: a test holds the two together.
//!
//! All of it is of the process, not of an image: no digest is a label, and hosts are a bounded number, so there are few series.

mod handed;
pub(crate) mod steps;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge as OfInteger;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use self::handed::Counts;

/// Hosts that have series of their own. Those that come later are counted together: a redirect may lead anywhere.
const MOST_HOSTS: usize = 32;
const OTHER_HOSTS: &str = "others";

/// Upper bounds of the buckets for READs: from what one takes whose bytes are in memory, to beyond the deadline of one that is fetched.
const READ_SECONDS: [f64; 12] = [64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 0.25, 1.0, 4.0, 16.0, 60.0, 120.0];

type Gauge = OfInteger<u64, AtomicU64>;

/// A counter for each value of one label, or of two.
type By<T> = Family<[(&'static str, Cow<'static, str>); 1], T>;
type ByTwo<T> = Family<[(&'static str, Cow<'static, str>); 2], T>;
type Reads = Family<[(&'static str, Cow<'static, str>); 1], Histogram, fn() -> Histogram>;

/// One metric. Prometheus sees `crfs_`, its name, its unit, and behind a counter `_total`.
struct Definition {
    name: &'static str,
    unit: Option<Unit>,
    /// Its name, unit and labels stay. Else it may go, or be another, with any version.
    is_stable: bool,
    help: &'static str,
}

impl Definition {
    const fn stable(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self { name, unit, is_stable: true, help }
    }

    const fn experimental(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self { name, unit, is_stable: false, help }
    }
}

const BYTES: Option<Unit> = Some(Unit::Bytes);

static SERVER: Definition = Definition::stable("server", None, "What this server is; always 1");
static RECEIVED: Definition = Definition::stable("received", BYTES, "Bytes of layers that a host sent");
static REQUESTS: Definition = Definition::stable("requests", None, "Requests to a host, by its answer");
static IN_FLIGHT: Definition = Definition::stable("requests_in_flight", None, "Requests that have no answer yet");
static RETRIES: Definition = Definition::stable("retries", None, "Requests that failed and were sent again");
static FAILOVERS: Definition = Definition::stable(
    "failovers",
    None,
    "Requests that another endpoint was sent, since this one failed or took too long",
);
static SERVED: Definition = Definition::stable("served", BYTES, "Bytes of contents that readers were given");
static VERIFIED: Definition = Definition::stable("verified", BYTES, "Bytes of contents that had their digest");
static WRONG: Definition = Definition::stable("wrong", BYTES, "Bytes of contents that did not have their digest");
static GUESSED: Definition =
    Definition::experimental("guessed", BYTES, "Bytes that were fetched before anyone read them");
static GUESSED_RIGHT: Definition = Definition::experimental("guessed_right", BYTES, "Bytes of these that were read");
static READS: Definition =
    Definition::stable("read", Some(Unit::Seconds), "Time that READs took, by where the bytes were");
static READ_ERRORS: Definition = Definition::stable("read_errors", None, "READs that failed, by cause");
static LAYERS: Definition =
    Definition::stable("layers", None, "Layers that were opened, by format and how they are read");
static CACHE: Definition =
    Definition::stable("cache", BYTES, "Bytes that the cache holds, of all servers that share it");
static CACHE_LIMIT: Definition = Definition::stable("cache_limit", BYTES, "Bytes that the cache may hold");
static EVICTED: Definition =
    Definition::stable("evicted", BYTES, "Bytes that this server removed from the cache to make room");
static UNCACHED: Definition = Definition::stable("uncached", BYTES, "Bytes of contents that the cache did not take");
static MEMORY: Definition =
    Definition::experimental("memory_charged", BYTES, "Bytes of memory that the open images are charged");

/// Where the bytes of a READ were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// In the cache, or in memory.
    There,
    /// Some of them were waited for.
    Fetched,
}

/// Who a server is, and what is true of it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What tells it from others.
    pub server: String,
    /// What it serves: a mount, a store.
    pub kind: &'static str,
    /// Bytes in the cache, and how many it may hold, where there is one.
    pub cache: Option<[u64; 2]>,
    pub memory: u64,
}

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

pub struct Metrics {
    hosts: Mutex<BTreeSet<String>>,
    received: By<Counter>,
    requests: ByTwo<Counter>,
    in_flight: Gauge,
    retries: By<Counter>,
    failovers: By<Counter>,
    pub served: Counter,
    pub verified: Counter,
    pub wrong: Counter,
    guessed: By<Counter>,
    guessed_right: By<Counter>,
    reads: Reads,
    /// Of those whose bytes were there, and of the others.
    read: [Histogram; 2],
    read_errors: By<Counter>,
    layers: ByTwo<Counter>,
    pub evicted: Counter,
    pub uncached: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let reads = Reads::new_with_constructor(|| Histogram::new(READ_SECONDS));
        let read = ["cache", "fetch"].map(|from| reads.get_or_create_owned(&[("from", from.into())]));
        Self {
            hosts: Mutex::default(),
            received: By::default(),
            requests: ByTwo::default(),
            in_flight: Gauge::default(),
            retries: By::default(),
            failovers: By::default(),
            served: Counter::default(),
            verified: Counter::default(),
            wrong: Counter::default(),
            guessed: By::default(),
            guessed_right: By::default(),
            reads,
            read,
            read_errors: By::default(),
            layers: ByTwo::default(),
            evicted: Counter::default(),
            uncached: Counter::default(),
        }
    }
}

/// A request that is counted as under way until it is answered, or given up.
pub struct Asked<'a> {
    metrics: &'a Metrics,
    host: String,
    answer: Cow<'static, str>,
}

impl Asked<'_> {
    pub fn answered(mut self, status: u16) {
        // What hosts send otherwise is not to make series without end.
        self.answer = if is_known(status) { status.to_string().into() } else { "other".into() };
    }
}

/// Whether an answer has a series of its own.
const fn is_known(status: u16) -> bool {
    matches!(status, 200 | 206 | 301..=303 | 307 | 308 | 400..=429 | 500..=504)
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let labels = [("host", std::mem::take(&mut self.host).into()), ("status", std::mem::take(&mut self.answer))];
        self.metrics.requests.get_or_create(&labels).inc();
    }
}

impl Metrics {
    /// A request goes to a host. Dropped without an answer, it has got none.
    pub fn asks(&self, host: &str) -> Asked<'_> {
        self.in_flight.inc();
        Asked { metrics: self, host: self.host(host), answer: "none".into() }
    }

    /// What counts the bytes that a host sends.
    pub fn received_from(&self, host: &str) -> Counter {
        self.received.get_or_create(&[("host", self.host(host).into())]).clone()
    }

    pub fn retries(&self, host: &str) {
        self.retries.get_or_create(&[("host", self.host(host).into())]).inc();
    }

    /// Another is asked for what `host` did not give, or took too long for.
    pub fn failover(&self, host: &str) {
        self.failovers.get_or_create(&[("host", self.host(host).into())]).inc();
    }

    /// So many bytes are fetched that nobody has read yet. `policy` says that they will be.
    pub fn guesses(&self, policy: &'static str, bytes: u64) {
        self.guessed.get_or_create(&[("policy", policy.into())]).inc_by(bytes);
    }

    /// So many of these were read.
    pub fn guessed_right(&self, policy: &'static str, bytes: u64) {
        self.guessed_right.get_or_create(&[("policy", policy.into())]).inc_by(bytes);
    }

    pub fn read(&self, found: Found, took: Duration) {
        let [there, fetched] = &self.read;
        let reads = match found {
            Found::There => there,
            Found::Fetched => fetched,
        };
        reads.observe(took.as_secs_f64());
    }

    pub fn read_failed(&self, cause: &'static str) {
        self.read_errors.get_or_create(&[("cause", cause.into())]).inc();
    }

    /// `how`: lazily, whole, or why it was refused.
    pub fn layer(&self, format: &'static str, how: &'static str) {
        self.layers.get_or_create(&[("format", format.into()), ("how", how.into())]).inc();
    }

    /// The name that a host is counted by.
    fn host(&self, host: &str) -> String {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            if hosts.len() >= MOST_HOSTS {
                return OTHER_HOSTS.to_owned();
            }
            hosts.insert(host.to_owned());
        }
        host.to_owned()
    }

    /// All of them in Prometheus' text format.
    #[must_use]
    pub fn text(&self, now: &Snapshot) -> String {
        let server = (Cow::Borrowed("server"), Cow::Owned(now.server.clone()));
        let mut registry = Registry::with_prefix_and_labels("crfs", [server].into_iter());
        self.register(&mut registry, now);
        let mut text = String::new();
        // A string takes all that is written to it.
        let _written = prometheus_text::encode(&mut text, &registry);
        text
    }

    fn register(&self, registry: &mut Registry, now: &Snapshot) {
        let is = By::<Gauge>::default();
        is.get_or_create(&[("kind", now.kind.into())]).set(1);
        add(registry, &SERVER, is);
        add(registry, &RECEIVED, self.received.clone());
        add(registry, &REQUESTS, self.requests.clone());
        add(registry, &IN_FLIGHT, self.in_flight.clone());
        add(registry, &RETRIES, self.retries.clone());
        add(registry, &FAILOVERS, self.failovers.clone());
        for (definition, counter) in [
            (&SERVED, &self.served),
            (&VERIFIED, &self.verified),
            (&WRONG, &self.wrong),
            (&EVICTED, &self.evicted),
            (&UNCACHED, &self.uncached),
        ] {
            add(registry, definition, counter.clone());
        }
        add(registry, &GUESSED, self.guessed.clone());
        add(registry, &GUESSED_RIGHT, self.guessed_right.clone());
        add(registry, &READS, self.reads.clone());
        add(registry, &READ_ERRORS, self.read_errors.clone());
        add(registry, &LAYERS, self.layers.clone());
        if let Some([held, limit]) = now.cache {
            add(registry, &CACHE, level(held));
            add(registry, &CACHE_LIMIT, level(limit));
        }
        add(registry, &MEMORY, level(now.memory));
    }
}

fn level(bytes: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(bytes);
    gauge
}

fn add(registry: &mut Registry, definition: &Definition, metric: impl Metric) {
    let note = if definition.is_stable { "" } else { " (experimental)" };
    let help = format!("{}{note}", definition.help);
    match &definition.unit {
        Some(unit) => registry.register_with_unit(definition.name, help, unit.clone(), metric),
        None => registry.register(definition.name, help, metric),
    }
}

/// The texts of several servers as one: each metric once, with the series of all. Where they are of several versions, the first says what it means.
#[must_use]
pub fn together(texts: &[String]) -> String {
    let mut metrics: Vec<(&str, Vec<&str>)> = Vec::new();
    for text in texts {
        let mut metric = None;
        for line in text.lines() {
            let help = line.strip_prefix("# HELP ");
            if let Some(name) = help.and_then(|help| help.split(' ').next()) {
                let known = metrics.iter().position(|(known, _)| *known == name);
                metric = known.or_else(|| {
                    metrics.push((name, vec![line]));
                    metrics.len().checked_sub(1)
                });
            } else if let Some((_, lines)) = metric.and_then(|metric| metrics.get_mut(metric)) {
                // Its type stands behind its help.
                if !line.starts_with('#') || lines.len() == 1 {
                    lines.push(line);
                }
            }
        }
    }
    metrics.iter().flat_map(|(_, lines)| lines).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has counted everything once.
    fn used() -> Metrics {
        let metrics = Metrics::default();
        metrics.asks("r.io").answered(206);
        metrics.received_from("r.io").inc_by(7);
        metrics.retries("r.io");
        metrics.failover("r.io");
        metrics.guesses("rest", 3);
        metrics.guessed_right("rest", 2);
        metrics.read(Found::There, Duration::from_micros(50));
        metrics.read(Found::Fetched, Duration::from_secs(2));
        metrics.read_failed("registry");
        metrics.layer("estargz", "lazy");
        metrics
    }

    fn snapshot(server: &str) -> Snapshot {
        Snapshot { server: server.into(), kind: "mount", cache: Some([1, 2]), memory: 3 }
    }

    #[test]
    fn what_is_counted_is_told() {
        let text = used().text(&snapshot("a"));
        for line in [
            "# TYPE crfs_received_bytes_total counter",
            r#"crfs_received_bytes_total{server="a",host="r.io"} 7"#,
            r#"crfs_requests_total{server="a",host="r.io",status="206"} 1"#,
            r#"crfs_requests_in_flight{server="a"} 0"#,
            r#"crfs_read_seconds_bucket{server="a",from="fetch",le="4"} 1"#,
            r#"crfs_read_seconds_count{server="a",from="cache"} 1"#,
            r#"crfs_cache_limit_bytes{server="a"} 2"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }

    /// Rows of docs/METRICS.md: name, type, labels, stability.
    fn documented() -> Vec<[String; 4]> {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md")).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `crfs_"));
        let mut rows: Vec<[String; 4]> = rows
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
                std::array::from_fn(|column| cells[column + 1].clone())
            })
            .collect();
        rows.sort();
        rows
    }

    /// The same of the metrics themselves.
    fn told() -> Vec<[String; 4]> {
        let text = used().text(&snapshot("a"));
        let mut rows = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let help = text.lines().find(|line| line.starts_with(&format!("# HELP {name} "))).unwrap();
            let sample = text.lines().find(|line| line.starts_with(name)).unwrap();
            let labels = sample.split_once('{').unwrap().1.split_once('}').unwrap().0;
            let names = labels.split(',').map(|label| label.split_once('=').unwrap().0);
            let names: Vec<_> = names.filter(|name| !["server", "le"].contains(name)).collect();
            let stability = if help.contains("(experimental)") { "experimental" } else { "stable" };
            rows.push([name.to_owned(), kind.to_owned(), names.join(", "), stability.to_owned()]);
        }
        rows.sort();
        rows
    }

    #[test]
    fn each_metric_is_documented() {
        assert_eq!(documented(), told());
    }

    #[test]
    fn requests_without_an_answer_are_counted_as_such() {
        let metrics = Metrics::default();
        let asked = metrics.asks("r.io");
        assert!(metrics.text(&snapshot("a")).contains("in_flight{server=\"a\"} 1"));
        drop(asked);
        let text = metrics.text(&snapshot("a"));
        assert!(
            text.contains(r#"host="r.io",status="none"} 1"#) && text.contains("in_flight{server=\"a\"} 0"),
            "{text}"
        );
    }

    #[test]
    fn answers_that_are_odd_are_counted_together() {
        let metrics = Metrics::default();
        (100..1000).for_each(|status| metrics.asks("r.io").answered(status));
        let text = metrics.text(&snapshot("a"));
        assert!(text.lines().filter(|line| line.starts_with("crfs_requests_total")).count() < 50, "{text}");
        assert!(text.contains(r#"status="other"} 8"#), "{text}");
    }

    #[test]
    fn hosts_that_are_many_are_counted_together() {
        let metrics = Metrics::default();
        (0..100).for_each(|host| metrics.retries(&format!("{host}.io")));
        metrics.retries("0.io");
        let text = metrics.text(&snapshot("a"));
        assert!(
            text.contains(r#"host="0.io"} 2"#) && text.contains(&format!(r#"host="others"}} {}"#, 100 - MOST_HOSTS))
        );
    }

    #[test]
    fn servers_are_told_of_together() {
        let texts = ["a", "b"].map(|server| used().text(&snapshot(server)));
        let both = together(&texts);
        let of_each = |text: &str, part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!(of_each(&both, "# HELP"), of_each(&texts[0], "# HELP"));
        assert_eq!(of_each(&both, "# TYPE"), of_each(&texts[0], "# TYPE"));
        assert_eq!(both.lines().count(), 2 * texts[0].lines().count() - 2 * of_each(&texts[0], "# HELP"));
        let lines: Vec<_> = both.lines().collect();
        let first = lines.iter().position(|line| line.starts_with("crfs_served")).unwrap();
        assert!(lines[first].contains(r#""a""#) && lines[first + 1].contains(r#""b""#), "beside each other");
        assert_eq!(together(&texts[..1]), texts[0]);
        let older = texts[1].replace("Bytes of contents", "Bytes");
        assert_eq!(of_each(&together(&[texts[0].clone(), older]), "# HELP"), of_each(&texts[0], "# HELP"));
    }
}
