-- What is being worked on. It is little, and without these all open rows are read to find when the next one is due (25 ms
-- with 100 000 open workflows, after each claim that found nothing), and all rows there are at a start, to lift the leases of
-- the dead (0.3 s with 1 000 000 charges). Partial, so that a row is in there only while somebody works on it.
CREATE INDEX tasks_leased ON tasks (leased_until) WHERE leased_until <> 0;
CREATE INDEX workflows_leased ON workflows (leased_until) WHERE leased_until <> 0;
CREATE INDEX charges_leased ON charges (leased_until) WHERE leased_until <> 0;
