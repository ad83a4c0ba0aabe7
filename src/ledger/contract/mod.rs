//! What every ledger must do, whatever database it is in: a suite written against [`Ledger`] and [`Books`].
//!
//! A database joins with a [`Store`] and `suite!(ItsStore)`, which makes a test of each of these functions. What only it can
//! get wrong (files, locks, indexes) it tests by itself.

pub mod attributing;
pub mod batches;
pub mod books;
pub mod charges;
pub mod owners;
pub mod retention;
pub mod retrying;
pub mod submissions;
pub mod work;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::access_log::event::{Event, Over};
use crate::ledger::books::{Books, Charge, ChargeState};
use crate::ledger::{
    Attribution, Backlog, DueCharge, DueTask, DueWorkflow, Existence, Ledger, NewSubmission, NextSweep, Pick, Posted,
    Settled, Settlement, Usage, Work,
};
use crate::principal::Principal;

/// A database with one ledger in it.
pub trait Store: Sized {
    /// Seconds after a kill until the work of the dead is taken up again: none where it is known who is dead, else a lease.
    const TAKEN_OVER_AFTER: i64;

    /// Whether this machine has the database. It says so when it has not.
    fn is_there() -> bool;
    /// Makes an empty ledger, at [`at`]`(0)`.
    async fn fresh() -> Self;
    /// Ends the process that uses it, without a word, and begins another one.
    async fn killed_and_restarted(self) -> Self;
    fn ledger(&self) -> &dyn Ledger;
    /// The operator's side, as another process has it.
    fn books(&self) -> &dyn Books;
}

/// Makes a test of every function of the suite.
macro_rules! suite {
    ($store:ident) => {
        $crate::ledger::contract::tests_of! { $store;
            submissions {
                a_repeated_check_finds_its_own_submission_and_another_request_does_not
                a_request_id_that_is_used_up_does_not_hide_another_submission
                a_request_id_that_a_client_uses_twice_at_once_is_one_submission_and_both_workflows_are_billed
                a_check_that_is_repeated_elsewhere_finds_its_submission_whatever_has_come_of_it
                a_row_that_comes_late_is_the_submission_it_would_have_been
                a_row_that_comes_after_its_end_is_over_in_whatever_order_they_come
                a_row_that_is_committed_in_time_and_after_its_end_is_over
                a_row_that_came_late_and_then_in_time_all_the_same_is_one
                a_submission_that_was_refused_is_no_candidate_and_one_that_ended_still_is
            }
            owners {
                a_task_waits_until_its_workflows_owner_has_been_looked_for
                a_held_workflow_is_freed_by_its_own_log_entry_however_late
                a_match_uses_up_its_submission_and_yields_to_the_log
                what_is_older_than_the_ledger_is_not_billed_unless_the_log_says_it_is_ours
                an_owner_that_the_log_corrects_while_the_charge_is_posted_gets_it_with_the_next_try
                a_task_of_a_workflow_that_flowmesh_forgot_is_held_and_not_asked_after_for_ever
                a_comparison_brings_up_who_was_held_lately_and_is_remembered
                every_repeated_move_on_a_workflow_changes_nothing
                a_gap_is_noted_once_and_concerns_its_own_time
                an_owner_that_was_corrected_while_the_charge_was_posted_gets_it_after_a_kill
                an_owner_that_was_corrected_while_the_charge_was_posted_gets_it_after_its_lease
                a_row_that_comes_late_under_a_request_id_that_is_used_up_is_there_all_the_same
                a_retry_ends_though_runmesh_goes_on_refusing
                a_match_whose_submission_made_another_workflow_is_undone
                evidence_during_a_question_that_ends_in_a_hold_is_acted_on
                a_charge_that_lost_its_owner_while_it_was_posted_is_held_after_its_lease
            }
            work {
                a_sweep_that_waits_for_somebodys_word_does_not_make_the_next_ones_rarer
                evidence_of_an_end_brings_a_task_up_soon_and_a_touch_only_when_nothing_is_planned
                a_sweep_plans_the_tasks_that_ended_and_does_not_reset_their_growing_interval
                what_flowmesh_forgot_is_given_up_only_after_it_said_so_for_long_and_comes_back_when_it_is_seen
                news_that_come_while_somebody_asks_are_acted_on_at_once
                however_often_clients_look_flowmesh_is_asked_now_and_then
                a_long_list_of_workflows_is_noted_once
                a_repeated_answer_of_flowmeshs_changes_nothing_but_how_often_it_was_asked
            }
            charges {
                a_settled_task_is_one_pending_charge_of_the_workflows_owner_however_often_it_is_settled
                an_execution_that_several_tasks_show_is_charged_once
                executions_that_flowmesh_does_not_name_are_never_taken_for_one
                an_execution_whose_name_is_too_long_for_an_index_is_charged_once_all_the_same
                a_charge_without_an_e_mail_is_held_until_its_owner_shows_up_with_one
                claimed_work_belongs_to_its_claimer_until_the_lease_ends
                a_kill_keeps_everything_and_the_work_of_the_dead_is_taken_over
                a_charge_leaves_pending_by_runmeshs_word_alone
                the_supplier_and_the_execution_are_kept_with_the_charge
                a_repeated_word_of_runmeshs_changes_nothing
                usage_that_an_answer_reports_is_a_charge_at_once_and_each_execution_one
                usage_reported_of_a_task_that_nobody_knows_or_that_was_given_up_is_not_lost
                a_probe_is_what_was_tried_least
                who_comes_after_their_lease_changes_nothing_of_who_has_it_now
                what_was_posted_for_somebody_else_after_its_lease_is_said_and_recorded_as_it_is
            }
            batches {
                one_task_in_a_batch_in_several_kinds_is_asked_after_as_if_they_came_one_by_one
                a_submission_and_all_that_follows_from_it_may_come_in_one_batch
                of_usage_in_one_batch_each_execution_is_charged_once_and_to_whom_it_belongs
                moves_that_are_committed_together_come_to_what_each_does
                a_text_of_any_characters_is_kept_as_it_is
                a_batch_leaves_what_its_events_leave_one_by_one
            }
            books {
                everything_is_counted_by_state_with_its_oldest_and_summed_exactly
                the_oldest_of_everything_that_waits_is_told_and_nothing_of_what_is_over
                charges_are_listed_newest_first_page_by_page_and_filtered
                posted_charges_come_in_the_order_of_posting_page_by_page
                a_glance_has_the_newest_of_each_kind_and_no_more_than_was_asked_for
                held_workflows_are_listed_with_those_who_may_have_made_them
                one_thing_is_shown_with_all_that_is_known_of_it
            }
            retrying {
                a_rejected_charge_is_pending_again_and_keeps_what_runmesh_said
                only_what_can_be_tried_again_is
                many_are_retried_in_parts_until_none_is_left
                a_rejected_charge_whose_owner_was_corrected_goes_to_the_new_one
            }
            attributing {
                a_held_workflow_that_is_named_releases_its_charges_and_uses_up_the_submission
                naming_the_owner_again_changes_nothing
                a_principal_without_an_e_mail_is_named_with_one_or_waits_for_it
                who_never_submitted_is_refused_unless_an_e_mail_is_given
                another_owner_is_replaced_only_while_nothing_was_or_is_being_posted
                an_unknown_or_ignored_workflow_has_no_owner_to_name
                the_operators_word_stands_against_later_matches_and_log_entries
            }
            retention {
                what_is_over_and_old_goes_with_all_of_its_rows
                nothing_unposted_unsettled_or_young_goes
                what_was_pruned_and_is_seen_again_is_never_billed_again
                a_replayed_log_entry_of_a_pruned_workflow_changes_nothing
                a_replayed_end_of_a_pruned_submission_does_not_bring_it_back
                an_open_submission_stays_while_a_held_workflow_has_it_for_a_candidate
                nothing_goes_while_an_owner_is_still_to_be_looked_for
                a_workflow_of_many_tasks_goes_in_parts
                pruning_again_changes_nothing
            }
        }
    };
}
pub(crate) use suite;

