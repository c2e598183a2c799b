use std::future::Future;
use std::time::Duration;

use super::config::RetryConfig;
use super::error::Fault;

/// Bytes a second that an attempt is given time for.
const SLOWEST: u64 = 64 * 1_024;

/// Runs `attempt` until it succeeds, fails for good, or the retries are used up. `bytes` is what one attempt sends or gets.
pub(super) async fn retrying<T, F>(config: &RetryConfig, bytes: u64, mut attempt: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let limit = config.attempt_timeout.saturating_add(Duration::from_secs(bytes / SLOWEST));
    let mut retry = 0;
    loop {
        let result = match tokio::time::timeout(limit, attempt()).await {
            Ok(result) => result,
            Err(_) => Err(Fault::unanswered(format!("no answer within {} s", limit.as_secs_f32()))),
        };
        let fault = match result {
            Ok(value) => return Ok(value),
            Err(fault) => fault,
        };
        if !fault.retry_soon() || retry == config.max_retries {
            return Err(fault);
        }
        let wait = wait_bound(config, retry).mul_f64(fastrand::f64());
        tracing::debug!(reason = %fault.reason, retry, wait_ms = wait.as_millis(), "the store is asked again");
        tokio::time::sleep(wait).await;
        retry += 1;
    }
}

/// The longest wait before retry number `retry`, from 0.
fn wait_bound(config: &RetryConfig, retry: u32) -> Duration {
    config.min_retry_delay.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX)).min(config.max_retry_delay)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::error::FaultKind;

    fn config() -> RetryConfig {
        RetryConfig {
            max_retries: 2,
            min_retry_delay: Duration::from_millis(1),
            max_retry_delay: Duration::from_millis(2),
            attempt_timeout: Duration::from_millis(20),
        }
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_no_more_often_than_asked() {
        let attempts = Cell::new(0);
        let tried = retrying::<(), _>(&config(), 0, || {
            attempts.set(attempts.get() + 1);
            async { Err(Fault::new(FaultKind::Throttled, "503")) }
        })
        .await;
        assert_eq!(attempts.get(), 3);
        assert_eq!(tried.unwrap_err().kind, FaultKind::Throttled);
    }

    #[tokio::test]
    async fn what_cannot_pass_is_not_tried_again() {
        let attempts = Cell::new(0);
        let tried = retrying::<(), _>(&config(), 0, || {
            attempts.set(attempts.get() + 1);
            async { Err(Fault::new(FaultKind::Refused, "403")) }
        })
        .await;
        assert_eq!((attempts.get(), tried.unwrap_err().kind), (1, FaultKind::Refused));
    }

    #[tokio::test]
    async fn a_black_hole_ends() {
        let attempts = Cell::new(0);
        let tried = retrying(&config(), 0, || {
            attempts.set(attempts.get() + 1);
            let first = attempts.get() == 1;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                Ok(7)
            }
        })
        .await;
        assert_eq!((tried.unwrap(), attempts.get()), (7, 2));
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let bounds = [0, 1, 3, 4, 40].map(|retry| wait_bound(&RetryConfig::default(), retry).as_millis());
        assert_eq!(bounds, [500, 1_000, 4_000, 5_000, 5_000]);
    }
}
