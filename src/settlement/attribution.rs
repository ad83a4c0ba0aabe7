//! Whose is a workflow that no log entry told us of? Pure.
//!
//! Its submission must be among those that were open when FlowMesh took it. When all of these are one principal's it is
//! theirs; otherwise it is held for the operator, because a wrong guess is somebody else's money.

use jiff::{SignedDuration, Timestamp};

use crate::ledger::{Attribution, OpenSubmission};

/// How far FlowMesh's clock may be from ours.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);
/// How long after Check FlowMesh may take a submission of whose end nothing was heard: uploads can be slow.
pub const LONGEST_SUBMISSION: SignedDuration = SignedDuration::from_mins(15);

/// Decides from what the ledger knows. `born_at` is the ledger's.
#[must_use]
pub fn decide(submitted_at: Timestamp, open: &[OpenSubmission], born_at: Timestamp) -> Attribution {
    let mut candidates: Vec<&OpenSubmission> =
        open.iter().filter(|submission| was_open_at(submission, submitted_at)).collect();
    // The one that began last before FlowMesh took it, if none of them did the earliest: only one principal is left
    // below, so this picks which of their own submissions it was.
    candidates.sort_by_key(|submission| {
        (submission.opened_at > submitted_at, (submitted_at.duration_since(submission.opened_at)).abs())
    });
    match candidates.as_slice() {
        [] if submitted_at < born_at => Attribution::Ignored,
        [] => Attribution::Held { reason: "no submission was open at its time".to_owned() },
        [best, rest @ ..] if rest.iter().all(|other| other.principal_id == best.principal_id) => {
            Attribution::Matched { submission_id: best.submission_id.clone(), principal_id: best.principal_id.clone() }
        }
        several => {
            let mut principals: Vec<&str> = several.iter().map(|candidate| candidate.principal_id.as_str()).collect();
            principals.sort_unstable();
            principals.dedup();
            Attribution::Held {
                reason: format!("submissions of several were open at its time: {}", principals.join(", ")),
            }
        }
    }
}

fn was_open_at(submission: &OpenSubmission, at: Timestamp) -> bool {
    let end = submission.ended_at.unwrap_or(submission.opened_at + LONGEST_SUBMISSION);
    submission.opened_at - CLOCK_SKEW <= at && at <= end + CLOCK_SKEW
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("valid")
    }

    fn open(id: &str, principal: &str, opened: i64, ended: Option<i64>) -> OpenSubmission {
        OpenSubmission {
            submission_id: id.into(),
            principal_id: principal.into(),
            opened_at: at(opened),
            ended_at: ended.map(at),
        }
    }

    fn matched(id: &str, principal: &str) -> Attribution {
        Attribution::Matched { submission_id: id.into(), principal_id: principal.into() }
    }

    #[test]
    fn the_only_open_submission_is_the_one() {
        assert_eq!(decide(at(10), &[open("s", "alice", 9, None)], at(0)), matched("s", "alice"));
    }

    #[test]
    fn of_several_of_one_principal_the_latest_before_it_is_taken() {
        let open = [open("s1", "alice", 1, None), open("s2", "alice", 9, None), open("s3", "alice", 11, None)];
        assert_eq!(decide(at(10), &open, at(0)), matched("s2", "alice"));
    }

    #[test]
    fn two_principals_at_once_are_held_and_named() {
        let open = [open("s1", "bob", 9, None), open("s2", "alice", 9, Some(12))];
        let Attribution::Held { reason } = decide(at(10), &open, at(0)) else { panic!("not held") };
        assert!(reason.ends_with("alice, bob"), "{reason}");
    }

    #[test]
    fn a_submission_that_had_ended_or_not_begun_is_no_candidate() {
        let open = [open("s1", "bob", 0, Some(4)), open("s2", "carol", 16, None), open("s3", "alice", 9, Some(10))];
        assert_eq!(decide(at(10), &open, at(0)), matched("s3", "alice"));
    }

    #[test]
    fn a_workflow_older_than_the_ledger_is_not_ours_and_a_younger_one_of_nobody_is_held() {
        assert_eq!(decide(at(-1), &[], at(0)), Attribution::Ignored);
        assert!(matches!(decide(at(1), &[], at(0)), Attribution::Held { .. }));
    }

    #[test]
    fn a_submission_in_the_first_seconds_of_the_ledger_is_ours_even_with_clocks_apart() {
        assert_eq!(decide(at(-2), &[open("s", "alice", 1, None)], at(0)), matched("s", "alice"));
    }
}
