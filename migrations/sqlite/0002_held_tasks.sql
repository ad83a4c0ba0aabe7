-- A task that has ended and whose cost cannot be read is held like a charge that has no owner: visible, and asked after
-- again now and then, until FlowMesh gives an answer that can be read.
ALTER TABLE tasks ADD COLUMN hold_reason TEXT;  -- why what FlowMesh said of it cannot be charged; NULL: nothing is wrong with it
CREATE INDEX tasks_held ON tasks (settle_at) WHERE state = 'open' AND hold_reason IS NOT NULL;