macro_rules! tests_of {
    ($store:ident; $($module:ident { $($name:ident)* })*) => {
        $(mod $module {
            $(
                #[tokio::test]
                async fn $name() {
                    if !<super::$store as $crate::ledger::contract::Store>::is_there() {
                        return;
                    }
                    $crate::ledger::contract::$module::$name::<super::$store>().await;
                }
            )*
        })*
    };
}
pub(crate) use tests_of;

pub const LEASE: Duration = Duration::from_mins(1);

/// A ledger and the shortest words for what is done to it.
pub struct Fixture<S> {
    pub store: S,
}

/// So many seconds after a ledger of these tests is made.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("valid")
}

pub fn principal(id: &str, email: Option<&str>) -> Principal {
    Principal { id: id.to_owned(), email: email.map(str::to_owned), scopes: String::new() }
}

pub fn alice() -> Principal {
    principal("alice", Some("alice@example.com"))
}

pub fn bob() -> Principal {
    principal("bob", Some("bob@example.com"))
}

/// A submission that began and ended at these seconds.
pub fn over(submission: &str, principal: &str, began: i64, ended: i64) -> Over {
    Over { submission_id: submission.into(), principal_id: Some(principal.into()), began: at(began), at: at(ended) }
}

pub fn usage(worker: &str) -> Settlement {
    costing("0.42", worker)
}

pub fn costing(cost: &str, worker: &str) -> Settlement {
    Settlement::Usage(Usage {
        cost: cost.into(),
        duration_sec: 12,
        cost_per_hour: "1.5".into(),
        task_status: "DONE".into(),
        assigned_worker: Some(worker.into()),
        started_at: Some("2026-11-22T08:00:02Z".into()),
        finished_at: Some("2026-11-22T08:01:14.5Z".into()),
        supplier_id: Some("acme".into()),
    })
}

