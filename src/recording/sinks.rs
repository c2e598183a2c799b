//! Where the pipeline's outputs go: a file each.

use tokio::sync::mpsc;

use crate::config::{OutputKind, safe_in_name};
use crate::spool::{FileError, FileEvent, FileId, FinishedFile, NewFile, RecordingFiles, Reservation, What};
use crate::time::MediaTime;

use super::handle::OutputResult;
use super::manifest::{OutputEntry, SidecarEntry, SidecarKind};
use super::outcome::Reason;
use super::outputs::{Contents, Origin, OutputId, Outputs};
use super::pipeline::Pipeline;
use super::recover::make_way;

/// The ending of every file.
pub const EXT: &str = "ogg";

/// The files of one recording, one for each output.
#[derive(Debug)]
pub struct Sinks {
    files: RecordingFiles,
    /// By [`OutputId`].
    sinks: Vec<Sink>,
    bytes: u64,
    events: mpsc::UnboundedReceiver<FileEvent>,
}

#[derive(Debug)]
struct Sink {
    file: FileId,
    /// What broke the file.
    fault: Option<String>,
    /// What the disk refuses while memory stands in.
    in_memory: Option<String>,
}

/// The files when the recording is over.
#[derive(Debug, Default)]
pub struct Stored {
    /// For the manifest.
    pub entries: Vec<OutputEntry>,
    /// For the result.
    pub results: Vec<OutputResult>,
    /// What went wrong with some or all of them.
    pub reasons: Vec<Reason>,
    /// Whether every file has its name, whole or not.
    pub all_named: bool,
}

impl Sinks {
    /// Reserves the recording's name, as [`RecordingFiles::reserve`] does. No output has a file yet.
    pub async fn reserve(wanted: Reservation) -> Result<Self, Reason> {
        let (event, events) = mpsc::unbounded_channel();
        let reserve = move || {
            make_way(&wanted.spool, &wanted.started.recording_id)?;
            RecordingFiles::reserve(&wanted, event)
        };
        let reserved = tokio::task::spawn_blocking(reserve).await;
        let reserved = reserved.map_err(|error| Reason::Internal { message: error.to_string() })?;
        let files = reserved.map_err(|error| Reason::Storage { message: error.to_string() })?;
        Ok(Self { files, sinks: Vec::new(), bytes: 0, events })
    }

    /// The files, and the place for the manifest.
    pub fn files(&self) -> &RecordingFiles {
        &self.files
    }

    /// The files, whose recording is over.
    pub fn into_files(self) -> RecordingFiles {
        self.files
    }

    /// What the disk refuses at the moment, while memory stands in for it.
    pub fn in_memory(&self) -> Option<&str> {
        self.sinks.iter().find_map(|sink| sink.in_memory.as_deref())
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes a file for every output that has none yet.
    pub fn open(&mut self, outputs: &Outputs) {
        for contents in outputs.contents().skip(self.sinks.len()) {
            let suffix = suffix(&contents);
            let Contents { kind, participant, .. } = contents;
            let file = self.files.create(NewFile { kind: kind.to_string(), participant, suffix, ext: EXT.into() });
            self.sinks.push(Sink { file: file.id(), fault: None, in_memory: None });
        }
    }

    /// Writes the pages that the pipeline has closed.
    pub fn write(&mut self, pipeline: &mut Pipeline) {
        self.open(pipeline.outputs());
        for (OutputId(n), bytes) in pipeline.take_pages() {
            self.bytes += bytes.len() as u64;
            self.files.append(self.sinks[n].file, bytes);
        }
    }

    /// Waits for news of the disk, and notes them.
    pub async fn news(&mut self) {
        match self.events.recv().await {
            Some(event) => self.note(event),
            // The files hold the other end.
            None => std::future::pending().await,
        }
    }

    /// Whether there are outputs and every one of them is broken, by the disk or in itself.
    pub fn all_broken(&self, outputs: &Outputs) -> bool {
        let is_broken = |(n, sink): (usize, &Sink)| sink.fault.is_some() || outputs.is_broken(OutputId(n));
        !self.sinks.is_empty() && self.sinks.iter().enumerate().all(is_broken)
    }

    /// Writes the last pages and gives every file its name. The recording ends at `end`.
    pub async fn finish(&mut self, pipeline: &mut Pipeline, end: MediaTime) -> Stored {
        self.write(pipeline);
        self.store(pipeline.outputs().origins(end), end).await
    }

    /// Writes a whole file beside the recording, with its name and the ending `ext`.
    ///
    /// # Errors
    /// [`Reason::Output`] where the disk refuses it.
    pub async fn store_beside(
        &self,
        kind: SidecarKind,
        ext: &'static str,
        bytes: Vec<u8>,
    ) -> Result<SidecarEntry, Reason> {
        let what = NewFile { kind: kind.to_string(), ext: ext.into(), ..NewFile::default() };
        let stored = self.files.write_beside(what, bytes).await;
        let lacks = |error: FileError| Reason::Output { output: ext.to_owned(), message: error.to_string() };
        let FinishedFile { path, bytes, sha256, .. } = stored.map_err(lacks)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SidecarEntry { kind, file, bytes, sha256 })
    }

