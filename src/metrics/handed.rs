//! What a process has counted that works for a server, in the form in which it hands it over: the server counts it as its own.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Metrics, OTHER_HOSTS};

/// Answers that have series of their own.
fn statuses() -> impl Iterator<Item = Cow<'static, str>> {
    let known = (200..=599).filter(|status| super::is_known(*status)).map(|status| Cow::Owned(status.to_string()));
    known.chain(["other", "none"].map(Cow::Borrowed))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Received,
    Requests,
    Retries,
    Verified,
    Wrong,
    Evicted,
    Uncached,
}

/// What was counted, of which host, and with which answer.
type Which = (What, String, String);

/// All that a process has counted until now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Which, u64)>", into = "Vec<(Which, u64)>")]
pub struct Counts(BTreeMap<Which, u64>);

impl From<Vec<(Which, u64)>> for Counts {
    fn from(counts: Vec<(Which, u64)>) -> Self {
        Self(counts.into_iter().collect())
    }
}

impl From<Counts> for Vec<(Which, u64)> {
    fn from(counts: Counts) -> Self {
        counts.0.into_iter().collect()
    }
}

impl Metrics {
    /// What this process has counted until now of the work that it may do for another.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let alone = |what| (what, String::new(), String::new());
        let mut counts = BTreeMap::from([
            (alone(What::Verified), self.verified.get()),
            (alone(What::Wrong), self.wrong.get()),
            (alone(What::Evicted), self.evicted.get()),
            (alone(What::Uncached), self.uncached.get()),
        ]);
        let hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for host in hosts.into_iter().chain([OTHER_HOSTS.to_owned()]) {
            let label = [("host", Cow::Owned(host.clone()))];
            let of = |family: &super::By<super::Counter>| family.get(&label).map(|counter| counter.get());
            counts.extend(of(&self.received).map(|count| ((What::Received, host.clone(), String::new()), count)));
            counts.extend(of(&self.retries).map(|count| ((What::Retries, host.clone(), String::new()), count)));
            for status in statuses() {
                let labels = [("host", Cow::Owned(host.clone())), ("status", status.clone())];
                let count = self.requests.get(&labels).map(|counter| counter.get());
                counts.extend(count.map(|count| ((What::Requests, host.clone(), status.into_owned()), count)));
            }
        }
        counts.retain(|_, count| *count > 0);
        Counts(counts)
    }

    /// Counts what another process has counted for this one, but for what it had said `before`.
    pub fn add(&self, counts: &Counts, before: &Counts) {
        for ((what, host, status), count) in &counts.0 {
            let known = before.0.get(&(*what, host.clone(), status.clone())).copied().unwrap_or_default();
            self.add_one((*what, host, status), count.saturating_sub(known));
        }
    }

    fn add_one(&self, (what, host, status): (What, &str, &str), count: u64) {
        let host = || [("host", Cow::Owned(self.host(host)))];
        match what {
            What::Received => self.received.get_or_create(&host()).inc_by(count),
            What::Retries => self.retries.get_or_create(&host()).inc_by(count),
            What::Requests => {
                let [host] = host();
                self.requests.get_or_create(&[host, ("status", status.to_owned().into())]).inc_by(count)
            }
            What::Verified => self.verified.inc_by(count),
            What::Wrong => self.wrong.inc_by(count),
            What::Evicted => self.evicted.inc_by(count),
            What::Uncached => self.uncached.inc_by(count),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_counted_is_counted_once() {
        let (reader, server) = (Metrics::default(), Metrics::default());
        let mut before = Counts::default();
        for _ in 0..2 {
            reader.asks("r.io").answered(206);
            drop(reader.asks("r.io"));
            reader.received_from("r.io").inc_by(7);
            reader.retries("r.io");
            reader.verified.inc_by(5);
            let told: Counts = serde_json::from_str(&serde_json::to_string(&reader.counts()).unwrap()).unwrap();
            server.add(&told, &before);
            before = told;
            assert_eq!(server.counts(), reader.counts());
        }
        assert_eq!(server.verified.get(), 10);
    }
}
