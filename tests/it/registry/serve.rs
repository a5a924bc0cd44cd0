//! The lying registry's HTTP: requests in, answers out, faults in between.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crfs::blob::Digest;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Auth, Fault, Lasting, Lie, On, Request, State};

/// An answer before anything has gone wrong with it.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    blob: Option<Digest>,
    /// How many bytes of the body go out at a time, and the pause between.
    pace: (usize, Duration),
    /// What waits behind how many bytes of the body.
    gate: Option<(usize, Arc<Semaphore>)>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: BTreeMap::new(),
            body: body.into(),
            blob: None,
            pace: (64 << 10, Duration::ZERO),
            gate: None,
        }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.to_owned(), value.into());
        self
    }
}

/// How a body is broken off.
enum End {
    Whole,
    Close,
    Reset,
    Stall,
}

/// Connections end with the task that accepts them.
pub(super) async fn accept(state: Arc<State>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        // Head and body are written one after the other: the second is not to wait until the first is acknowledged.
        let _ = stream.set_nodelay(true);
        let number = state.connections.fetch_add(1, Ordering::SeqCst);
        let state = state.clone();
        connections.spawn(async move {
            // A client that goes away is no fault of the test's.
            let _ = converse(&state, stream, number).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(state: &State, stream: TcpStream, connection: u64) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream, connection).await? {
        state.log.lock().unwrap().push(request.clone());
        let fault = take_fault(state, &request);
        if matches!(fault, Some(Lie::Silence)) {
            return std::future::pending().await;
        }
        if let Some(Lie::WholeBehind(gate)) = &fault {
            gate.acquire().await.unwrap().forget();
        }
        let mut answer = answer(state, &request);
        let end = corrupt(state, &request, &mut answer, fault);
        if !write_answer(state, stream.get_mut(), answer, end).await? {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>, connection: u64) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: String::new(), connection };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8(body).unwrap();
    Ok(Some(request))
}

fn kind(request: &Request) -> Option<On> {
    let path = &request.path;
    if path.contains("/blobs/") {
        Some(On::Blobs)
    } else if path.contains("/manifests/") {
        Some(On::Manifests)
    } else if path.contains("/referrers/") {
        Some(On::Referrers)
    } else if path.starts_with("/storage/") {
        Some(On::Storage)
    } else {
        path.starts_with("/token").then_some(On::Token)
    }
}

fn take_fault(state: &State, request: &Request) -> Option<Lie> {
    let no_cache = request.header("cache-control").is_some_and(|value| value.contains("no-cache"));
    let mut faults = state.faults.lock().unwrap();
    let applies = |fault: &Fault| {
        let over = fault.lasting == Lasting::UntilNoCache && no_cache;
        Some(fault.on) == kind(request) && request.path.contains(&fault.about) && !over
    };
    let index = faults.iter().position(applies)?;
    if let Some(left) = faults[index].spared.checked_sub(1) {
        faults[index].spared = left;
        return None;
    }
    let lie = faults[index].lie.clone();
    match &mut faults[index].lasting {
        Lasting::Times(1) => drop(faults.remove(index)),
        Lasting::Times(left) => *left -= 1,
        _ => {}
    }
    Some(lie)
}

fn answer(state: &State, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/token" {
        return token(state, request);
    }
    if let Some(digest) = path.strip_prefix("/storage/") {
        return stored(state, request, digest);
    }
    if let Some(challenge) = challenge(state, request) {
        if let Some(status) = state.contents().hidden.filter(|_| path != "/v2/") {
            return Answer::new(status, "{}");
        }
        return Answer::new(401, "{}").with("WWW-Authenticate", challenge);
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return Answer::new(404, "") };
    if let Some((repository, name)) = rest.split_once("/manifests/") {
        return document(state, repository, name);
    }
    if let Some((repository, digest)) = rest.split_once("/referrers/") {
        return document(state, repository, &format!("referrers/{digest}"));
    }
    match rest.split_once("/blobs/") {
        Some((_, digest)) => blob(state, request, digest),
        None => Answer::new(if rest.is_empty() { 200 } else { 404 }, "{}"),
    }
}

