//! Names to addresses, by the system's resolver, without link-local ones: no name that a registry sends us to may lead there. (A registry that
//! really lives at such an address can be named by it.)
//!
//! The system's resolver cannot be interrupted: it has a blocking thread until it gives up, whoever has gone away meanwhile. So each name is looked
//! up once at a time, however many wait and however often they ask again, or a silent name server would take all threads, those that cached
//! contents are read on as well. Nor does it for many names, to which a registry may send us.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::{Semaphore, oneshot};

use crate::threads::{self, Work};

/// What was found is used again for so long: enough for requests that are made together, too short to go stale.
const KEPT: Duration = Duration::from_secs(5);

/// Names that are looked up at a time.
const AT_ONCE: usize = 64;

type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// What is under way, or was found just now.
type Lookups = Mutex<HashMap<String, Shared<oneshot::Receiver<Found>>>>;

/// How a name is looked up.
type Ask = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

#[derive(Clone)]
pub(super) struct Resolver {
    lookups: Arc<Lookups>,
    turns: Arc<Semaphore>,
    ask: Arc<Ask>,
}

impl Default for Resolver {
    fn default() -> Self {
        let system = |name: String| (name.as_str(), 0).to_socket_addrs().map(Iterator::collect);
        Self::asking(move |name| {
            let asked = threads::run(Work::Outside, move || system(name));
            async move { asked.await.map_err(io::Error::other)? }.boxed()
        })
    }
}

impl Resolver {
    fn asking(ask: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static) -> Self {
        Self { lookups: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)), ask: Arc::new(ask) }
    }

    async fn addresses(&self, name: &str) -> Found {
        let found = self.lookup(name).await;
        found.unwrap_or_else(|_| Err(Arc::new(io::Error::other("the lookup was given up"))))
    }

    fn lookup(&self, name: &str) -> Shared<oneshot::Receiver<Found>> {
        let mut lookups = lock(&self.lookups);
        if let Some(lookup) = lookups.get(name) {
            return lookup.clone();
        }
        let (tell, heard) = oneshot::channel();
        let lookup = heard.shared();
        lookups.insert(name.to_owned(), lookup.clone());
        let listed = Listed { lookups: Arc::clone(&self.lookups), name: name.to_owned() };
        // A task of its own: it goes on when nobody waits any more.
        tokio::spawn(self.clone().look_up(listed, tell));
        lookup
    }

    async fn look_up(self, listed: Listed, tell: oneshot::Sender<Found>) {
        let turn = self.turns.acquire().await;
        let found = (self.ask)(listed.name.clone()).await;
        drop(turn);
        // Nobody may wait any more, and who asks within the time hears it still.
        match found {
            Ok(addresses) => {
                let _heard = tell.send(Ok(addresses));
                tokio::time::sleep(KEPT).await;
            }
            Err(error) => {
                // Before anybody hears of it, so that who asks again is not told the same.
                drop(listed);
                let _heard = tell.send(Err(Arc::new(error)));
            }
        }
    }
}

/// A lookup that others find, until this is dropped.
struct Listed {
    lookups: Arc<Lookups>,
    name: String,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.lookups).remove(&self.name);
    }
}

fn lock(lookups: &Lookups) -> MutexGuard<'_, HashMap<String, Shared<oneshot::Receiver<Found>>>> {
    lookups.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let mut found = resolver.addresses(name.as_str()).await?;
            found.retain(|address| !is_link_local(address.ip()));
            if found.is_empty() {
                return Err("the name has no address that may be asked".into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Addresses that reach only this machine's own network, where clouds keep their machines' credentials.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::watch;

    use super::*;

    /// What the name server of a test says; `None`: nothing yet.
    type Says = Option<bool>;

    /// Answers when it is told to; counts who asks.
    fn server() -> (Resolver, watch::Sender<Says>, Arc<AtomicUsize>) {
        let (tell, heard) = watch::channel(None);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolver = Resolver::asking(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let mut heard = heard.clone();
            async move {
                let is_good = heard.wait_for(Option::is_some).await.unwrap().unwrap();
                if is_good { Ok(vec![([192, 0, 2, 1], 0).into()]) } else { Err(io::Error::other("no such name")) }
            }
            .boxed()
        });
        (resolver, tell, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_is_asked_once_however_many_wait_and_give_up() {
        let (resolver, tell, asked) = server();
        for _ in 0..10 {
            let waiting = (0..100).map(|_| tokio::time::timeout(Duration::from_secs(10), resolver.addresses("r")));
            assert!(futures_util::future::join_all(waiting).await.iter().all(Result::is_err));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tell.send(Some(true)).unwrap();
        assert_eq!(resolver.addresses("r").await.unwrap().len(), 1);
        assert_eq!(resolver.addresses("s").await.unwrap().len(), 1);
        assert_eq!(asked.load(Ordering::SeqCst), 2, "another name is another lookup");
    }

    #[tokio::test(start_paused = true)]
    async fn many_names_have_their_turns() {
        let (resolver, tell, asked) = server();
        let names: Vec<_> = (0..AT_ONCE * 2).map(|number| number.to_string()).collect();
        let waiting = names.iter().map(|name| tokio::time::timeout(KEPT, resolver.addresses(name)));
        assert!(futures_util::future::join_all(waiting).await.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::SeqCst), AT_ONCE);
        tell.send(Some(true)).unwrap();
        let found = futures_util::future::join_all(names.iter().map(|name| resolver.addresses(name))).await;
        assert!(found.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_a_moment_and_a_failure_is_not() {
        let (resolver, tell, asked) = server();
        tell.send(Some(false)).unwrap();
        for times in 1..=2 {
            assert!(resolver.addresses("r").await.is_err());
            assert_eq!(asked.load(Ordering::SeqCst), times);
        }
        tell.send(Some(true)).unwrap();
        for (times, pause) in [(3, KEPT / 2), (3, KEPT), (4, Duration::ZERO)] {
            assert!(resolver.addresses("r").await.is_ok());
            assert_eq!(asked.load(Ordering::SeqCst), times);
            tokio::time::sleep(pause).await;
        }
    }

    #[test]
    fn link_local_addresses_are_known_however_they_are_written() {
        for local in ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"] {
            assert!(is_link_local(local.parse().unwrap()), "{local}");
        }
        assert!(!is_link_local("10.0.0.1".parse().unwrap()));
    }
}
