//! What a journal says, as types: one JSON object a line, each added to those before it.
//!
//! Reading takes anything. A last line without its end was torn when its process died, and is passed over like every line
//! that is no entry; what is known from the others stands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::clock::SinceBoot;
use crate::encode::OggState;
use crate::render::Rendering;
use crate::seal::Recipients;
use crate::time::SampleCount;

use super::FileId;

/// The version of the journal's form; it changes when a reader of the old form would misread the new one.
pub const JOURNAL_VERSION: u32 = 1;

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Entry {
    /// What is recorded, and where to.
    Started(Started),
    /// The recording is about to take this name. The last such entry counts, and only if what is there says that it
    /// belongs to this recording.
    Named {
        /// The path of its files without suffix and ending.
        stem: PathBuf,
    },
    /// A file is about to be made. The last such entry of a file counts.
    Made(Made),
    /// A file was synced.
    Synced {
        /// Which.
        file: FileId,
        /// Up to where, which is the end of a page.
        bytes: u64,
        /// Where the stream stands there.
        state: OggState,
    },
    /// A file has all its bytes and is about to get its name.
    Closed {
        /// Which.
        file: FileId,
        /// Its size.
        bytes: u64,
        /// SHA-256 of its bytes, in hexadecimal.
        sha256: String,
        /// How long it plays, where it had to be cut before its stream's end.
        cut_to: Option<SampleCount>,
    },
    /// A step of a file's way into a store.
    Upload(Upload),
    /// Where the recording is in its life. The last one counts.
    Life {
        /// What whoever goes on with it has to know; the spool does not look into it.
        life: Value,
    },
    /// A step of an egress that records, or stands in.
    Egress(EgressStep),
    /// Everything known of the recording so far, as it would be in its manifest. The last one counts.
    Ledger {
        /// The manifest so far; the spool does not look into it.
        so_far: Value,
    },
    /// Everything is done and the journal no longer needed.
    Finished,
}

/// What is recorded, and where to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// [`JOURNAL_VERSION`].
    pub version: u32,
    /// The recording's id.
    pub recording_id: String,
    /// The room's name.
    pub room: String,
    /// The process that records.
    pub pid: u32,
    /// The wall time of sample 0, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub wall_zero: OffsetDateTime,
    /// The machine's clock at sample 0; none where it has none that outlasts a process.
    pub boot_zero: Option<SinceBoot>,
    /// Where the files are to end up.
    pub place: Place,
    /// The recording's name there: relative, `/` between its parts, with its ending.
    pub name: String,
}

/// Where a recording's files are to end up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A directory of this machine: they grow there.
    Directory(PathBuf),
    /// A store, by its URL without secrets: they grow in the spool until they have been uploaded.
    Store(String),
}

/// A file of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its number.
    pub file: FileId,
    /// Its path when it is complete; until then `.part` is behind it.
    pub path: PathBuf,
    /// What it is.
    #[serde(flatten)]
    pub what: NewFile,
}

/// What a file is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// What is in it: the word for the kind of output, or of what tells about the recording.
    pub kind: String,
    /// The identity of the only one who is heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// What its name has between the recording's name and the ending.
    pub suffix: String,
    /// Its ending, without the dot.
    pub ext: String,
    /// Those to whom it is sealed; nobody where it is plain. Who ends it needs them.
    #[serde(default, skip_serializing_if = "Recipients::is_empty")]
    pub recipients: Recipients,
    /// Which file it is rendered from, and how; none for what is made by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendered: Option<Rendered>,
    /// Whether it is there only to render others from, and goes once they are whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_source_only: bool,
}

/// What a file is rendered from, and how. Whoever goes on with the recording makes it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    /// The file.
    pub from: FileId,
    /// How.
    #[serde(flatten)]
    pub rendering: Rendering,
}

/// A step of a file's way into a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "upload", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Upload {
    /// The recording has its name in the store.
    Reserved {
        /// The key of its objects without suffix and ending.
        stem: String,
        /// The word by which the store knows who writes.
        owner: String,
    },
    /// An upload was begun.
    Begun {
        /// Which file.
        file: FileId,
        /// The object's key.
        key: String,
        /// The store's word for the upload.
        upload_id: String,
    },
    /// The store has a part.
    PartDone {
        /// Which file.
        file: FileId,
        /// The part's number, as the store counts.
        number: u32,
        /// Its size.
        size: u64,
        /// The store's word for the part.
        tag: String,
        /// MD5 of the part, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        md5: Option<String>,
    },
    /// The store has bytes that are in no part yet, as an object of their own.
    TailPut {
        /// Which file.
        file: FileId,
        /// Where they begin.
        offset: u64,
        /// How many they are.
        len: u64,
        /// The object's key.
        key: String,
    },
    /// The object is complete and was verified.
    Completed {
        /// Which file.
        file: FileId,
        /// Where it is.
        location: String,
    },
}

