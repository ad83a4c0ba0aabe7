//! Waiting for something to become true.

use std::{fmt::Display, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(25);

/// Looks every 25 ms until `look` gives something, and says what it waited for when that takes longer
/// than `limit`. A look that hangs is cut off at the limit too.
///
/// # Errors
/// When `limit` has passed.
pub async fn wait_for<T>(what: impl Display, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let found = tokio::time::timeout_at(deadline, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
    });
    match found.await {
        Ok(found) => Ok(found),
        Err(_) => bail!("waited {limit:?} in vain for {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_true_in_time_is_returned() {
        let mut looks = 0;
        let found = wait_for("the third look", Duration::from_secs(5), async || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_wait_in_vain_says_what_it_waited_for_even_when_a_look_hangs() {
        let limit = Duration::from_millis(50);
        let never = wait_for("a miracle", limit, async || None::<()>).await.unwrap_err();
        assert_eq!(never.to_string(), "waited 50ms in vain for a miracle");
        let hangs = wait_for(format!("answer {}", 7), limit, async || std::future::pending::<Option<()>>().await);
        assert_eq!(hangs.await.unwrap_err().to_string(), "waited 50ms in vain for answer 7");
    }
}
