//! What the Blob service answers.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::store::backend::{ObjectInfo, Page};
use crate::store::error::{Fault, FaultKind};
use crate::store::http::{self, Answer};
use crate::store::metadata;

const METADATA: &str = "x-ms-meta-";

/// Sorts an answer that is no success.
pub(super) fn fault(answer: &Answer) -> Fault {
    let code = answer.header("x-ms-error-code").unwrap_or_default();
    // The second line on is about the request's id and time.
    let text = String::from_utf8_lossy(&answer.body);
    let message = text.split_once("<Message>").and_then(|(_, rest)| rest.split(['<', '\n']).next()).unwrap_or_default();
    let reason = format!("{code} {}", answer.status).trim_start().to_owned();
    let reason = if message.is_empty() { reason } else { format!("{reason}: {message}") };
    Fault::new(kind(code, answer.status), reason)
}

fn kind(code: &str, status: u16) -> FaultKind {
    match code {
        "BlobNotFound" => return FaultKind::NotFound,
        // Blocks that are not there, or not any more, are an upload that is gone.
        "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled" | "InvalidBlockList" => {
            return FaultKind::Gone;
        }
        "BlobAlreadyExists" | "ConditionNotMet" => return FaultKind::AlreadyExists,
        "Md5Mismatch" | "InvalidMd5" => return FaultKind::Mismatch,
        "ServerBusy" => return FaultKind::Throttled,
        "OperationTimedOut" => return FaultKind::Unavailable,
        "UnauthorizedBlobOverwrite" | "BlobImmutableDueToPolicy" | "AccountIsDisabled" => return FaultKind::Refused,
        _ => {}
    }
    match status {
        401 | 403 => FaultKind::Refused,
        404 => FaultKind::NotFound,
        405 | 501 => FaultKind::Unsupported,
        408 => FaultKind::Unavailable,
        412 => FaultKind::AlreadyExists,
        429 => FaultKind::Throttled,
        500.. => FaultKind::Unavailable,
        _ => FaultKind::Protocol,
    }
}

pub(super) fn etag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_default().trim_matches('"').to_owned()
}

/// The header that holds one pair of metadata: names there are identifiers, without hyphens.
pub(super) fn metadata_header(name: &str) -> String {
    format!("{METADATA}{}", name.replace('-', "_"))
}

/// An object as the headers about it tell.
pub(super) fn info(key: &str, answer: &Answer) -> Result<ObjectInfo, Fault> {
    let size = answer.header("content-length").and_then(|length| length.parse().ok());
    let metadata = answer.headers.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix(METADATA)?;
        Some((name.replace('_', "-"), metadata::decode(value)))
    });
    Ok(ObjectInfo {
        key: key.to_owned(),
        size: size.ok_or_else(|| Fault::new(FaultKind::Protocol, "the answer has no size"))?,
        etag: etag(answer),
        last_modified: answer.header("last-modified").and_then(http::date),
        metadata: metadata.collect(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EnumerationResults {
    blobs: Blobs,
    #[serde(default)]
    next_marker: String,
}

#[derive(Deserialize)]
struct Blobs {
    #[serde(default, rename = "Blob")]
    blobs: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: String,
    properties: Properties,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Content-Length")]
    length: u64,
    #[serde(rename = "Etag")]
    etag: String,
    #[serde(rename = "Last-Modified")]
    modified: String,
}

/// A page of a container's blobs.
pub(super) fn blobs(xml: &[u8]) -> Result<Page<ObjectInfo>, Fault> {
    let found: EnumerationResults = parse(xml)?;
    let items = found.blobs.blobs.into_iter().map(|blob| ObjectInfo {
        key: blob.name,
        size: blob.properties.length,
        etag: blob.properties.etag.trim_matches('"').to_owned(),
        last_modified: http::date(&blob.properties.modified),
        metadata: BTreeMap::new(),
    });
    Ok(Page { items: items.collect(), next: Some(found.next_marker).filter(|marker| !marker.is_empty()) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockList {
    #[serde(default)]
    uncommitted_blocks: Blocks,
}

#[derive(Default, Deserialize)]
struct Blocks {
    #[serde(default, rename = "Block")]
    blocks: Vec<Block>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Block {
    name: String,
    size: u64,
}

/// The ids and sizes of blocks that belong to no blob yet.
pub(super) fn blocks(xml: &[u8]) -> Result<Vec<(String, u64)>, Fault> {
    let found: BlockList = parse(xml)?;
    Ok(found.uncommitted_blocks.blocks.into_iter().map(|block| (block.name, block.size)).collect())
}

fn parse<'a, T: Deserialize<'a>>(xml: &'a [u8]) -> Result<T, Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::new(FaultKind::Protocol, format!("the answer: {error}"));
    let text = std::str::from_utf8(xml).map_err(|error| failed(&error))?;
    // Some answers begin with a mark of the byte order.
    quick_xml::de::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| failed(&error))
}

/// The request that makes a blob of blocks. Ids are Base64, which XML takes as it is.
pub(super) fn block_list(ids: &[String]) -> String {
    let blocks: String = ids.iter().map(|id| format!("<Uncommitted>{id}</Uncommitted>")).collect();
    format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let xml = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"box\"><Prefix>a</Prefix>\
            <Blobs><Blob><Name>a &amp; b</Name><Properties><Last-Modified>Sun, 06 Nov 1994 08:49:37 GMT</Last-Modified>\
            <Etag>0x1</Etag><Content-Length>7</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob></Blobs>\
            <NextMarker>m</NextMarker></EnumerationResults>";
        let page = blobs(xml.as_bytes()).unwrap();
        assert_eq!(page.next.as_deref(), Some("m"));
        assert_eq!((page.items[0].key.as_str(), page.items[0].size, page.items[0].etag.as_str()), ("a & b", 7, "0x1"));
        assert_eq!(page.items[0].last_modified, Some(time::macros::datetime!(1994-11-06 08:49:37 UTC)));

        let empty = "<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>";
        assert!(blobs(empty.as_bytes()).unwrap().items.is_empty());
        assert!(blobs(b"<html>").is_err() && blobs(b"\xff").is_err());
    }

    #[test]
    fn blocks_are_read() {
        let xml = "<BlockList><UncommittedBlocks><Block><Name>aQ==</Name><Size>5</Size></Block></UncommittedBlocks></BlockList>";
        assert_eq!(blocks(xml.as_bytes()).unwrap(), [("aQ==".to_owned(), 5)]);
        assert_eq!(blocks(b"<BlockList />").unwrap(), []);
    }

    #[test]
    fn a_code_says_more_than_its_status() {
        for (code, status, expected) in [
            ("BlobNotFound", 404, FaultKind::NotFound),
            ("ContainerNotFound", 404, FaultKind::Gone),
            ("InvalidBlockList", 400, FaultKind::Gone),
            ("BlobAlreadyExists", 409, FaultKind::AlreadyExists),
            ("Md5Mismatch", 400, FaultKind::Mismatch),
            ("ServerBusy", 503, FaultKind::Throttled),
            ("", 503, FaultKind::Unavailable),
            ("AuthenticationFailed", 403, FaultKind::Refused),
            ("InvalidHeaderValue", 400, FaultKind::Protocol),
        ] {
            assert_eq!(kind(code, status), expected, "{code} {status}");
        }
    }
}
