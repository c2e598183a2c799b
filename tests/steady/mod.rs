//! When a recorder, or whoever takes its bytes, keeps up.

use std::time::Duration;

use callreel::clock;

/// Waits until a length has grown three times in a row with no more than `within` between: whoever writes there keeps up.
pub async fn grows_steadily(within: Duration, length: impl AsyncFn() -> u64) {
    let begun = clock::now();
    let (mut last, mut since, mut times) = (length().await, begun, 0);
    while times < 3 {
        assert!(clock::now() - begun < Duration::from_secs(60), "it never grows steadily");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let (length, now) = (length().await, clock::now());
        if length > last {
            times = if now - since <= within { times + 1 } else { 0 };
            (last, since) = (length, now);
        }
    }
}