fn document(state: &State, repository: &str, name: &str) -> Answer {
    match state.contents().documents.get(&(repository.to_owned(), name.to_owned())) {
        Some((media_type, bytes)) => Answer::new(200, bytes.clone())
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", Digest::of(bytes).to_string()),
        None => Answer::new(404, "{}"),
    }
}

fn blob(state: &State, request: &Request, digest: &str) -> Answer {
    let contents = state.contents();
    let found = digest.parse().ok().and_then(|digest: Digest| contents.blobs.get(&digest).map(|blob| (digest, blob)));
    let Some((digest, whole)) = found else { return Answer::new(404, "{}") };
    let range = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?.min(whole.len() - 1)))
    });
    let mut answer = match range {
        Some((first, last)) if first <= last => Answer::new(206, &whole[first..=last])
            .with("Content-Range", format!("bytes {first}-{last}/{}", whole.len())),
        Some(_) => Answer::new(416, ""),
        None => Answer::new(200, whole.clone()),
    };
    answer.blob = Some(digest);
    answer.with("Content-Type", "application/octet-stream")
}

fn stored(state: &State, request: &Request, digest: &str) -> Answer {
    let signature: Option<u64> = request.path.split_once("sig=").and_then(|(_, signature)| signature.parse().ok());
    let (first, status) = {
        let contents = state.contents();
        (contents.first_valid_signature, contents.expired_status)
    };
    match signature {
        Some(signature) if signature >= first => blob(state, request, digest),
        _ => Answer::new(status, "<Error>expired</Error>"),
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What a request must still prove.
fn challenge(state: &State, request: &Request) -> Option<String> {
    let contents = state.contents();
    let authorization = request.header("authorization");
    match &contents.auth {
        Auth::Anyone => None,
        Auth::Basic { user, password } => {
            (authorization != Some(&basic(user, password))).then(|| "Basic realm=\"lies\"".to_owned())
        }
        Auth::Bearer { realm, .. } => {
            let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
            let valid = token.is_some_and(|token| contents.tokens.contains(token));
            let repository = request.path.trim_start_matches("/v2/").split("/blobs/").next().unwrap_or_default();
            let repository = repository.split("/manifests/").next().unwrap_or_default();
            let scope = format!("repository:{repository}:pull");
            (!valid).then(|| format!("Bearer realm=\"{realm}\",service=\"lies\",scope=\"{scope}\""))
        }
    }
}

fn token(state: &State, request: &Request) -> Answer {
    let mut contents = state.contents();
    let Auth::Bearer { user, refresh_token, expires_in, .. } = contents.auth.clone() else {
        return Answer::new(404, "");
    };
    let allowed = match (&user, &refresh_token) {
        (None, None) => true,
        (_, Some(token)) if request.method == "POST" => request.body.contains(&format!("refresh_token={token}")),
        (Some((user, password)), _) => request.header("authorization") == Some(&basic(user, password)),
        _ => false,
    };
    if !allowed {
        return Answer::new(401, "{}");
    }
    contents.issued += 1;
    let token = format!("token-{}-secret", contents.issued);
    contents.tokens.insert(token.clone());
    let mut json = serde_json::json!({ "token": token });
    if let Some(life) = expires_in {
        json["expires_in"] = life.into();
    }
    Answer::new(200, json.to_string())
}

/// Puts a fault into an answer. An answer that is none of the asked kind (a challenge) is left alone.
fn corrupt(state: &State, request: &Request, answer: &mut Answer, fault: Option<Lie>) -> End {
    if answer.status == 401 && answer.headers.contains_key("WWW-Authenticate") {
        return End::Whole;
    }
    let headers =
        |headers: Vec<(&str, String)>| headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    match fault {
        None | Some(Lie::Silence) => {}
        Some(Lie::Status(status, extra)) => *answer = Answer { headers: headers(extra), ..Answer::new(status, "") },
        Some(Lie::Body(body)) => *answer = Answer::new(200, body),
        Some(Lie::Redirect(target)) => {
            let mut contents = state.contents();
            contents.last_signature += 1;
            let digest = request.path.rsplit('/').next().unwrap_or_default();
            let target = target.replace("{digest}", digest).replace("{sig}", &contents.last_signature.to_string());
            *answer = Answer::new(307, "").with("Location", target);
        }
        Some(Lie::Whole | Lie::WholeBehind(_)) => whole(state, answer),
        Some(Lie::WholeUntil(bytes, closes)) => {
            whole(state, answer);
            return keep(answer, bytes, if closes { End::Close } else { End::Stall });
        }
        Some(Lie::RefusesRanges(status)) if request.header("range").is_some() => *answer = Answer::new(status, "{}"),
        Some(Lie::RefusesRanges(_)) => {}
        Some(Lie::ContentRangeInCaches(_)) if request.header("cache-control") == Some("no-cache") => {}
        Some(Lie::ContentRangeInCaches(value)) => {
            drop(answer.headers.insert("Content-Range".to_owned(), value.to_owned()));
        }
        Some(Lie::ContentRange(value)) => {
            answer.headers.remove("Content-Range");
            answer.headers.extend(value.map(|value| ("Content-Range".to_owned(), value)));
        }
        Some(Lie::Multipart) => {
            answer.headers.insert("Content-Type".to_owned(), "multipart/byteranges; boundary=x".to_owned());
        }
        Some(Lie::Header(name, value)) => drop(answer.headers.insert(name.to_owned(), value)),
        Some(Lie::WrongBytesInCaches) if request.header("cache-control") == Some("no-cache") => {}
        Some(Lie::WrongBytes | Lie::WrongBytesInCaches) => answer.body.iter_mut().for_each(|byte| *byte = !*byte),
        Some(Lie::LastByte) => answer.body.iter_mut().rev().take(1).for_each(|byte| *byte = !*byte),
        Some(Lie::PartBehind(bytes, gate)) => answer.gate = Some((bytes, gate)),
        Some(Lie::Slow(bytes, pause)) => answer.pace = (bytes, pause),
        Some(Lie::Cut(bytes)) => return keep(answer, bytes, End::Close),
        Some(Lie::Reset(bytes)) => return keep(answer, bytes, End::Reset),
        Some(Lie::Stall(bytes)) => return keep(answer, bytes, End::Stall),
    }
    End::Whole
}

fn whole(state: &State, answer: &mut Answer) {
    if let Some(digest) = answer.blob {
        let whole = state.contents().blobs[&digest].clone();
        *answer = Answer { blob: Some(digest), ..Answer::new(200, whole) };
    }
}

/// The head still promises the whole body.
fn keep(answer: &mut Answer, bytes: usize, end: End) -> End {
    let promised = answer.body.len();
    answer.headers.insert("Content-Length".to_owned(), promised.to_string());
    answer.body.truncate(bytes);
    if bytes >= promised { End::Whole } else { end }
}

/// Whether the connection goes on.
async fn write_answer(state: &State, stream: &mut TcpStream, mut answer: Answer, end: End) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Because\r\n", answer.status);
    if !answer.headers.contains_key("Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    // Counted before it is sent, so that whoever was answered is counted.
    let place = {
        let mut answered = state.answered.lock().unwrap();
        answered.push((answer.status, 0));
        answered.len() - 1
    };
    stream.write_all(head.as_bytes()).await?;
    for (number, part) in answer.body.chunks(answer.pace.0).enumerate() {
        if let Some((_, gate)) = answer.gate.take_if(|(free, _)| number * answer.pace.0 >= *free) {
            stream.flush().await?;
            gate.acquire().await.unwrap().forget();
        }
        if number > 0 && !answer.pace.1.is_zero() {
            tokio::time::sleep(answer.pace.1).await;
        }
        if let Some(digest) = answer.blob {
            *state.sent.lock().unwrap().entry(digest).or_default() += part.len() as u64;
            state.answered.lock().unwrap()[place].1 += part.len() as u64;
        }
        stream.write_all(part).await?;
    }
    stream.flush().await?;
    match end {
        End::Whole => return Ok(true),
        End::Close => stream.shutdown().await?,
        End::Reset => stream.set_zero_linger()?,
        End::Stall => return std::future::pending().await,
    }
    Ok(false)
}
