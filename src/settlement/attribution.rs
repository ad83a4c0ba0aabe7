//! Whose is a workflow that no log entry told us of? Pure.
//!
//! Its submission must be among those that were open when FlowMesh took it. When all of these are one principal's it is
//! theirs; otherwise it is held for the operator, because a wrong guess is somebody else's money.

use jiff::{SignedDuration, Timestamp};

use crate::ledger::{Attribution, OpenSubmission};

/// How far FlowMesh's clock may be from ours.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);
/// How long after Check, or after its client has gone, FlowMesh may take a submission: uploads and FlowMesh can be slow.
pub const LONGEST_SUBMISSION: SignedDuration = SignedDuration::from_mins(15);

/// Decides from what the ledger knows. `ours_since` is the ledger's; without a time nothing can be decided, nor by elimination
/// when somebody may be `missing`, whose submission of about that time has no row.
#[must_use]
pub fn decide(
    submitted_at: Option<Timestamp>,
    open: &[OpenSubmission],
    missing: bool,
    ours_since: Timestamp,
) -> Attribution {
    let held = |reason: &str| Attribution::Held { reason: reason.to_owned() };
    let Some(submitted_at) = submitted_at else { return held("FlowMesh does not say when it was submitted") };
    // It may have been billed and pruned; a submission of that time that is still open is then another's.
    if submitted_at < ours_since - CLOCK_SKEW {
        return Attribution::Ignored;
    }
    let mut candidates: Vec<&OpenSubmission> =
        open.iter().filter(|submission| was_open_at(submission, submitted_at)).collect();
    // Only one principal is left below, so this picks which of their own submissions it was: one that FlowMesh did not
    // answer with an error, that began before FlowMesh took the workflow, and as late as possible.
    candidates.sort_by_key(|submission| {
        let before = submitted_at.duration_since(submission.opened_at);
        (submission.failed, before.is_negative(), before.abs())
    });
    match candidates.as_slice() {
        [] if submitted_at < ours_since => Attribution::Ignored,
        _ if missing => held("submissions of about its time could not be written down"),
        [] => held("no submission was open at its time"),
        several if several.iter().any(|other| other.principal_id != several[0].principal_id) => {
            let mut principals: Vec<&str> = several.iter().map(|candidate| candidate.principal_id.as_str()).collect();
            principals.sort_unstable();
            principals.dedup();
            held(&format!("submissions of several were open at its time: {}", principals.join(", ")))
        }
        [best, ..] if best.failed => {
            held(&format!("the only submission open at its time, of {}, was answered with an error", best.principal_id))
        }
        [best, ..] => {
            Attribution::Matched { submission_id: best.submission_id.clone(), principal_id: best.principal_id.clone() }
        }
    }
}

/// Whether a submission may have made a workflow that FlowMesh took `at`. FlowMesh may take it long after its client has
/// gone: the end of a request says nothing of that.
#[must_use]
pub fn was_open_at(submission: &OpenSubmission, at: Timestamp) -> bool {
    let last_heard = submission.ended_at.unwrap_or(submission.opened_at);
    submission.opened_at - CLOCK_SKEW <= at && at <= last_heard + LONGEST_SUBMISSION
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
            failed: false,
        }
    }

    fn decide_at(submitted_at: Timestamp, open: &[OpenSubmission], born_at: Timestamp) -> Attribution {
        decide(Some(submitted_at), open, false, born_at)
    }

    fn matched(id: &str, principal: &str) -> Attribution {
        Attribution::Matched { submission_id: id.into(), principal_id: principal.into() }
    }

    #[test]
    fn the_only_open_submission_is_the_one() {
        assert_eq!(decide_at(at(10), &[open("s", "alice", 9, None)], at(0)), matched("s", "alice"));
    }

    #[test]
    fn of_several_of_one_principal_the_latest_before_it_is_taken() {
        let open = [open("s1", "alice", 1, None), open("s2", "alice", 9, None), open("s3", "alice", 11, None)];
        assert_eq!(decide_at(at(10), &open, at(0)), matched("s2", "alice"));
    }

    #[test]
    fn two_principals_at_once_are_held_and_named() {
        let open = [open("s1", "bob", 9, None), open("s2", "alice", 9, Some(12))];
        let Attribution::Held { reason } = decide_at(at(10), &open, at(0)) else { panic!("not held") };
        assert!(reason.ends_with("alice, bob"), "{reason}");
    }

    #[test]
    fn a_submission_that_had_not_begun_or_is_long_over_is_no_candidate() {
        let open = [open("s1", "bob", -1000, Some(-900)), open("s2", "carol", 16, None), open("s3", "alice", 9, None)];
        assert_eq!(decide_at(at(10), &open, at(-2000)), matched("s3", "alice"));
    }

    #[test]
    fn who_left_early_may_still_be_the_one_so_a_later_one_is_not_guessed() {
        // FlowMesh stalls: Alice leaves at 1, Bob at 4, and FlowMesh takes Alice's at 8.
        let open = [open("s1", "alice", 0, Some(1)), open("s2", "bob", 3, Some(4))];
        assert!(matches!(decide_at(at(8), &open, at(0)), Attribution::Held { .. }));
    }

    #[test]
    fn a_submission_that_flowmesh_answered_with_an_error_is_not_guessed_to_have_worked() {
        let failed = OpenSubmission { failed: true, ..open("s1", "bob", 9, Some(9)) };
        assert!(matches!(decide_at(at(10), std::slice::from_ref(&failed), at(0)), Attribution::Held { .. }));
        let again = open("s2", "bob", 10, None);
        assert_eq!(decide_at(at(10), &[failed, again], at(0)), matched("s2", "bob"));
    }

    #[test]
    fn without_a_time_it_is_held() {
        assert!(matches!(decide(None, &[open("s", "alice", 1, None)], false, at(0)), Attribution::Held { .. }));
    }

    #[test]
    fn a_workflow_older_than_the_ledger_is_not_ours_and_a_younger_one_of_nobody_is_held() {
        assert_eq!(decide_at(at(-1), &[], at(0)), Attribution::Ignored);
        assert!(matches!(decide_at(at(1), &[], at(0)), Attribution::Held { .. }));
    }

    #[test]
    fn a_workflow_from_before_what_is_kept_is_not_matched_with_whatever_is_still_open() {
        assert_eq!(decide_at(at(10), &[open("s", "alice", 9, None)], at(20)), Attribution::Ignored);
    }

    #[test]
    fn a_submission_in_the_first_seconds_of_the_ledger_is_ours_even_with_clocks_apart() {
        assert_eq!(decide_at(at(-2), &[open("s", "alice", 1, None)], at(0)), matched("s", "alice"));
    }

    #[test]
    fn when_somebody_may_be_missing_nobody_is_found_by_elimination() {
        let alice = [open("s", "alice", 9, None)];
        assert!(matches!(decide(Some(at(10)), &alice, true, at(0)), Attribution::Held { .. }));
        assert!(matches!(decide(Some(at(10)), &[], true, at(0)), Attribution::Held { .. }));
        assert_eq!(decide(Some(at(-9)), &[], true, at(0)), Attribution::Ignored, "older than the ledger all the same");
    }
}
