//! When a remembered answer may serve. Pure: both clocks are passed in.
//!
//! ```text
//! age   0 ──────────────── 30 s ──────────── 60 s ──────────────── 60 s + LUMID_STALE_IF_ERROR_SECS ─►
//!       serve              serve, and ask    ask, and serve only   forget
//!                          meanwhile         when lum.id fails
//! ```
//!
//! The token's own expiry ends all of it at once. An answer ages from the moment lum.id gave it: asking again in vain
//! makes nothing younger, and a refusal takes the place of what was known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::resolved::Caller;

/// After lum.id failed for a token, it is left in peace about that one for so long while something else can serve.
const PAUSE: Duration = Duration::from_secs(2);
/// For so long after a failure a stale answer serves at once instead of making the request wait for the next one.
const TROUBLE: Duration = Duration::from_secs(10);

/// One moment, on the clock that tokens expire by and on the one that only goes forward.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall: Timestamp,
    pub steady: Instant,
}

impl Now {
    #[must_use]
    pub fn read() -> Self {
        Self { wall: Timestamp::now(), steady: Instant::now() }
    }
}

/// An active answer of lum.id's.
#[derive(Debug, Clone)]
pub struct Known {
    pub caller: Arc<Caller>,
    /// Epoch seconds; `None`: the token does not end by itself.
    pub expires_at: Option<i64>,
    /// When lum.id said so.
    pub answered: Instant,
}

impl Known {
    /// Whether the token itself has ended.
    #[must_use]
    pub fn is_over(&self, now: Now) -> bool {
        self.expires_at.is_some_and(|at| at <= now.wall.as_second())
    }
}

/// What to do with a remembered answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Serve,
    /// Serve it, and ask again in the background.
    ServeAndAsk,
    /// Ask, and serve it only when lum.id fails.
    AskFirst,
    /// It serves no more.
    Forget,
}

/// The times of the diagram above.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// How long an answer serves.
    pub trust: Duration,
    /// How much longer while lum.id fails.
    pub stale_if_error: Duration,
}

impl Policy {
    /// `failed`: when lum.id last gave no answer for this token, if it has since the known one.
    #[must_use]
    pub fn judge(&self, known: &Known, failed: Option<Instant>, now: Now) -> Use {
        let age = now.steady.saturating_duration_since(known.answered);
        let failed_within =
            |time: Duration| failed.is_some_and(|failed| now.steady.saturating_duration_since(failed) < time);
        if known.is_over(now) || age >= self.trust + self.stale_if_error {
            Use::Forget
        } else if age < self.trust / 2 || failed_within(PAUSE) {
            Use::Serve
        } else if age < self.trust || failed_within(TROUBLE) {
            Use::ServeAndAsk
        } else {
            Use::AskFirst
        }
    }

    /// How long an answer is worth remembering, never past its token's expiry.
    #[must_use]
    pub fn keep_for(&self, known: &Known, now: Now) -> Duration {
        let all = self.trust + self.stale_if_error;
        let Some(at) = known.expires_at else { return all };
        let left = at.saturating_sub(now.wall.as_second());
        all.min(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: i64 = 1_795_334_400;

    fn policy(stale: u64) -> Policy {
        Policy { trust: Duration::from_mins(1), stale_if_error: Duration::from_secs(stale) }
    }

    /// A moment so many seconds after the answer.
    fn after(start: Instant, seconds: u64) -> Now {
        let wall = Timestamp::from_second(BASE + i64::try_from(seconds).expect("small")).expect("in range");
        Now { wall, steady: start + Duration::from_secs(seconds) }
    }

    fn known(start: Instant, expires_after: Option<i64>) -> Known {
        let principal = crate::principal::Principal { id: "user-1".into(), email: None, scopes: String::new() };
        Known {
            caller: Arc::new(Caller::new(Arc::new(principal))),
            expires_at: expires_after.map(|at| BASE + at),
            answered: start,
        }
    }

    #[test]
    fn an_answer_serves_a_minute_and_is_asked_again_in_its_second_half() {
        let start = Instant::now();
        for (age, expected) in [
            (0, Use::Serve),
            (29, Use::Serve),
            (30, Use::ServeAndAsk),
            (59, Use::ServeAndAsk),
            (60, Use::Forget),
            (600, Use::Forget),
        ] {
            assert_eq!(policy(0).judge(&known(start, None), None, after(start, age)), expected, "{age} s");
        }
    }

    #[test]
    fn the_expiry_of_the_token_ends_it_whatever_its_age() {
        let start = Instant::now();
        for (expires_after, age, expected) in [
            (10, 9, Use::Serve),
            (10, 10, Use::Forget),
            (0, 0, Use::Forget),
            (-5, 0, Use::Forget),
            (50, 49, Use::ServeAndAsk),
        ] {
            let use_ = policy(300).judge(&known(start, Some(expires_after)), None, after(start, age));
            assert_eq!(use_, expected, "expiry after {expires_after} s, {age} s");
        }
    }

    #[test]
    fn a_stale_answer_waits_for_a_failure_and_then_no_request_waits_for_the_next_one() {
        let start = Instant::now();
        let judge = |age, failed: Option<u64>| {
            policy(300).judge(&known(start, None), failed.map(|at| start + Duration::from_secs(at)), after(start, age))
        };
        assert_eq!(judge(60, None), Use::AskFirst);
        assert_eq!(judge(61, Some(60)), Use::Serve);
        assert_eq!(judge(62, Some(60)), Use::ServeAndAsk);
        assert_eq!(judge(70, Some(60)), Use::AskFirst);
        assert_eq!(judge(359, Some(358)), Use::Serve);
        assert_eq!(judge(360, Some(359)), Use::Forget);
    }

    #[test]
    fn a_failed_refresh_makes_nothing_younger() {
        let start = Instant::now();
        let failed = Some(start + Duration::from_secs(59));
        assert_eq!(policy(0).judge(&known(start, None), failed, after(start, 59)), Use::Serve);
        assert_eq!(policy(0).judge(&known(start, None), failed, after(start, 60)), Use::Forget);
    }

    proptest! {
        #[test]
        fn nothing_serves_past_its_expiry_or_its_age(stale in 0u64..600, expires in prop::option::of(-100i64..1000),
                failed in prop::option::of(0u64..1000), age in 0u64..1000) {
            let start = Instant::now();
            let (policy, known, now) = (policy(stale), known(start, expires), after(start, age));
            let failed = failed.filter(|at| *at <= age).map(|at| start + Duration::from_secs(at));
            let served = policy.judge(&known, failed, now) != Use::Forget;
            prop_assert_eq!(served, age < 60 + stale && expires.is_none_or(|at| at > i64::try_from(age).expect("small")));
            let kept = policy.keep_for(&known, after(start, 0));
            prop_assert!(kept <= Duration::from_secs(60 + stale));
            prop_assert!(!served || Duration::from_secs(age) < kept, "what serves is remembered");
        }
    }
}