/// A charge of Alice's as it is when nobody has claimed it.
pub fn unclaimed(task: &str) -> DueCharge {
    DueCharge {
        task_id: task.to_owned(),
        workflow_id: None,
        principal_id: "alice".to_owned(),
        email: "alice@example.com".to_owned(),
        cost: "1".to_owned(),
        duration_sec: 1,
        cost_per_hour: "1".to_owned(),
        task_status: "DONE".to_owned(),
        attempts: 0,
        leased_until: Timestamp::UNIX_EPOCH,
    }
}

pub fn charged(principal: &str) -> Settled {
    Settled::Charged { principal_id: principal.into() }
}

pub fn held(reason: &str) -> Attribution {
    Attribution::Held { reason: reason.to_owned() }
}

impl<S: Store> Fixture<S> {
    pub async fn new() -> Self {
        Self { store: S::fresh().await }
    }

    pub fn ledger(&self) -> &dyn Ledger {
        self.store.ledger()
    }

    pub fn books(&self) -> &dyn Books {
        self.store.books()
    }

    pub async fn submit(&self, principal: &Principal, request: &str, second: i64) -> String {
        let row =
            NewSubmission { submission_id: &format!("sub-{request}"), principal, request_id: request, at: at(second) };
        self.ledger().open_submission(row).await.expect("committed")
    }

    /// Another submission under a request id, by Envoy's word of when its request began.
    pub async fn submit_begun(&self, id: &str, request: &str, began: i64, second: i64) -> String {
        let row = NewSubmission { submission_id: id, principal: &alice(), request_id: request, at: at(second) };
        self.ledger().open_begun(row, at(began)).await.expect("committed")
    }

    pub async fn submitted(&self, submission: &str, principal: &str, workflow: &str, second: i64) {
        let event = Event::Submitted {
            submission_id: submission.into(),
            principal_id: principal.into(),
            workflow_id: workflow.into(),
            at: at(second),
        };
        self.ledger().record(&[event], at(second)).await.expect("committed");
    }

    /// A principal's workflow, known from the log.
    pub async fn workflow(&self, id: &str, principal: &Principal) {
        let submission = self.submit(principal, id, 1).await;
        self.submitted(&submission, &principal.id, id, 2).await;
    }

    /// A workflow that FlowMesh took at a time and whose owner was looked for in vain.
    pub async fn held_workflow(&self, id: &str, second: i64) {
        self.ledger().note_workflows(&[(id.into(), Some(at(second)))], at(second)).await.expect("noted");
        self.ledger().attribute(id, &held("several"), Some(at(second)), at(second)).await.expect("committed");
    }

    pub async fn settle(&self, task: &str, workflow: &str, worker: &str) -> Settled {
        self.ledger().settle(task, Some(workflow), &usage(worker), at(10)).await.expect("committed")
    }

    /// Settles a task and posts its charge.
    pub async fn post(&self, task: &str, workflow: &str, second: i64) {
        let settled = self.ledger().settle(task, Some(workflow), &usage(task), at(second)).await.expect("committed");
        assert!(matches!(settled, Settled::Charged { .. }), "{settled:?}");
        self.posted(task, second).await;
    }

    /// Runmesh's word on a charge of Alice's that nobody has claimed.
    pub async fn posted(&self, task: &str, second: i64) {
        let posted = self.ledger().posted(&unclaimed(task), at(second)).await.expect("committed");
        assert_eq!(posted, Posted::Theirs);
    }

    /// Likewise that it refuses it.
    pub async fn rejected(&self, task: &str, answer: &str) {
        self.ledger().post_rejected(&unclaimed(task), answer).await.expect("committed");
    }

    /// Ends the sweeping of all workflows that are due.
    pub async fn settle_workflows(&self, second: i64) {
        for due in self.ledger().claim_workflows(at(second), LEASE, Pick::Due(10)).await.expect("claimed") {
            self.ledger().swept(&due, NextSweep::Settled, Existence::Known, at(second)).await.expect("committed");
        }
    }

    pub async fn due_charges(&self, second: i64) -> Vec<DueCharge> {
        self.ledger().claim_charges(at(second), LEASE, Pick::Due(10)).await.expect("claimed")
    }

    pub async fn backlog(&self) -> Backlog {
        self.ledger().backlog().await.expect("counted")
    }

    pub async fn charge(&self, task: &str) -> Charge {
        self.books().charge(task).await.expect("read").expect("a charge")
    }

    pub async fn state_of(&self, task: &str) -> ChargeState {
        self.charge(task).await.state
    }

    /// How many charges Runmesh has.
    pub async fn posted_charges(&self) -> u64 {
        self.books().standing().await.expect("counted").charges[3].rows
    }
}
