//! Where the pipeline's outputs go: a file each.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::config::{Config, OutputKind, safe_in_name};
use crate::encode::{EncodeError, Format, Patch};
use crate::render::{Render, Rendering};
use crate::seal::{self, Recipients, SealError, Sealer};
use crate::spool::recover::{OpenStream, Orphan};
use crate::spool::{
    Entry, FileError, FileEvent, FileId, FinishedFile, Memory, NewFile, OGG, RecordingFiles, Rendered, Reservation,
    SEALED, SpoolFile, Started, Upload as UploadStep, What, digest_of,
};
use crate::store::Store;
use crate::time::MediaTime;
use crate::upload::{Spur, Upload, UploadConfig, UploadError, UploadPlan, UploadStatus};

use super::handle::OutputResult;
use super::manifest::{EncryptionEntry, OutputEntry, SidecarEntry, SidecarKind};
use super::outcome::Reason;
use super::outputs::{Contents, Origin, OutputId, Outputs};
use super::pipeline::Pipeline;
use super::recover::make_way;

/// In which formats every output is written, and to whom it is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forms {
    /// Whether the Ogg stream itself is one of them; else it only serves to render the others from.
    pub ogg: bool,
    /// The others.
    pub rendered: Vec<Rendering>,
    /// To whom everything is sealed; nobody where it is plain.
    pub recipients: Recipients,
}

impl Default for Forms {
    /// Ogg alone, plain.
    fn default() -> Self {
        Self { ogg: true, rendered: Vec::new(), recipients: Recipients::default() }
    }
}

impl Forms {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let others = config.formats.iter().filter(|format| **format != Format::Ogg);
        Self {
            ogg: config.formats.contains(&Format::Ogg),
            rendered: others.map(|format| Rendering { format: *format, quality: config.quality }).collect(),
            recipients: config.encryption.clone(),
        }
    }

    /// The ending of the recording's own name.
    pub fn ext(&self) -> &'static str {
        match self.rendered.first() {
            Some(first) if !self.ogg => first.format.as_str(),
            _ => self.ogg_ext(),
        }
    }

    fn ogg_ext(&self) -> &'static str {
        if self.recipients.is_empty() { OGG } else { SEALED }
    }
}

/// The files of one recording: one for each output, and one for each other format that it is rendered in.
#[derive(Debug)]
pub struct Sinks {
    files: RecordingFiles,
    /// By [`OutputId`].
    sinks: Vec<Sink>,
    bytes: u64,
    forms: Forms,
    events: mpsc::UnboundedReceiver<FileEvent>,
    /// The way into a store, if they go there.
    upload: Option<Upload>,
    /// What kept something from getting there.
    refused: Option<String>,
}

#[derive(Debug)]
struct Sink {
    file: FileId,
    /// Seals its pages; none where they stay plain.
    sealer: Option<Sealer>,
    /// What broke the file.
    fault: Option<String>,
    /// What the disk refuses while memory stands in.
    in_memory: Option<String>,
    renders: Vec<RenderSink>,
}

/// What is rendered from an output's pages.
#[derive(Debug)]
struct RenderSink {
    file: FileId,
    render: Render,
    /// What goes over its first bytes in the end.
    patches: Vec<Patch>,
    fault: Option<String>,
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

impl Stored {
    fn add(&mut self, file: &FinishedFile, entry: OutputEntry) {
        self.results.push(OutputResult::new(&entry, file.path.display().to_string()));
        self.entries.push(entry);
    }
}

impl Sinks {
    /// Reserves the recording's name, as [`RecordingFiles::reserve`] does. No output has a file yet.
    /// Where there is a store, files go there as they grow.
    pub async fn reserve(
        wanted: Reservation,
        store: Option<(Store, UploadConfig)>,
        forms: Forms,
    ) -> Result<Self, Reason> {
        let (event, events) = mpsc::unbounded_channel();
        let Started { recording_id, name: key, .. } = wanted.started.clone();
        let reserve = move || {
            make_way(&wanted.spool, &wanted.started.recording_id)?;
            RecordingFiles::reserve(&wanted, event)
        };
        let reserved = tokio::task::spawn_blocking(reserve).await;
        let reserved = reserved.map_err(|error| Reason::Internal { message: error.to_string() })?;
        let files = reserved.map_err(|error| Reason::Storage { message: error.to_string() })?;
        let upload = store.map(|(store, config)| upload(&files, store, recording_id, key, config, Vec::new()));
        Ok(Self { files, sinks: Vec::new(), bytes: 0, forms, events, upload, refused: None })
    }