/// A step in the life of a LiveKit Egress: another service that goes on whatever becomes of this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "egress", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EgressStep {
    /// One is about to be asked for.
    Intended {
        /// The LiveKit server.
        server: String,
        /// The room.
        room: String,
        /// The path of its file, by which it is known where its answer never came…
        path: String,
        /// …with the store's name; none where nobody said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<String>,
    },
    /// It was started.
    Started {
        /// The server's id.
        egress_id: String,
    },
    /// Nothing of it runs any more.
    Ended {
        /// What the manifest says of it, where there was one; the spool does not look into it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        told: Option<Value>,
    },
}

/// An egress that may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningEgress {
    /// The LiveKit server.
    pub server: String,
    /// The room.
    pub room: String,
    /// The path of its file.
    pub path: String,
    /// The store's name; none where nobody said.
    pub store: Option<String>,
    /// The server's id; none where its answer never came.
    pub egress_id: Option<String>,
}

/// What a journal says, all together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// What is recorded, and where to; none where not even that was written.
    pub started: Option<Started>,
    /// The path of the files without suffix and ending.
    pub stem: Option<PathBuf>,
    /// The files.
    pub files: BTreeMap<FileId, FileHistory>,
    /// The steps of all uploads, in order.
    pub uploads: Vec<Upload>,
    /// Where it is in its life.
    pub life: Option<Value>,
    /// The steps of all egresses, in order.
    pub egress: Vec<EgressStep>,
    /// The manifest so far.
    pub so_far: Option<Value>,
    /// Whether everything was done.
    pub finished: bool,
    /// Lines that say nothing.
    pub unread: usize,
}

/// What a journal says of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileHistory {
    /// What it is, and where.
    pub made: Made,
    /// Up to where it was synced last, and where its stream stands there.
    pub synced: Option<(u64, OggState)>,
    /// What it is once it has all its bytes.
    pub closed: Option<Closed>,
}

/// What is known of a file that has all its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// How long it plays, where it had to be cut before its stream's end.
    pub cut_to: Option<SampleCount>,
}

impl History {
    /// Reads a journal.
    pub fn read(bytes: &[u8]) -> Self {
        let mut history = Self::default();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(entry) => history.add(entry),
                Err(_) => history.unread += 1,
            }
        }
        history
    }

    /// Adds an entry to what is known.
    pub fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Started(started) => {
                // Who begins the journal says what it is about.
                self.started.get_or_insert(started);
            }
            Entry::Named { stem } => self.stem = Some(stem),
            Entry::Made(made) => {
                self.files.insert(made.file, FileHistory { made, synced: None, closed: None });
            }
            Entry::Synced { file, bytes, state } => {
                if let Some(known) = self.files.get_mut(&file) {
                    known.synced = Some((bytes, state));
                }
            }
            Entry::Closed { file, bytes, sha256, cut_to } => {
                if let Some(known) = self.files.get_mut(&file) {
                    known.closed = Some(Closed { bytes, sha256, cut_to });
                }
            }
            Entry::Upload(step) => self.uploads.push(step),
            Entry::Life { life } => self.life = Some(life),
            Entry::Egress(step) => self.egress.push(step),
            Entry::Ledger { so_far } => self.so_far = Some(so_far),
            Entry::Finished => self.finished = true,
        }
    }
}

impl FileHistory {
    /// Whether it is rendered from this file.
    pub fn is_rendered_from(&self, file: FileId) -> bool {
        self.made.what.rendered.is_some_and(|rendered| rendered.from == file)
    }
}

impl History {
    /// The files. A file that was never made may have been made later, under another number: only the last at a path counts.
    pub fn last_files(&self) -> impl DoubleEndedIterator<Item = &FileHistory> {
        let is_last = |made: &Made| {
            let at_path = self.files.values().rfind(|file| file.made.path == made.path);
            at_path.is_some_and(|last| last.made.file == made.file)
        };
        self.files.values().filter(move |file| is_last(&file.made))
    }

    /// The egress that may run, if there is one.
    pub fn running_egress(&self) -> Option<RunningEgress> {
        let mut running: Option<RunningEgress> = None;
        for step in &self.egress {
            match step {
                EgressStep::Intended { server, room, path, store } => {
                    let (server, room, path) = (server.clone(), room.clone(), path.clone());
                    running = Some(RunningEgress { server, room, path, store: store.clone(), egress_id: None });
                }
                EgressStep::Started { egress_id } => {
                    if let Some(running) = &mut running {
                        running.egress_id = Some(egress_id.clone());
                    }
                }
                EgressStep::Ended { .. } => running = None,
            }
        }
        running
    }

