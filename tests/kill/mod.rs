//! When to kill a recorder so that what it lacks is its own doing.

use std::path::Path;
use std::time::Duration;

use callreel::clock;

/// Longer than between two pages of which four make a second.
const PAGE: Duration = Duration::from_millis(400);

/// A look that comes this late says nothing about the looks that are missing.
const LATE: Duration = Duration::from_millis(100);

/// Waits until what is below `root` has grown page by page for so long. A recorder that gets no processor lacks what it
/// could not write meanwhile, too, which is the machine's doing.
pub async fn until_it_keeps_up(root: &Path, so_long: Duration) {
    let begun = clock::now();
    let (mut bytes, mut grown, mut looked, mut since) = (size(root), begun, begun, begun);
    while clock::now() - since < so_long {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = clock::now();
        assert!(now - begun < Duration::from_secs(120), "{} does not grow page by page", root.display());
        if now - looked > LATE || now - grown > PAGE {
            since = now;
        }
        looked = now;
        let before = std::mem::replace(&mut bytes, size(root));
        if bytes != before {
            grown = now;
        }
    }
}

fn size(root: &Path) -> u64 {
    let entries = std::fs::read_dir(root).into_iter().flatten().map(|entry| entry.unwrap().path());
    // What goes away between being seen and being asked has no size.
    entries.map(|path| if path.is_dir() { size(&path) } else { path.metadata().map_or(0, |file| file.len()) }).sum()
}