    /// Goes on with the files of a recording whose process died, as [`RecordingFiles::go_on`] does.
    ///
    /// # Errors
    /// What the disk says; then it is an orphan as before.
    pub async fn go_on(
        orphan: Orphan,
        streams: Vec<OpenStream>,
        memory: Arc<Memory>,
        store: Option<(Store, UploadConfig)>,
        forms: Forms,
    ) -> Result<Self, Reason> {
        let (event, events) = mpsc::unbounded_channel();
        let Started { recording_id, name: key, .. } = orphan.started().clone();
        let steps = orphan.history().uploads.clone();
        let bytes = streams.iter().map(OpenStream::bytes).sum();
        let recipients = &forms.recipients;
        let seal = |stream: &OpenStream| {
            (!recipients.is_empty()).then(|| Sealer::resume(recipients.clone(), stream.head, stream.state))
        };
        let mut sinks: Vec<Sink> = streams.iter().map(|stream| Sink::new(stream.made.file, seal(stream))).collect();
        let gone_on = tokio::task::spawn_blocking(move || RecordingFiles::go_on(orphan, streams, &memory, event)).await;
        let files = gone_on.map_err(|error| Reason::Internal { message: error.to_string() })?;
        let (files, renders) = files.map_err(|error| Reason::Storage { message: error.to_string() })?;
        for (file, render) in renders {
            let of_it = files.files().iter().find(|made| made.id() == file).and_then(|made| made.what().rendered);
            let source = sinks.iter_mut().find(|sink| of_it.is_some_and(|of_it| of_it.from == sink.file));
            if let Some(sink) = source {
                sink.renders.push(RenderSink::new(file, render));
            }
        }
        let upload = store.map(|(store, config)| upload(&files, store, recording_id, key, config, steps));
        if let Some(upload) = &upload {
            files.files().iter().for_each(|file| upload.add(file.clone()));
        }
        Ok(Self { files, sinks, bytes, forms, events, upload, refused: None })
    }

    /// The stream of the first output, which is the mix where there is one; none where nobody can read it.
    pub fn first_stream(&self) -> Option<&SpoolFile> {
        let first = self.sinks.first().filter(|sink| sink.sealer.is_none())?;
        self.files.files().iter().find(|file| file.id() == first.file)
    }

    /// The files, and the place for the manifest.
    pub fn files(&self) -> &RecordingFiles {
        &self.files
    }

    /// How far the way into the store is; none where there is no store.
    pub fn upload(&self) -> Option<UploadStatus> {
        self.upload.as_ref().map(Upload::status)
    }

    /// Puts down the manifest as it would be now. Gives how many bytes that was.
    pub fn put_down(&self, so_far: serde_json::Value) -> usize {
        if let Some(upload) = &self.upload {
            upload.so_far(so_far.clone());
        }
        self.files.journal().append(&Entry::Ledger { so_far })
    }

    /// Puts down where the recording is in its life. What it gives ends when that is known to be safe.
    pub fn put_down_life(&self, life: serde_json::Value) -> impl Future<Output = ()> + Send + use<> {
        self.files.journal().append(&Entry::Life { life });
        self.files.journal().committed()
    }

    /// Has the journal outlast this process however it ends: something else than files has to be ended.
    pub fn hold(&mut self) {
        self.files.hold();
    }

    /// What the keys of the recording's objects begin with, below the store's prefix, once the store has given it that name.
    ///
    /// # Errors
    /// What the store says; that there is none.
    pub async fn stem_in_store(&mut self) -> Result<String, Reason> {
        let failed = |message: String| Reason::Storage { message };
        let upload = self.upload.as_ref().ok_or_else(|| failed("there is no store".into()))?;
        upload.reserve().await.map_err(|error| failed(error.to_string()))
    }

    /// Who can say that the store has only so long for what is left.
    pub fn spur(&self) -> Option<Spur> {
        self.upload.as_ref().map(Upload::spur)
    }

    /// Writes the manifest beside the files. Gives where it is.
    ///
    /// # Errors
    /// Where the disk refuses it, and there is no store that has it; a store that refuses it is told by
    /// [`close`](Self::close).
    pub async fn store_manifest(&mut self, json: Vec<u8>) -> Result<String, FileError> {
        let written = self.files.write_manifest(json.clone()).await;
        match (self.upload_beside("json", json.into()).await, written) {
            (Some(location), written) => {
                note_refusal(written);
                Ok(location)
            }
            (None, written) => written.map(|()| self.files.manifest_path().display().to_string()),
        }
    }

