//! Answers that somebody else than the FUSE thread gives (forest/asked.rs), and those of LOOKUP.

use std::sync::Arc;

use bytes::Bytes;
use fuser::{Errno, ReplyData, ReplyEntry};
use futures_util::future::BoxFuture;

use super::attr::{no_entry, reply_attr};
use super::{FOR_EVER, GENERATION, errno};
use crate::fs::errno::Refused;
use crate::fs::forest::{Forest, Named};

/// The bit of a request's number that says that it was given out before (Linux 6.9).
pub(super) const RESENT: u64 = 1 << 63;

/// Answers what is found out.
pub(super) async fn later(forest: Arc<Forest>, found: BoxFuture<'static, Option<u64>>, reply: ReplyEntry) {
    let named = found.await.map_or(Named::Nothing { lasting: false }, |number| forest.found(number));
    reply_entry(&forest, Ok(named), reply);
}

/// Answers bytes that somebody else has.
pub(super) async fn remote(bytes: BoxFuture<'static, Option<Bytes>>, reply: ReplyData) {
    match bytes.await {
        Some(bytes) => reply.data(&bytes),
        None => reply.error(Errno::EIO),
    }
}

/// What somebody has heard by a request is not there.
pub(super) async fn heard<R>(hearing: BoxFuture<'static, ()>, reply: R, error: impl FnOnce(R, Errno)) {
    hearing.await;
    error(reply, Errno::ENOENT);
}

/// Answers a LOOKUP.
pub(super) fn reply_entry(forest: &Forest, named: Result<Named, Refused>, reply: ReplyEntry) {
    match named {
        Ok(Named::Node(stat)) => {
            let (ttl, attr) = reply_attr(&stat);
            forest.remember(stat.number);
            reply.entry(&ttl, &attr, GENERATION);
        }
        Ok(Named::Nothing { lasting: true }) => reply.entry(&FOR_EVER, &no_entry(), GENERATION),
        Ok(Named::Nothing { lasting: false } | Named::Later(_)) => reply.error(Errno::ENOENT),
        Err(refused) => reply.error(errno(&refused)),
    }
}
