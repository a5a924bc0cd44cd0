//! The faults of the network, as data.

use std::time::Duration;

use crate::registry::Lie;

/// A host that can have trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Registry,
    /// Where the registry redirects those who ask for blobs, with a new signature each time.
    Storage,
    /// Where the registry sends those who have no valid token.
    Tokens,
}

#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    Lie(Host, Lie),
    Down(Host),
    /// Tokens end before their time. Where that goes on, none is ever good.
    TokenEnds,
    /// One unit of the blob decodes to far more than it should.
    Bomb,
}

/// What is going on when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A mount asks for the manifest.
    Manifest,
    /// A mount asks for a layer's table of contents.
    Toc,
    /// A mount reads a layer whole that has none.
    Pass,
    /// A reader waits for what is not cached.
    Read,
    /// Prefetch runs, and a reader comes for the same.
    Prefetch,
}

pub(super) const PHASES: [Phase; 5] = [Phase::Manifest, Phase::Toc, Phase::Pass, Phase::Read, Phase::Prefetch];

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// For one request.
    Once,
    /// For as long as it is looked at.
    Stays,
}

pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) trouble: Trouble,
    pub(super) spans: &'static [Span],
    /// Not in these phases.
    pub(super) never: &'static [Phase],
    /// Whether it is about one layer only, so that the others must not notice.
    pub(super) one_layer: bool,
}

const BOTH: &[Span] = &[Span::Once, Span::Stays];

fn row(fault: &'static str, trouble: Trouble) -> Row {
    let never: &[Phase] = match trouble {
        Trouble::Lie(Host::Storage, _) | Trouble::Down(Host::Storage) => &[Phase::Manifest],
        Trouble::Bomb => &[Phase::Manifest, Phase::Toc, Phase::Pass],
        _ => &[],
    };
    let one_layer = matches!(trouble, Trouble::Lie(Host::Registry | Host::Storage, _) | Trouble::Bomb);
    Row { fault, trouble, spans: BOTH, never, one_layer }
}

impl Row {
    fn once(self) -> Self {
        Self { spans: &[Span::Once], ..self }
    }

    fn stays(self) -> Self {
        Self { spans: &[Span::Stays], ..self }
    }

    /// About answers to range requests, which a manifest is not asked for with.
    fn of_ranges(self) -> Self {
        Self { never: &[Phase::Manifest], ..self }
    }

    /// A host that asks for restraint is asked less by all readers together.
    fn of_the_host(self) -> Self {
        Self { one_layer: false, ..self }
    }
}

fn lie(fault: &'static str, lie: Lie) -> Row {
    row(fault, Trouble::Lie(Host::Registry, lie))
}

fn status(fault: &'static str, status: u16) -> Row {
    lie(fault, Lie::Status(status, Vec::new()))
}

fn restraint(fault: &'static str, status: u16, retry_after: &str) -> Row {
    lie(fault, Lie::Status(status, vec![("Retry-After", retry_after.to_owned())])).of_the_host()
}

fn storage(fault: &'static str, lie: Lie) -> Row {
    row(fault, Trouble::Lie(Host::Storage, lie))
}

fn refused(fault: &'static str, status: u16) -> Row {
    storage(fault, Lie::Status(status, Vec::new()))
}

fn tokens(fault: &'static str, lie: Lie) -> Row {
    row(fault, Trouble::Lie(Host::Tokens, lie))
}

fn redirect(fault: &'static str, target: &str) -> Row {
    lie(fault, Lie::Redirect(target.to_owned()))
}

/// Every row of the table.
pub(crate) fn rows() -> Vec<Row> {
    [reach(), transfer(), access(), restraints(), breaches(), redirects()].into_iter().flatten().collect()
}

