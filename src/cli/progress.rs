//! The line on a terminal that shows a recording going on.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::recording::{RecordingHandle, State, Status};

/// How wide the level meter is, in characters.
const METER: usize = 20;

/// The meter's left end, in dBFS.
const FLOOR_DBFS: f32 = -60.0;

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);

/// Whether there is a terminal to draw on.
pub fn wanted() -> bool {
    io::stderr().is_terminal()
}

/// Draws until the recording is over, then clears the line.
pub async fn show(handle: RecordingHandle) {
    let mut clock = tokio::time::interval(EVERY);
    loop {
        clock.tick().await;
        let status = handle.status();
        if status.result.is_some() {
            break;
        }
        // A terminal that is gone is no reason to stop recording.
        let _ = write!(io::stderr(), "\r\x1b[2K{}", line(&status));
    }
    let _ = write!(io::stderr(), "\r\x1b[2K");
}

fn line(status: &Status) -> String {
    let seconds = status.elapsed.as_secs();
    let state = match status.state {
        State::Starting => "joining",
        State::Active => "● rec",
        State::Paused => "paused",
        State::Stopping => "finishing",
        State::Ready => "ready",
        State::Failed => "failed",
    };
    format!(
        "{state} {:02}:{:02}:{:02}  {} in the room  [{}]  {:.1} kB{}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        status.participants,
        meter(status.peak_dbfs),
        status.bytes as f64 / 1000.0,
        status.reasons.last().map(|reason| format!("  ! {reason}")).unwrap_or_default(),
    )
}

fn meter(dbfs: f32) -> String {
    let share = ((dbfs - FLOOR_DBFS) / -FLOOR_DBFS).clamp(0.0, 1.0);
    let filled = (share * METER as f32).round() as usize;
    format!("{}{}", "█".repeat(filled), "·".repeat(METER - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_is_empty_in_silence_and_full_at_full_scale() {
        assert_eq!(meter(f32::NEG_INFINITY), "·".repeat(METER));
        assert_eq!(meter(0.0), "█".repeat(METER));
        assert_eq!(meter(-30.0), format!("{}{}", "█".repeat(10), "·".repeat(10)));
    }
}
