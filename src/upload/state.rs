//! What a bucket says of a recording that goes on: enough to finish it with the bucket alone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spool::{FileId, NewFile};
use crate::store::{Part, UploadId};

/// The version of the state's form; it changes when a reader of the old form would misread the new one.
pub const STATE_VERSION: u32 = 1;

/// Everything that belongs to a recording which is not finished lies below its name with this ending.
const LIVE: &str = ".live/";

/// The name of the state object there.
const STATE: &str = "state.json";

/// A recording on its way into a store. The object that holds it is the lease, too: whose `owner` it names may write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// The recording.
    pub recording_id: String,
    /// Who may write: a new word for each process that takes it.
    pub owner: String,
    /// How often the owner writes this anew, in seconds. Who does not six times has lost it.
    pub every_seconds: u64,
    /// The key of its objects without suffix and ending.
    pub stem: String,
    /// Its files.
    pub files: Vec<FileState>,
    /// The manifest as it would be now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub so_far: Option<Value>,
    /// Whether everything is in its place; the state stays only where deleting is refused.
    #[serde(default)]
    pub done: bool,
}

/// One file on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileState {
    /// Its number.
    pub file: FileId,
    /// What it is.
    #[serde(flatten)]
    pub what: NewFile,
    /// Its object's key.
    pub key: String,
    /// The upload in parts, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    /// The parts that the store has.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// What the store has beside them, as objects of their own, which follow each other. Each begins and ends with a page.
    #[serde(default)]
    pub tails: Vec<Tail>,
    /// The first page or sealed segment, in hexadecimal: what is needed to end the stream.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub head: String,
    /// How long the object is, once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
}

/// Bytes that the store has as an object of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub len: u64,
}

impl Tail {
    /// Where they end.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl LiveState {
    /// The key of the state object of the recording whose objects begin with `stem`.
    pub fn key_of(stem: &str) -> String {
        format!("{stem}{LIVE}{STATE}")
    }

    /// What all keys of an unfinished recording begin with.
    pub fn prefix_of(stem: &str) -> String {
        format!("{stem}{LIVE}")
    }

    /// Whether a key is that of a state object.
    pub fn is_key(key: &str) -> bool {
        key.strip_suffix(STATE).is_some_and(|rest| rest.ends_with(LIVE))
    }

    /// The key of this state object.
    pub fn key(&self) -> String {
        Self::key_of(&self.stem)
    }

    /// The key of a tail object.
    pub fn tail_key(&self, file: FileId, tail: Tail) -> String {
        // Twenty digits, so that a listing has them in their order.
        format!("{}{LIVE}{}/{:020}", self.stem, file.0, tail.offset)
    }

    /// Reads the state object that lies under `key`. Its keys become what they are for whoever sees it there: stores that
    /// are the same but for their prefix have other keys for the same objects.
    ///
    /// # Errors
    /// For what is no state, or one of a version that is not known.
    pub fn read(key: &str, json: &[u8]) -> Result<Self, String> {
        let mut state: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if state.version > STATE_VERSION {
            return Err(format!("it is of version {}, and this is {STATE_VERSION}", state.version));
        }
        if let Some(stem) = key.strip_suffix(STATE).and_then(|rest| rest.strip_suffix(LIVE)) {
            for file in &mut state.files {
                if let Some(rest) = file.key.strip_prefix(&state.stem) {
                    file.key = format!("{stem}{rest}");
                }
            }
            stem.clone_into(&mut state.stem);
        }
        Ok(state)
    }

    /// The state as it is written.
    pub fn write(&self) -> Bytes {
        serde_json::to_vec(self).expect("plain data becomes JSON").into()
    }
}

impl FileState {
    /// A file of which the store has nothing yet.
    pub fn new(file: FileId, what: NewFile, key: String) -> Self {
        Self { file, what, key, upload: None, parts: Vec::new(), tails: Vec::new(), head: String::new(), stored: None }
    }

    /// How many bytes are in parts.
    pub fn confirmed(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// Up to where the store has everything.
    pub fn safe(&self) -> u64 {
        self.tails.last().map_or(0, |tail| tail.end()).max(self.confirmed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_future_is_refused() {
        let what = NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() };
        let mut file = FileState::new(FileId(0), what, "a/b.ogg".into());
        file.parts.push(Part { number: 1, size: 10, tag: "t".into() });
        file.tails.push(Tail { offset: 8, len: 5 });
        assert_eq!((file.confirmed(), file.safe()), (10, 13));
        let mut state = LiveState {
            version: STATE_VERSION,
            recording_id: "R".into(),
            owner: "O".into(),
            every_seconds: 5,
            stem: "a/b".into(),
            files: vec![file],
            so_far: None,
            done: false,
        };
        assert_eq!(LiveState::read("a/b.live/state.json", &state.write()), Ok(state.clone()));
        let elsewhere = LiveState::read("x/a/b.live/state.json", &state.write()).unwrap();
        assert_eq!((&*elsewhere.stem, &*elsewhere.files[0].key), ("x/a/b", "x/a/b.ogg"));
        assert_eq!(state.key(), "a/b.live/state.json");
        assert!(LiveState::is_key(&state.key()) && !LiveState::is_key("a/state.json"));
        assert_eq!(state.tail_key(FileId(3), Tail { offset: 8, len: 5 }), "a/b.live/3/00000000000000000008");
        state.version += 1;
        assert!(LiveState::read("k", &state.write()).unwrap_err().contains("version"));
        assert!(LiveState::read("k", b"{}").is_err());
    }
}