fn reach() -> Vec<Row> {
    vec![
        row("registry down", Trouble::Down(Host::Registry)).stays(),
        row("host of a redirect down", Trouble::Down(Host::Storage)).stays(),
        row("token server down when a token has ended", Trouble::Down(Host::Tokens)).stays(),
        lie("takes the request and says nothing", Lie::Silence),
    ]
}

fn transfer() -> Vec<Row> {
    vec![
        lie("connection reset at once", Lie::Reset(0)),
        lie("connection reset within the body", Lie::Reset(100)).once(),
        lie("body cut after no byte", Lie::Cut(0)),
        lie("body cut after one byte", Lie::Cut(1)),
        lie("body cut after 20,000 bytes", Lie::Cut(20_000)),
        lie("body stalled after 100 bytes", Lie::Stall(100)),
        lie("body at 1 byte a second", Lie::Slow(1, Duration::from_secs(1))),
        lie("body slow: 10 KB a second, past the deadline", Lie::Slow(1000, Duration::from_millis(100))).stays(),
    ]
}

fn access() -> Vec<Row> {
    vec![
        row("401, the token has ended", Trouble::TokenEnds),
        tokens("token server answers 500 when a token has ended", Lie::Status(500, Vec::new())),
        tokens("token server refuses (403)", Lie::Status(403, Vec::new())),
        refused("400 from a signed URL", 400),
        refused("401 from a signed URL", 401),
        refused("403 from a signed URL", 403),
        refused("410 from a signed URL", 410),
        status("403 from the registry", 403),
        status("404", 404),
    ]
}

fn restraints() -> Vec<Row> {
    let soon = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(2));
    vec![
        status("429", 429).of_the_host(),
        restraint("429, Retry-After in seconds", 429, "1"),
        restraint("429, Retry-After as a date", 429, &soon),
        restraint("429, Retry-After absurd", 429, "99999999999999999999"),
        restraint("503, Retry-After a date long past", 503, "Sun, 06 Nov 1994 08:49:37 GMT"),
        status("500", 500),
    ]
}

fn breaches() -> Vec<Row> {
    let content_range = |value: &str| Lie::ContentRange(Some(value.to_owned()));
    vec![
        lie("200 and the whole blob", Lie::Whole).of_ranges(),
        status("200 and nothing", 200).of_ranges(),
        lie("400 to a range, else the whole blob", Lie::RefusesRanges(400)).of_ranges(),
        lie("403 to a range, else the whole blob", Lie::RefusesRanges(403)).of_ranges(),
        lie("501 to a range, else the whole blob", Lie::RefusesRanges(501)).of_ranges(),
        status("204", 204),
        status("416", 416).of_ranges(),
        lie("no Content-Range", Lie::ContentRange(None)).of_ranges(),
        lie("Content-Range of other bytes", content_range("bytes 0-9/*")).of_ranges(),
        lie("Content-Range of other bytes from a cache on the way", Lie::ContentRangeInCaches("bytes 0-9/*"))
            .stays()
            .of_ranges(),
        lie("Content-Range that is none", content_range("pages 1-2")).of_ranges(),
        lie("multipart body", Lie::Multipart).of_ranges(),
        lie("Content-Encoding that was not asked for", Lie::Header("Content-Encoding", "gzip".to_owned())),
        lie("wrong bytes", Lie::WrongBytes),
        lie("wrong bytes from a cache on the way", Lie::WrongBytesInCaches).stays(),
        row("a unit that decodes to 500 times its size", Trouble::Bomb).stays(),
    ]
}

fn redirects() -> Vec<Row> {
    vec![
        redirect("redirect to ftp:", "ftp://127.0.0.1/x"),
        redirect("redirect to file:", "file:///etc/passwd"),
        redirect("redirect to a link-local address", "http://169.254.169.254/x"),
        status("redirect without a target", 307),
        lie("redirect to itself", Lie::Redirect("".to_owned())),
        storage("more than 10 redirects", Lie::Redirect("?sig={sig}".to_owned())).stays(),
    ]
}
