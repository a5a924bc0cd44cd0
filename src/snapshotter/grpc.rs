//! gRPC over a unix socket: HTTP/2 by hyper, and the few bytes that gRPC puts around a message. docs/decisions/0020 says why no more is used.
//!
//! Whoever can connect is root, or who runs the snapshotter (mode 0600). Still, what they may send has limits.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::error::{Code, Status};

/// Connections at a time, and calls of each.
const CONNECTIONS: usize = 64;
const CALLS: u32 = 256;

/// Bytes of a message, and of the headers of a call.
const LONGEST: usize = 4 << 20;
const HEADERS: u32 = 16 << 10;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Between two tries to accept where there are no descriptors.
const PAUSE: Duration = Duration::from_secs(1);

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Who answers calls, by the path of the method. All answers but a stream's have one message.
pub(super) trait Methods: Send + Sync + 'static {
    fn call(self: Arc<Self>, path: String, message: Bytes)
    -> impl Future<Output = Result<Vec<Vec<u8>>, Status>> + Send;
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// Answers for as long as it is polled. Needs a tokio runtime.
pub(super) async fn answer(listener: UnixListener, methods: Arc<impl Methods>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Nobody closes it.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let methods = Arc::clone(&methods);
                tokio::spawn(async move {
                    converse(stream, methods).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of containerd's is refused");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, methods: Arc<impl Methods>) {
    let service = service_fn(move |request| {
        let methods = Arc::clone(&methods);
        async move { Ok::<_, Infallible>(respond(request, methods).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_concurrent_streams(CALLS).max_header_list_size(HEADERS);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of containerd's has ended");
    }
}

async fn respond(request: Request<Incoming>, methods: Arc<impl Methods>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let called = async {
        let message = message_of(request.into_body()).await?;
        methods.call(path, message).await
    };
    match called.await {
        Ok(messages) => response(&messages),
        Err(status) => refusal(&status),
    }
}

/// The one message of a call.
async fn message_of(body: Incoming) -> Result<Bytes, Status> {
    let unreadable = |why: String| Status::new(Code::InvalidArgument, format!("the call cannot be read: {why}"));
    let collected = Limited::new(body, LONGEST.saturating_add(PREFIX)).collect().await;
    let mut bytes = collected.map_err(|error| unreadable(error.to_string()))?.to_bytes();
    if bytes.len() < PREFIX {
        return Err(unreadable("it is cut short".into()));
    }
    if bytes.get_u8() != 0 {
        return Err(Status::new(Code::Unimplemented, "compressed calls are not understood"));
    }
    match usize::try_from(bytes.get_u32()) {
        Ok(length) if length == bytes.len() => Ok(bytes),
        _ => Err(unreadable("it has another length than it says".into())),
    }
}

fn response(messages: &[Vec<u8>]) -> Response<Body> {
    let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]);
    answered(messages.iter().map(|message| Frame::data(framed(message))).collect(), trailers)
}

fn answered(mut frames: Vec<Frame<Bytes>>, trailers: HeaderMap) -> Response<Body> {
    // The status stands behind the messages, also where there are none: clients look for it elsewhere only where nothing at all follows the headers.
    frames.push(Frame::trailers(trailers));
    let frames: Vec<_> = frames.into_iter().map(Ok).collect();
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len().saturating_add(PREFIX));
    bytes.put_u8(0);
    // Limits keep all messages far shorter.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

fn refusal(status: &Status) -> Response<Body> {
    let mut trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from(status.code as u16))]);
    if let Ok(message) = HeaderValue::from_str(&encoded(&status.message)) {
        trailers.insert(MESSAGE, message);
    }
    answered(Vec::new(), trailers)
}

/// As gRPC has it in a header: what is no printable ASCII, and `%`, by numbers.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_errors_are_headers() {
        assert_eq!(encoded("100 % \u{e4}\n"), "100 %25 %C3%A4%0A");
    }
}