    /// What there is to tell of egresses that have ended, in order.
    pub fn ended_egresses(&self) -> impl Iterator<Item = &Value> {
        self.egress.iter().filter_map(|step| match step {
            EgressStep::Ended { told } => told.as_ref(),
            EgressStep::Intended { .. } | EgressStep::Started { .. } => None,
        })
    }
}

impl Entry {
    /// The entry as a line, with its end.
    ///
    /// # Errors
    /// For a path that is not UTF-8.
    pub fn line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let file = FileId(0);
        let what = NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() };
        vec![
            Entry::Started(Started {
                version: JOURNAL_VERSION,
                recording_id: "01J".into(),
                room: "a \"room\"\n".into(),
                pid: 7,
                wall_zero: OffsetDateTime::UNIX_EPOCH,
                boot_zero: Some(SinceBoot { boot: "b".into(), nanos: u64::MAX }),
                place: Place::Directory("/out".into()),
                name: "call.ogg".into(),
            }),
            Entry::Named { stem: "/out/call".into() },
            Entry::Made(Made { file, path: "/out/call.ogg".into(), what }),
            Entry::Synced { file, bytes: 100, state: OggState { serial: 1, sequence: 2, granule: u64::MAX } },
            Entry::Upload(Upload::Begun { file, key: "k".into(), upload_id: "u".into() }),
            Entry::Upload(Upload::PartDone { file, number: 1, size: 2, tag: "t".into(), md5: None }),
            Entry::Upload(Upload::TailPut { file, offset: 3, len: 4, key: "k.tail".into() }),
            Entry::Life { life: serde_json::json!({"paused": true}) },
            Entry::Life { life: serde_json::json!({"paused": false}) },
            Entry::Egress(EgressStep::Intended {
                server: "http://s".into(),
                room: "r".into(),
                path: "p".into(),
                store: None,
            }),
            Entry::Egress(EgressStep::Started { egress_id: "EG_1".into() }),
            Entry::Egress(EgressStep::Ended { told: Some(serde_json::json!({"a": 1})) }),
            Entry::Ledger { so_far: serde_json::json!({"a": [1, 2.5, null]}) },
            Entry::Closed { file, bytes: 200, sha256: "00".into(), cut_to: Some(SampleCount(960)) },
            Entry::Upload(Upload::Completed { file, location: "s3://b/k".into() }),
            Entry::Finished,
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        entries.iter().flat_map(|entry| entry.line().unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let entries = entries();
        let mut expected = History::default();
        entries.iter().cloned().for_each(|entry| expected.add(entry));
        let history = History::read(&written(&entries));
        assert_eq!(history, expected);
        assert!(history.finished && history.started.is_some() && history.so_far.is_some());
        assert_eq!((history.uploads.len(), history.life), (4, Some(serde_json::json!({"paused": false}))));
        let file = &history.files[&FileId(0)];
        assert_eq!((file.synced.unwrap().0, file.closed.as_ref().unwrap().bytes), (100, 200));
    }

    #[test]
    fn an_egress_may_run_until_its_end_is_written() {
        let intended = EgressStep::Intended { server: "s".into(), room: "r".into(), path: "p".into(), store: None };
        let mut history = History::default();
        let ids: Vec<_> = [
            intended.clone(),
            EgressStep::Started { egress_id: "EG_1".into() },
            EgressStep::Ended { told: Some(serde_json::json!(1)) },
            intended,
            EgressStep::Ended { told: None },
        ]
        .into_iter()
        .map(|step| {
            history.add(Entry::Egress(step));
            history.running_egress().map(|running| running.egress_id)
        })
        .collect();
        assert_eq!(ids, [Some(None), Some(Some("EG_1".into())), None, Some(None), None]);
        assert_eq!(history.ended_egresses().collect::<Vec<_>>(), [&serde_json::json!(1)]);
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let entries = entries();
        let bytes = written(&entries);
        for cut in 0..bytes.len() {
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            let mut expected = History::default();
            entries[..whole].iter().cloned().for_each(|entry| expected.add(entry));
            assert_eq!(History::read(&bytes[..cut]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn lines_of_others_are_passed_over() {
        let mut bytes = b"\xff\xfe\n{\"entry\":\"from_the_future\",\"x\":1}\n\n".to_vec();
        bytes.extend(written(&entries()[..2]));
        let history = History::read(&bytes);
        assert_eq!((history.unread, history.stem), (2, Some("/out/call".into())));
    }
}
