//! HTTP, as much of it as Twirp needs.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;

const BODY_LIMIT: usize = 16 * 1_024 * 1_024;

/// The head of a request.
pub(super) struct Head {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// As it came.
    pub raw: Vec<u8>,
}

impl Head {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Reads a head; none where the connection ends or makes no sense.
pub(super) async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Head> {
    let mut raw = Vec::new();
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    raw.extend_from_slice(line.as_bytes());
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        raw.extend_from_slice(line.as_bytes());
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Head { method, path, headers, raw })
}

/// Reads the body that a head announces.
pub(super) async fn read_body(head: &Head, stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    // An empty message has no length either.
    let length = match head.header("content-length") {
        "" => 0,
        length => length.parse().ok().filter(|&length| length <= BODY_LIMIT)?,
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// An answer.
pub(super) struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Answer {
    /// A message.
    pub fn message(message: &impl prost::Message) -> Self {
        Self { status: 200, content_type: "application/protobuf", body: message.encode_to_vec().into() }
    }

    /// What the server says before it looks at what is asked.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: text.into().into() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let mut bytes =
            format!("HTTP/1.1 {status} -\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n", body.len())
                .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

/// An error as Twirp has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwirpError {
    /// `invalid_argument`, `unavailable`…
    pub code: &'static str,
    /// For people.
    pub msg: String,
}

impl TwirpError {
    /// An error of this code.
    pub fn new(code: &'static str, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into() }
    }

    pub(super) fn answer(&self) -> Answer {
        let status = match self.code {
            "canceled" | "deadline_exceeded" => 408,
            "invalid_argument" | "malformed" | "out_of_range" => 400,
            "unauthenticated" => 401,
            "permission_denied" => 403,
            "not_found" | "bad_route" => 404,
            "already_exists" | "aborted" => 409,
            "failed_precondition" => 412,
            "resource_exhausted" => 429,
            "unimplemented" => 501,
            "unavailable" => 503,
            _ => 500,
        };
        let body = serde_json::json!({"code": self.code, "msg": self.msg}).to_string();
        Answer { status, content_type: "application/json", body: body.into() }
    }
}