    /// Lets go of what only served to make the recording, if everything `is_stored`; else it stays for recovery. Where it
    /// `keeps`, the spool has for a while what the store has. Gives what kept something out of the store.
    pub async fn close(self, is_stored: bool, keeps: bool) -> Option<Reason> {
        let is_there = is_stored && self.refused.is_none();
        if let (true, Some(upload)) = (is_there, self.upload) {
            upload.close().await;
        }
        if is_there {
            for file in self.sinks.iter().map(|sink| sink.file).collect::<Vec<_>>() {
                self.files.remove_source(file).await;
            }
        }
        if is_there {
            self.files.done(keeps).await;
        } else {
            self.files.leave().await;
        }
        self.refused.map(|message| Reason::Upload { message })
    }

    /// What the disk refuses at the moment, while memory stands in for it.
    pub fn in_memory(&self) -> Option<&str> {
        let mut of_renders = self.sinks.iter().flat_map(|sink| &sink.renders);
        let of_render = of_renders.find_map(|render| render.in_memory.as_deref());
        self.sinks.iter().find_map(|sink| sink.in_memory.as_deref()).or(of_render)
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
            let recipients = self.forms.recipients.clone();
            let sealer = (!recipients.is_empty()).then(|| Sealer::new(recipients.clone()));
            let (ext, is_source_only) = (self.forms.ogg_ext().to_owned(), !self.forms.ogg);
            let what = NewFile { kind: kind.to_string(), participant, suffix, ext, recipients, ..NewFile::default() };
            let mut sink = Sink::new(self.create(NewFile { is_source_only, ..what.clone() }), sealer);
            for rendering in self.forms.rendered.clone() {
                let render = match Render::new(rendering) {
                    Ok(render) => render,
                    // Configurations are checked for that.
                    Err(error) => {
                        sink.fault.get_or_insert_with(|| error.to_string());
                        continue;
                    }
                };
                let rendered = Some(Rendered { from: sink.file, rendering });
                let file = self.create(NewFile { ext: rendering.format.to_string(), rendered, ..what.clone() });
                sink.renders.push(RenderSink::new(file, render));
            }
            self.sinks.push(sink);
        }
    }

    fn create(&mut self, what: NewFile) -> FileId {
        let file = self.files.create(what);
        let id = file.id();
        if let Some(upload) = &self.upload {
            upload.add(file);
        }
        id
    }

