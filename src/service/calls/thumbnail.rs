//! The small picture of a recording, under the name that deployed systems look for.

use crate::analysis::Waveform;
use crate::catalog::thumbnail_key;
use crate::config::PictureKind;
use crate::draw::{DrawError, PictureSize, Style, waveform_png};
use crate::recording::{Manifest, Names, SidecarKind, Sound, scene};
use crate::store::{Attributes, PutOptions, StoreError};

use super::Shared;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
enum NoPicture {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Draw(#[from] DrawError),
    #[error("the waveform is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// Draws a recording and puts that into the store. Gives the key; none where no picture is wanted, or it fails.
pub(super) async fn put(shared: &Shared, manifest: &Manifest, manifest_key: &str) -> Option<String> {
    let is_wanted = shared.config.base.pictures.contains(&PictureKind::Waveform);
    if !is_wanted || manifest.room.sid.is_empty() || !manifest.outputs.iter().any(|output| output.encryption.is_none())
    {
        return None;
    }
    let key = thumbnail_key(&manifest.room.sid, &manifest.recording_id);
    match draw_and_put(shared, manifest, manifest_key, &key).await {
        Ok(()) => Some(key),
        Err(error) => {
            tracing::warn!(%error, id = manifest.recording_id, "there is no picture of a recording");
            None
        }
    }
}

async fn draw_and_put(shared: &Shared, manifest: &Manifest, manifest_key: &str, key: &str) -> Result<(), NoPicture> {
    let peaks = manifest.sidecars.iter().find(|sidecar| sidecar.kind == SidecarKind::Peaks);
    let mix: Option<Waveform> = match peaks {
        Some(peaks) => {
            let folder = manifest_key.rfind('/').map_or("", |at| &manifest_key[..=at]);
            let json = shared.store.get(&format!("{folder}{}", peaks.file), None).await?;
            Some(serde_json::from_slice(&json)?)
        }
        None => None,
    };
    let names = if shared.config.base.names_people { Names::Shown } else { Names::Withheld };
    let sound = Sound { mix: mix.as_ref(), ..Sound::default() };
    let style = Style { size: PictureSize::THUMBNAIL, ..Style::default() };
    let png = waveform_png(&scene(manifest, &sound, names)?, &style)?;
    let options = PutOptions { attributes: Attributes::typed("image/png"), ..PutOptions::default() };
    shared.store.put(key, png.into(), &options).await?;
    Ok(())
}
