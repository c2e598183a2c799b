//! The task of a recording that goes on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::lease::{self, options};
use super::state::{FileState, LiveState, STATE_VERSION, Tail};
use super::transfer::{Source, Transfer, known, reserved};
use super::{UploadConfig, UploadError};
use crate::clock;
use crate::hex;
use crate::spool::{FileId, SpoolFile, Upload as Step, split_name};
use crate::store::{Store, StoreError};

/// How soon a store is tried again at the end of a recording, at first and at last.
const FIRST: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(5);

/// How often the lease is renewed where no tails are written.
const RENEWED: Duration = Duration::from_secs(5);

/// How long a disk may take before a round goes on without what it does not have.
const PROMPT: Duration = Duration::from_millis(500);

/// How far around the end of the parts a page's beginning is looked for: more than a page or a sealed segment can have.
const PAGE: u64 = 96 * 1024;

/// What a recording is to be in its store.
#[derive(Clone, Debug)]
pub struct UploadPlan {
    /// Its id.
    pub recording_id: String,
    /// The key of its main object, with the ending.
    pub key: String,
    /// How it goes up.
    pub config: UploadConfig,
    /// What another process did on its way, in order, where this one goes on with it.
    pub steps: Vec<Step>,
}

/// How far an upload is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadStatus {
    /// Bytes of all files that the store has, whether in parts or beside them.
    pub bytes: u64,
    /// What keeps it from going on; none while it goes on.
    pub fault: Option<String>,
}

/// A file that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// Which.
    pub file: FileId,
    /// Its key.
    pub key: String,
    /// How people call it: `s3://bucket/key`.
    pub location: String,
}

/// A recording on its way into a store.
#[derive(Debug)]
pub struct Upload {
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<UploadStatus>,
    task: JoinHandle<()>,
}

/// Makes an upload hurry.
#[derive(Clone, Debug)]
pub struct Spur(mpsc::WeakUnboundedSender<Command>);

impl Spur {
    /// From now on the store has this long for what is left, however long the configuration says.
    pub fn hurry(&self, within: Duration) {
        if let Some(commands) = self.0.upgrade() {
            // An upload that has ended needs no spur.
            let _ = commands.send(Command::Hurry(within));
        }
    }
}

#[derive(Debug)]
enum Command {
    Add(SpoolFile),
    SoFar(Value),
    Hurry(Duration),
    Reserve(oneshot::Sender<Result<String, UploadError>>),
    Complete(Vec<FileId>, oneshot::Sender<Result<Vec<Uploaded>, UploadError>>),
    Beside { suffix: String, ext: String, bytes: Bytes, done: oneshot::Sender<Result<String, UploadError>> },
    Close(oneshot::Sender<()>),
}

impl Upload {
    /// Starts the way of a recording into `store`, as a task of the current runtime. Each step is told to `note` first.
    pub fn start(store: Store, plan: UploadPlan, note: impl Fn(Step) + Send + Sync + 'static) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (told, status) = watch::channel(UploadStatus::default());
        let (stem, ext) = split_name(&plan.key);
        let named = reserved(&plan.steps);
        let is_named = named.is_some();
        let (stem, owner) = named.unwrap_or_else(|| (stem.to_owned(), ulid::Ulid::new().to_string()));
        let every = plan.config.tail_every.unwrap_or(RENEWED).max(FIRST);
        let state = LiveState {
            version: STATE_VERSION,
            recording_id: plan.recording_id,
            owner,
            every_seconds: every.as_secs_f64().ceil() as u64,
            stem,
            files: Vec::new(),
            so_far: None,
            done: false,
        };
        let live = Live {
            every,
            transfer: Transfer::new(store, state, note),
            ext: ext.to_owned(),
            sources: Vec::new(),
            steps: plan.steps,
            is_named,
            reserved: false,
            tails: plan.config.tail_every.is_some(),
            stale: Vec::new(),
            patience: plan.config.patience,
            give_up_at: None,
            lost: None,
            status: told,
        };
        let task = tokio::spawn(live.run(inbox));
        Self { commands, status, task }
    }

    /// Takes a file that grows.
    pub fn add(&self, file: SpoolFile) {
        self.send(Command::Add(file));
    }

    /// Takes the manifest as it would be now.
    pub fn so_far(&self, manifest: Value) {
        self.send(Command::SoFar(manifest));
    }

    /// Who can say that it has to hurry; as long as it goes on.
    pub fn spur(&self) -> Spur {
        Spur(self.commands.downgrade())
    }