    async fn store(&mut self, origins: Vec<Origin>, end: MediaTime) -> Stored {
        let mut stored = Stored { all_named: true, ..Stored::default() };
        for (sink, origin) in self.sinks.iter_mut().zip(&origins) {
            match self.files.finish(sink.file, origin.fault.is_none()).await {
                Ok(file) => {
                    let entry = entry(&file, origin, end);
                    stored.results.push(OutputResult::new(&entry, file.path.display().to_string()));
                    stored.entries.push(entry);
                }
                Err(error) => {
                    stored.all_named = false;
                    sink.fault.get_or_insert_with(|| error.to_string());
                }
            }
        }
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
        stored.reasons = self.reasons(&origins);
        stored
    }

    fn note(&mut self, FileEvent { file, what }: FileEvent) {
        let Some(sink) = self.sinks.iter_mut().find(|sink| sink.file == file) else { return };
        match what {
            What::Broken(error) => {
                tracing::error!(%error, "a file cannot go on");
                sink.fault.get_or_insert_with(|| error.to_string());
            }
            What::InMemory(error) => {
                tracing::error!(%error, "the disk fails; the recording goes on in memory");
                sink.in_memory = Some(error.to_string());
            }
            What::BackOnDisk => {
                tracing::info!("the disk has everything again");
                sink.in_memory = None;
            }
        }
    }

    /// What the broken outputs mean for the recording: it lacks them, or all is lost.
    fn reasons(&self, origins: &[Origin]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for (sink, origin) in self.sinks.iter().zip(origins) {
            reasons.extend(match (&sink.fault, &origin.fault) {
                (Some(message), _) => Some((name(&origin.contents), Reason::Storage { message: message.clone() })),
                (None, Some(message)) => Some((name(&origin.contents), Reason::Internal { message: message.clone() })),
                (None, None) => None,
            });
        }
        if reasons.len() == self.sinks.len() {
            // All for the same reason, as a rule: once is enough.
            return reasons.into_iter().map(|(_, reason)| reason).take(1).collect();
        }
        let lacks = |(output, reason): (String, Reason)| Reason::Output { output, message: reason.to_string() };
        reasons.into_iter().map(lacks).collect()
    }
}

fn entry(file: &FinishedFile, origin: &Origin, end: MediaTime) -> OutputEntry {
    let end = file.cut_to.map_or(end, |length| MediaTime::ZERO + length);
    let Contents { kind, participant, left, right } = origin.contents.clone();
    OutputEntry {
        kind,
        participant,
        left,
        right,
        file: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        format: EXT.into(),
        duration_seconds: end.as_secs_f64(),
        bytes: file.bytes,
        sha256: file.sha256.clone(),
        streams: origin.streams.clone(),
    }
}

/// An output as it is known while its file still grows.
pub fn entry_so_far(origin: &Origin, at: MediaTime) -> OutputEntry {
    let (path, sha256) = Default::default();
    entry(&FinishedFile { path, bytes: 0, sha256, cut_to: None, in_memory: false }, origin, at)
}

/// `mix`, `dual`, or whose track it is.
fn name(contents: &Contents) -> String {
    contents.participant.as_ref().map_or_else(|| contents.kind.to_string(), |who| format!("{} of {who}", contents.kind))
}

/// What the name of an output's file has between the recording's name and the ending.
fn suffix(contents: &Contents) -> String {
    match (&contents.participant, contents.kind) {
        (Some(identity), _) => format!("-{}", safe_in_name(identity)),
        (None, OutputKind::Mix) => String::new(),
        (None, kind) => format!("-{kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(kind: OutputKind, participant: Option<&str>) -> Contents {
        Contents { kind, participant: participant.map(Into::into), left: Vec::new(), right: Vec::new() }
    }

    #[test]
    fn each_output_has_its_own_name_and_no_identity_leaves_the_directory() {
        assert_eq!(suffix(&contents(OutputKind::Mix, None)), "");
        assert_eq!(suffix(&contents(OutputKind::Dual, None)), "-dual");
        assert_eq!(suffix(&contents(OutputKind::Tracks, Some("sip_+49 30"))), "-sip_+49 30");
        assert_eq!(suffix(&contents(OutputKind::Tracks, Some("../a/b\\0"))), "-.._a_b_0");
        assert!(suffix(&contents(OutputKind::Tracks, Some(&"é".repeat(400)))).len() <= 100);
    }
}
