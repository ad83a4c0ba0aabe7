-- For the operator, and for what is done and old.

-- When FlowMesh's whole list was last compared with the ledger; NULL: not yet. What is older is pruned only up to there,
-- because only then is it certain that nothing unknown is among it.
ALTER TABLE ledger ADD COLUMN compared_at INTEGER;
-- Rows from before this may have been pruned: a workflow from then without a row is not billed (again).
ALTER TABLE ledger ADD COLUMN pruned_before INTEGER NOT NULL DEFAULT 0;

-- When FlowMesh took it, as far as FlowMesh was asked for its owner: who else may have submitted it then?
ALTER TABLE workflows ADD COLUMN submitted_at INTEGER;

-- Counted at every scrape, however many rows are done.
CREATE INDEX charges_rejected ON charges (created_at) WHERE state = 'rejected';
CREATE INDEX tasks_gone ON tasks (asked_at) WHERE outcome = 'gone';
-- A period's posted charges, for reconciliation.
CREATE INDEX charges_posted ON charges (posted_at, task_id) WHERE state = 'posted';
-- What is pruned is looked for from the oldest on.
CREATE INDEX workflows_over ON workflows (noted_at, workflow_id) WHERE state <> 'open';
CREATE INDEX submissions_over ON submissions (opened_at, submission_id) WHERE state <> 'open';