    /// How far it is.
    pub fn status(&self) -> UploadStatus {
        self.status.borrow().clone()
    }

    /// Takes the recording's name in the store, if that has not happened yet. Gives what its objects' keys begin with. Tries once.
    ///
    /// # Errors
    /// What the store says.
    pub async fn reserve(&self) -> Result<String, UploadError> {
        self.ask(Command::Reserve).await
    }

    /// Makes the objects of these files, which are complete, appear in the store. Waits for a store that is down as long as the
    /// configuration says, counted from the first such call.
    ///
    /// # Errors
    /// Why not all of them are there; what is done stays done.
    pub async fn complete(&self, files: Vec<FileId>) -> Result<Vec<Uploaded>, UploadError> {
        self.ask(|done| Command::Complete(files, done)).await
    }

    /// Writes an object that tells about the recording, named by the recording's name, `suffix` and `ext`. Gives where it
    /// is.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn put_beside(&self, suffix: &str, ext: &str, bytes: Bytes) -> Result<String, UploadError> {
        let (suffix, ext) = (suffix.to_owned(), ext.to_owned());
        self.ask(|done| Command::Beside { suffix, ext, bytes, done }).await
    }

    /// Everything is in its place: removes what only served to get it there.
    pub async fn close(self) {
        let (done, answer) = oneshot::channel();
        self.send(Command::Close(done));
        // A task that is gone has nothing to remove.
        let _ = answer.await;
        let Self { commands, task, .. } = self;
        drop(commands);
        let _ = task.await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, UploadError>>) -> Command,
    ) -> Result<T, UploadError> {
        let (done, answer) = oneshot::channel();
        self.send(command(done));
        let gone = || UploadError::Spool(std::io::Error::other("the upload ended without an answer"));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn send(&self, command: Command) {
        // Whoever waits for an answer learns that the task is gone.
        let _ = self.commands.send(command);
    }
}

struct Live {
    transfer: Transfer,
    ext: String,
    /// Where the bytes of the state's files come from.
    sources: Vec<Source>,
    every: Duration,
    /// What another process did before.
    steps: Vec<Step>,
    /// Whether that one took the name.
    is_named: bool,
    reserved: bool,
    /// Whether tail objects are written.
    tails: bool,
    /// Keys of tails that nobody needs any more.
    stale: Vec<String>,
    patience: Duration,
    give_up_at: Option<Instant>,
    /// Who has taken the recording over.
    lost: Option<String>,
    status: watch::Sender<UploadStatus>,
}