    /// Writes the pages that the pipeline has closed.
    pub fn write(&mut self, pipeline: &mut Pipeline) {
        self.open(pipeline.outputs());
        for (OutputId(n), bytes) in pipeline.take_pages() {
            let sink = &mut self.sinks[n];
            if sink.sealer.is_some() && sink.fault.is_some() {
                // What cannot be sealed is missing for good, and nothing can follow it.
                continue;
            }
            let rendered: Vec<_> = sink.renders.iter_mut().map(|render| (render.file, render.push(&bytes))).collect();
            match sink.sealed(bytes) {
                Ok(bytes) => {
                    self.bytes += bytes.len() as u64;
                    self.files.append(sink.file, bytes);
                }
                Err(error) => {
                    tracing::error!(%error, "a file cannot go on");
                    sink.fault = Some(error.to_string());
                }
            }
            // The stream itself comes first: the rest can be made again.
            for (file, bytes) in rendered {
                self.bytes += bytes.len() as u64;
                self.files.append(file, bytes);
            }
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
    /// [`Reason::Output`] where the disk refuses it, and there is no store that has it.
    pub async fn store_beside(
        &mut self,
        kind: SidecarKind,
        ext: &'static str,
        bytes: Vec<u8>,
    ) -> Result<SidecarEntry, Reason> {
        let lacks = |message: String| Reason::Output { output: ext.to_owned(), message };
        let (ext, bytes) = if self.forms.recipients.is_empty() {
            (ext.to_owned(), bytes)
        } else {
            let sealed = seal::seal_whole(&self.forms.recipients, &bytes).map_err(|error| lacks(error.to_string()))?;
            (format!("{ext}.{}", seal::EXT), sealed)
        };
        let recipients = self.forms.recipients.clone();
        let encryption = EncryptionEntry::of(&recipients);
        let what = NewFile { kind: kind.to_string(), ext: ext.clone(), recipients, ..NewFile::default() };
        let (length, sha256, body) = (bytes.len() as u64, digest_of(&bytes), Bytes::from(bytes.clone()));
        let stored = self.files.write_beside(what, bytes).await;
        let file = match (self.upload_beside(&ext, body).await, stored) {
            (Some(location), stored) => {
                note_refusal(stored);
                name_of(&location)
            }
            (None, Ok(file)) => name_of(&file.path.to_string_lossy()),
            (None, Err(error)) => return Err(lacks(error.to_string())),
        };
        Ok(SidecarEntry { kind, file, bytes: length, sha256, encryption })
    }

    async fn store(&mut self, origins: Vec<Origin>, end: MediaTime) -> Stored {
        let mut stored = Stored { all_named: true, ..Stored::default() };
        let mut whole = Vec::new();
        for (n, origin) in origins.iter().enumerate().take(self.sinks.len()) {
            let mut end = end;
            if self.forms.ogg {
                end = self.finish_stream(n, origin, end, &mut stored, &mut whole).await;
            }
            for render in &mut self.sinks[n].renders {
                let rest = render.end();
                self.files.append(render.file, rest);
                let is_whole = render.fault.is_none();
                let patches = std::mem::take(&mut render.patches);
                match self.files.finish_patched(render.file, is_whole, patches).await {
                    Ok(file) => {
                        let format = render.render.rendering().format;
                        let entry = entry(&file, format.as_str(), origin, end, &self.forms.recipients);
                        stored.add(&file, entry);
                        whole.push(render.file);
                    }
                    Err(error) => {
                        stored.all_named = false;
                        render.fault.get_or_insert_with(|| error.to_string());
                    }
                }
            }
        }
        // What the disk refused at the very end shows here.
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
        for (n, origin) in origins.iter().enumerate().take(self.sinks.len()) {
            // Where something that was to be made of it is not whole, the stream itself is kept.
            if !self.forms.ogg && self.sinks[n].renders.iter().any(|render| render.fault.is_some()) {
                self.finish_stream(n, origin, end, &mut stored, &mut whole).await;
                while let Ok(event) = self.events.try_recv() {
                    self.note(event);
                }
            }
        }
        self.complete(&whole, &mut stored).await;
        stored.reasons = self.reasons(&origins);
        stored.reasons.extend(self.refused.clone().map(|message| Reason::Upload { message }));
        stored
    }

    /// Gives an output's own stream its name. Gives where it ends.
    async fn finish_stream(
        &mut self,
        n: usize,
        origin: &Origin,
        end: MediaTime,
        stored: &mut Stored,
        whole: &mut Vec<FileId>,
    ) -> MediaTime {
        let sink = &mut self.sinks[n];
        let is_whole = origin.fault.is_none() && sink.fault.is_none();
        match self.files.finish(sink.file, is_whole).await {
            Ok(file) => {
                let end = file.cut_to.map_or(end, |length| MediaTime::ZERO + length);
                stored.add(&file, entry(&file, OGG, origin, end, &self.forms.recipients));
                whole.push(sink.file);
                end
            }
            Err(error) => {
                stored.all_named = false;
                sink.fault.get_or_insert_with(|| error.to_string());
                end
            }
        }
    }

    /// Makes the objects of `whole` files appear in the store, and says where they are.
    async fn complete(&mut self, whole: &[FileId], stored: &mut Stored) {
        let Some(upload) = &self.upload else { return };
        match upload.complete(whole.to_vec()).await {
            Ok(uploaded) => {
                for (n, file) in whole.iter().enumerate() {
                    let Some(uploaded) = uploaded.iter().find(|uploaded| uploaded.file == *file) else { continue };
                    stored.entries[n].file = name_of(&uploaded.key);
                    stored.results[n].location.clone_from(&uploaded.location);
                }
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// Writes an object that tells about the recording; gives where it is.
    async fn upload_beside(&mut self, ext: &str, bytes: Bytes) -> Option<String> {
        let upload = self.upload.as_ref().filter(|_| self.refused.is_none())?;
        match upload.put_beside("", ext, bytes).await {
            Ok(location) => Some(location),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    fn refuse(&mut self, error: &UploadError) {
        tracing::error!(%error, "the recording is not in its store, and stays in the spool");
        self.refused.get_or_insert_with(|| error.to_string());
    }

    fn note(&mut self, FileEvent { file, what }: FileEvent) {
        for sink in &mut self.sinks {
            let own = (sink.file, &mut sink.fault, &mut sink.in_memory);
            let rendered = sink.renders.iter_mut().map(|r| (r.file, &mut r.fault, &mut r.in_memory));
            let Some((_, fault, in_memory)) = std::iter::once(own).chain(rendered).find(|(id, ..)| *id == file) else {
                continue;
            };
            match what {
                What::Broken(error) => {
                    tracing::error!(%error, "a file cannot go on");
                    fault.get_or_insert_with(|| error.to_string());
                }
                What::InMemory(error) => {
                    tracing::error!(%error, "the disk fails; the recording goes on in memory");
                    *in_memory = Some(error.to_string());
                }
                What::BackOnDisk => {
                    tracing::info!("the disk has everything again");
                    *in_memory = None;
                }
            }
            return;
        }
    }

    /// What the broken outputs mean for the recording: it lacks them, or all is lost.
    fn reasons(&self, origins: &[Origin]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut lost = 0;
        for (sink, origin) in self.sinks.iter().zip(origins) {
            let name = name(&origin.contents);
            lost += usize::from(sink.fault.is_some() || origin.fault.is_some());
            match (&sink.fault, &origin.fault) {
                (Some(message), _) => reasons.push((name, Reason::Storage { message: message.clone() })),
                (None, Some(message)) => reasons.push((name, Reason::Internal { message: message.clone() })),
                (None, None) => reasons.extend(sink.renders.iter().filter_map(|render| {
                    let format = render.render.rendering().format;
                    Some((format!("{name} as {format}"), Reason::Storage { message: render.fault.clone()? }))
                })),
            }
        }
        if lost == self.sinks.len() {
            // All for the same reason, as a rule: once is enough.
            return reasons.into_iter().map(|(_, reason)| reason).take(1).collect();
        }
        let lacks = |(output, reason): (String, Reason)| Reason::Output { output, message: reason.to_string() };
        reasons.into_iter().map(lacks).collect()
    }
}

impl Sink {
    fn new(file: FileId, sealer: Option<Sealer>) -> Self {
        Self { file, sealer, fault: None, in_memory: None, renders: Vec::new() }
    }

    /// Pages as they go into the file.
    fn sealed(&mut self, pages: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let Some(sealer) = &mut self.sealer else { return Ok(pages) };
        let mut segments = Vec::with_capacity(pages.len() + 1024);
        sealer.seal(&pages, &mut segments)?;
        Ok(segments)
    }
}

impl RenderSink {
    fn new(file: FileId, render: Render) -> Self {
        Self { file, render, patches: Vec::new(), fault: None, in_memory: None }
    }

    /// Pages in its format; nothing any more once it failed.
    fn push(&mut self, pages: &[u8]) -> Vec<u8> {
        if self.fault.is_some() {
            return Vec::new();
        }
        let pushed = self.render.push(pages);
        self.take(pushed)
    }

    /// What is left of a stream that came to no end.
    fn end(&mut self) -> Vec<u8> {
        if self.fault.is_some() {
            return Vec::new();
        }
        let ended = self.render.finish();
        self.take(ended)
    }

    fn take(&mut self, done: Result<Vec<Patch>, EncodeError>) -> Vec<u8> {
        match done {
            Ok(patches) => self.patches.extend(patches),
            Err(error) => {
                let format = self.render.rendering().format;
                tracing::error!(%error, %format, "a file cannot go on");
                self.fault = Some(error.to_string());
            }
        }
        let mut bytes = Vec::new();
        self.render.take_bytes(&mut bytes);
        bytes
    }
}

fn entry(file: &FinishedFile, format: &str, origin: &Origin, end: MediaTime, recipients: &Recipients) -> OutputEntry {
    let Contents { kind, participant, left, right } = origin.contents.clone();
    OutputEntry {
        kind,
        participant,
        left,
        right,
        file: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        format: format.into(),
        encryption: EncryptionEntry::of(recipients),
        duration_seconds: end.as_secs_f64(),
        bytes: file.bytes,
        sha256: file.sha256.clone(),
        streams: origin.streams.clone(),
    }
}

/// The way of a recording's files into its store.
fn upload(
    files: &RecordingFiles,
    store: Store,
    recording_id: String,
    key: String,
    config: UploadConfig,
    steps: Vec<UploadStep>,
) -> Upload {
    files.keep_in_memory(true);
    let journal = files.journal().clone();
    Upload::start(store, UploadPlan { recording_id, key, config, steps }, move |step| {
        journal.append(&Entry::Upload(step));
    })
}

/// Notes what the disk refused that a store has.
fn note_refusal<T>(written: Result<T, FileError>) {
    if let Err(error) = written {
        tracing::warn!(%error, "the store has what the disk refused");
    }
}

/// An output as it is known while its file still grows.
pub fn entry_so_far(origin: &Origin, at: MediaTime, recipients: &Recipients) -> OutputEntry {
    let (path, sha256) = Default::default();
    entry(&FinishedFile { path, bytes: 0, sha256, cut_to: None, in_memory: false }, OGG, origin, at, recipients)
}

/// The last part of a path, key or location.
fn name_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
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