impl Live {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut due = clock::now();
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = tokio::time::sleep_until(due.into()), if self.give_up_at.is_none() && self.lost.is_none() => {
                    let (told, came) = self.round_until_asked(&mut inbox).await;
                    if let Some(told) = told {
                        self.tell(&told);
                    }
                    for command in came {
                        self.obey(command).await;
                    }
                    due = clock::beat(clock::now(), self.every);
                }
            }
        }
    }

    /// Goes its round, and gives that up where somebody asks for the end: it can be begun anew at any point. Gives what came
    /// meanwhile.
    async fn round_until_asked(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> (Option<Result<(), UploadError>>, Vec<Command>) {
        let mut came = Vec::new();
        let round = self.round();
        tokio::pin!(round);
        loop {
            tokio::select! {
                told = &mut round => return (Some(told), came),
                Some(command) = inbox.recv() => {
                    let can_wait = matches!(command, Command::Add(_) | Command::SoFar(_) | Command::Hurry(_));
                    came.push(command);
                    if !can_wait {
                        return (None, came);
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Add(file) => self.add(file),
            Command::Reserve(done) => {
                let reserved = match self.check_owner() {
                    Ok(()) => self.reserve().await,
                    Err(lost) => Err(lost),
                };
                self.tell(&reserved);
                // Nobody waits any more.
                let _ = done.send(reserved.map(|()| self.transfer.state.stem.clone()));
            }
            Command::Hurry(within) => {
                self.patience = self.patience.min(within);
                self.give_up_at = self.give_up_at.map(|at| at.min(clock::now() + within));
            }
            Command::SoFar(manifest) => self.transfer.state.so_far = Some(manifest),
            Command::Complete(files, done) => {
                let mut pause = FIRST;
                let completed = loop {
                    let tried = tokio::time::timeout_at(self.deadline(), self.complete(&files)).await;
                    let tried = tried.unwrap_or(Err(UploadError::TooSlow));
                    if let Some(completed) = self.settle(tried, &mut pause).await {
                        break completed;
                    }
                };
                let _ = done.send(completed);
            }
            Command::Beside { suffix, ext, bytes, done } => {
                let mut pause = FIRST;
                let put = loop {
                    let deadline = self.deadline();
                    let put = self.put_beside(&suffix, &ext, bytes.clone());
                    let tried = tokio::time::timeout_at(deadline, put).await;
                    let tried = tried.unwrap_or(Err(UploadError::TooSlow));
                    if let Some(put) = self.settle(tried, &mut pause).await {
                        break put;
                    }
                };
                let _ = done.send(put);
            }
            Command::Close(done) => {
                if tokio::time::timeout_at(self.deadline() + AGAIN, self.clear()).await.is_err() {
                    tracing::warn!("the store is too slow to let go of what served the upload, which stays");
                }
                // Nobody waits any more.
                let _ = done.send(());
            }
        }
    }

    /// When the store has had its time.
    fn deadline(&mut self) -> tokio::time::Instant {
        (*self.give_up_at.get_or_insert_with(|| clock::now() + self.patience)).into()
    }

    fn add(&mut self, file: SpoolFile) {
        let (id, what) = (file.id(), file.what().clone());
        let key = key_of(&self.transfer.state, &what.suffix, &what.ext);
        let is_rendered = what.rendered.is_some();
        let mut state = FileState::new(id, what, key);
        known(id, &self.steps, &mut state);
        // What is rendered was made again. A disk that failed may have lost what memory had uploaded: then what comes is other
        // bytes than those in the parts.
        if is_rendered || state.confirmed() > file.progress().borrow().synced {
            if let Some(upload) = state.upload.take() {
                let (store, key) = (self.transfer.store.clone(), state.key.clone());
                tokio::spawn(async move {
                    if let Err(error) = store.abort(&key, &upload).await {
                        tracing::warn!(%error, "parts of an upload are left behind");
                    }
                });
            }
            state.parts.clear();
        }
        self.transfer.state.files.push(state);
        self.sources.push(Source::Growing(file));
    }

    /// What an attempt at the end of the recording came to; none where it is worth another, after a pause.
    async fn settle<T: Send>(
        &mut self,
        tried: Result<T, UploadError>,
        pause: &mut Duration,
    ) -> Option<Result<T, UploadError>> {
        let give_up_at = self.deadline().into_std();
        self.tell(&tried);
        match tried {
            Err(error) if error.is_retryable() && clock::now() + *pause < give_up_at => {
                tracing::warn!(%error, "the store is tried again");
                tokio::time::sleep(*pause).await;
                *pause = (2 * *pause).min(AGAIN);
                None
            }
            tried => Some(tried),
        }
    }

    async fn put_beside(&mut self, suffix: &str, ext: &str, bytes: Bytes) -> Result<String, UploadError> {
        self.check_owner()?;
        self.reserve().await?;
        let key = format!("{}{suffix}.{ext}", self.transfer.state.stem);
        self.transfer.put_beside(&key, ext, bytes).await?;
        Ok(self.transfer.store.location(&key))
    }

    fn check_owner(&self) -> Result<(), UploadError> {
        self.lost.clone().map_or(Ok(()), |owner| Err(UploadError::Lost(owner)))
    }

    /// Takes up what has come since the last time.
    async fn round(&mut self) -> Result<(), UploadError> {
        self.reserve().await?;
        self.commit().await;
        for n in 0..self.sources.len() {
            let (store, known) = (self.transfer.store.clone(), self.transfer.state.clone());
            lease::keep(&store, &known, self.put_file(n)).await?;
        }
        lease::renew(&self.transfer.store, &self.transfer.state).await?;
        self.sweep().await
    }

    /// Takes up what has come of one file.
    async fn put_file(&mut self, n: usize) -> Result<(), UploadError> {
        let synced = self.synced(n);
        self.read_head(n).await?;
        self.transfer.put_parts(n, &self.sources[n], synced, false).await?;
        self.put_tail(n, synced).await
    }

    /// Has the disk take what waits for it, unless it is slow: then what it has by now must do.
    async fn commit(&self) {
        let waits = |source: &Source| match source {
            Source::Growing(file) => {
                let progress = file.progress().borrow().clone();
                if progress.synced < progress.written { file.commit() } else { None }
            }
            Source::File(_) | Source::Rest { .. } => None,
        };
        let commits: Vec<_> = self.sources.iter().filter_map(waits).collect();
        let all = async {
            for commit in commits {
                // A writer that is gone shows where the recording is finished.
                let _ = commit.await;
            }
        };
        let _ = tokio::time::timeout(PROMPT, all).await;
    }

    fn synced(&self, n: usize) -> u64 {
        match &self.sources[n] {
            Source::Growing(file) => file.progress().borrow().synced,
            Source::File(_) | Source::Rest { .. } => 0,
        }
    }

    /// Takes the recording's name, once.
    async fn reserve(&mut self) -> Result<(), UploadError> {
        if self.reserved {
            return Ok(());
        }
        let state = &mut self.transfer.state;
        if self.is_named {
            lease::check(&self.transfer.store, state).await?;
        } else {
            lease::reserve(&self.transfer.store, state, &self.ext).await?;
            for n in 0..state.files.len() {
                let FileState { what, .. } = state.files[n].clone();
                state.files[n].key = String::new();
                state.files[n].key = key_of(state, &what.suffix, &what.ext);
            }
        }
        let (stem, owner) = (state.stem.clone(), state.owner.clone());
        tracing::info!(to = self.transfer.store.location(&format!("{stem}.{}", self.ext)), "will be uploaded");
        self.transfer.note(Step::Reserved { stem, owner });
        self.reserved = true;
        if self.tails {
            self.probe_deleting().await;
        }
        Ok(())
    }

    /// Tails are worth it only where they can be deleted.
    async fn probe_deleting(&mut self) {
        let key = format!("{}probe", LiveState::prefix_of(&self.transfer.state.stem));
        let store = &self.transfer.store;
        let probed = match store.put(&key, Bytes::new(), &options(false)).await {
            Ok(_) => store.delete(&[key]).await,
            Err(error) => Err(error),
        };
        match probed {
            Err(StoreError::Refused(why)) => {
                self.tails = false;
                tracing::warn!(
                    %why,
                    "these credentials may not delete: what is in no full part stays on this machine until the end, and the \
                     state object stays for good"
                );
            }
            Err(error) => tracing::debug!(%error, "whether deleting is allowed shows later"),
            Ok(()) => {}
        }
    }

    async fn read_head(&mut self, n: usize) -> Result<(), UploadError> {
        let FileState { head, what, .. } = &self.transfer.state.files[n];
        if !head.is_empty() || what.stream().is_none() {
            return Ok(());
        }
        let end = self.synced(n).min(PAGE);
        let bytes = self.sources[n].read(0..end).await.map_err(UploadError::Spool)?;
        let Some(stream) = self.transfer.state.files[n].what.stream() else { return Ok(()) };
        let mut units = stream.units();
        units.push(&bytes);
        if let Some(unit) = units.next_unit() {
            let head = &bytes[..usize::try_from(unit.end).unwrap_or(0)];
            self.transfer.state.files[n].head = hex::encode(head);
        }
        Ok(())
    }

    /// Writes what is in no part yet and in no tail, and drops tails that parts have taken over.
    async fn put_tail(&mut self, n: usize, synced: u64) -> Result<(), UploadError> {
        if self.transfer.state.files[n].what.rendered.is_some() {
            // Who has the Ogg stream renders it again.
            return Ok(());
        }
        let confirmed = self.transfer.state.files[n].confirmed();
        let state = &mut self.transfer.state;
        let (gone, kept): (Vec<Tail>, Vec<Tail>) =
            state.files[n].tails.iter().partition(|tail| tail.end() <= confirmed);
        let dropped_to = gone.last().map_or(0, |tail| tail.end());
        let file = state.files[n].file;
        self.stale.extend(gone.into_iter().map(|tail| state.tail_key(file, tail)));
        state.files[n].tails = kept;
        if !self.tails {
            return Ok(());
        }
        let offset = match self.transfer.state.files[n].tails.last() {
            Some(tail) => tail.end(),
            None if dropped_to == confirmed => confirmed,
            None => self.page_before(n, confirmed, synced).await?,
        };
        if synced <= offset {
            return Ok(());
        }
        let tail = Tail { offset, len: synced - offset };
        let bytes = self.sources[n].read(offset..synced).await.map_err(UploadError::Spool)?;
        let key = self.transfer.state.tail_key(file, tail);
        self.transfer.store.put(&key, bytes, &options(false)).await?;
        self.transfer.note(Step::TailPut { file, offset, len: tail.len, key });
        self.transfer.state.files[n].tails.push(tail);
        Ok(())
    }

    /// Where the page or segment begins that the parts end in.
    async fn page_before(&self, n: usize, confirmed: u64, synced: u64) -> Result<u64, UploadError> {
        let from = confirmed.saturating_sub(PAGE);
        let bytes = self.sources[n].read(from..synced.min(confirmed + PAGE)).await.map_err(UploadError::Spool)?;
        let Some(stream) = self.transfer.state.files[n].what.stream() else { return Ok(confirmed) };
        let mut units = stream.units();
        units.push(&bytes);
        let mut begins = from;
        while let Some(unit) = units.next_unit() {
            if from + unit.offset > confirmed {
                break;
            }
            begins = from + unit.offset;
            if from + unit.end == confirmed {
                begins = confirmed;
            }
        }
        Ok(begins)
    }

    /// Deletes tails that nobody needs any more. The state no longer names them.
    async fn sweep(&mut self) -> Result<(), UploadError> {
        if self.stale.is_empty() {
            return Ok(());
        }
        match self.transfer.store.delete(&self.stale).await {
            Ok(()) => self.stale.clear(),
            Err(StoreError::Refused(why)) => {
                tracing::warn!(%why, "tail objects cannot be deleted, so no more are written");
                self.tails = false;
                self.stale.clear();
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn complete(&mut self, files: &[FileId]) -> Result<Vec<Uploaded>, UploadError> {
        self.check_owner()?;
        self.reserve().await?;
        // Who has lost it must not finish it.
        lease::renew(&self.transfer.store, &self.transfer.state).await?;
        let mut uploaded = Vec::new();
        for n in 0..self.sources.len() {
            let Source::Growing(spooled) = &self.sources[n] else { continue };
            if !files.contains(&spooled.id()) {
                continue;
            }
            let len = spooled.progress().borrow().synced;
            let (store, known) = (self.transfer.store.clone(), self.transfer.state.clone());
            lease::keep(&store, &known, self.transfer.complete(n, &self.sources[n], len)).await?;
            // Whoever has to go on here knows that the object is whole.
            lease::renew(&store, &self.transfer.state).await?;
            let FileState { file, key, .. } = &self.transfer.state.files[n];
            uploaded.push(Uploaded { file: *file, key: key.clone(), location: self.transfer.store.location(key) });
        }
        Ok(uploaded)
    }

    async fn clear(&mut self) {
        if let Err(error) = clear(&self.transfer.store, &mut self.transfer.state).await {
            tracing::warn!(%error, "what served the upload stays in the store");
        }
    }

    fn tell<T>(&mut self, done: &Result<T, UploadError>) {
        if let Err(UploadError::Lost(owner)) = done {
            self.lost = Some(owner.clone());
        }
        let fault = done.as_ref().err().map(ToString::to_string);
        let counts = |file: &&FileState| !file.what.is_source_only;
        let files = self.transfer.state.files.iter().filter(counts);
        let bytes = files.map(|file| file.stored.unwrap_or_else(|| file.safe())).sum();
        let news = UploadStatus { bytes, fault };
        self.status.send_if_modified(|status| {
            if news.fault != status.fault {
                match &news.fault {
                    Some(why) => tracing::warn!(%why, "the upload does not get on; the spool keeps what comes"),
                    None => tracing::info!("the upload goes on"),
                }
            }
            let changed = *status != news;
            *status = news.clone();
            changed
        });
    }
}

/// A key for a file that none of the others has.
fn key_of(state: &LiveState, suffix: &str, ext: &str) -> String {
    let keys: BTreeSet<&str> = state.files.iter().map(|file| file.key.as_str()).collect();
    let mut number = 0;
    loop {
        let counted = if number == 0 { String::new() } else { format!("-{number}") };
        let key = format!("{}{suffix}{counted}.{ext}", state.stem);
        if !keys.contains(key.as_str()) {
            return key;
        }
        number += 1;
    }
}

/// Removes everything that only served to get a recording into its place. The state says first that it is done, so that
/// nobody begins again where not everything could be removed, or nothing may be.
pub(super) async fn clear(store: &Store, state: &mut LiveState) -> Result<(), UploadError> {
    state.done = true;
    store.put(&state.key(), state.write(), &options(false)).await?;
    for FileState { key, upload, stored, .. } in &state.files {
        if let (Some(upload), None) = (upload, stored)
            && let Err(error) = store.abort(key, upload).await
        {
            tracing::warn!(%error, "parts of an upload are left behind");
        }
    }
    let left = store.list(&LiveState::prefix_of(&state.stem)).await?;
    let mut keys: Vec<String> = left.into_iter().map(|object| object.key).collect();
    // The state goes last.
    keys.retain(|key| *key != state.key());
    keys.push(state.key());
    match store.delete(&keys).await {
        Ok(()) | Err(StoreError::Refused(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
