-- Times are integers: milliseconds since the Unix epoch, UTC. Money is decimal text in US dollars, never a float.
-- Partial indexes cover live rows only, so that claiming work stays cheap however many rows are done.

CREATE TABLE ledger (
    id      INTEGER PRIMARY KEY CHECK (id = 1),  -- one row
    born_at INTEGER NOT NULL                     -- workflows submitted before this are not ours to bill
) STRICT;

CREATE TABLE principals (
    principal_id TEXT PRIMARY KEY,   -- lum.id's sub
    email        TEXT,               -- where bills go, as last seen; NULL: charges are held
    seen_at      INTEGER NOT NULL    -- last submission
) STRICT;

CREATE TABLE submissions (
    submission_id TEXT PRIMARY KEY,  -- minted by Check
    principal_id  TEXT NOT NULL REFERENCES principals,
    request_id    TEXT NOT NULL,     -- Envoy's: a repeated Check finds its own row
    opened_at     INTEGER NOT NULL,  -- when Check let it through
    ended_at      INTEGER,           -- when the log said that the request was over; NULL: not heard of
    failed        INTEGER NOT NULL DEFAULT 0 CHECK (failed IN (0, 1)),
                                     -- 1: FlowMesh answered with an error of its own, so it may well have made none
    workflow_id   TEXT,              -- what came of it
    state         TEXT NOT NULL CHECK (state IN ('open', 'resolved', 'refused')),
                                     -- open: may have made a workflow nobody told us of; refused: made none
    UNIQUE (principal_id, request_id)
) STRICT;
-- Candidates for a workflow whose own log entry never came.
CREATE INDEX submissions_open ON submissions (opened_at) WHERE state = 'open';

CREATE TABLE workflows (
    workflow_id   TEXT PRIMARY KEY,
    principal_id  TEXT REFERENCES principals,  -- who pays; NULL: nobody known yet
    submission_id TEXT,              -- where the owner comes from
    attribution   TEXT CHECK (attribution IN ('log', 'matched', 'operator', 'held')),
                                     -- how the owner was found; held: it was looked for in vain; NULL: not yet looked for
    hold_reason   TEXT,              -- for the operator, when held
    state         TEXT NOT NULL CHECK (state IN ('open', 'settled', 'ignored', 'gone')),
                                     -- ignored: older than the ledger; gone: FlowMesh no longer knows it
    noted_at      INTEGER NOT NULL,  -- when the ledger first heard of it
    sweep_at      INTEGER NOT NULL,  -- when to ask FlowMesh after it again
    sweeps        INTEGER NOT NULL DEFAULT 0,  -- how often that has been done, for the growing interval
    asked_at      INTEGER NOT NULL DEFAULT 0,  -- when it was last asked after
    heard         INTEGER NOT NULL DEFAULT 0,  -- counts what is heard of it, so that a sweep notices news on its way
    unknown_since INTEGER,                     -- since when FlowMesh says that it does not know it; NULL: it does
    leased_until  INTEGER NOT NULL DEFAULT 0   -- somebody is asking; past it, they are taken for dead
) STRICT;
CREATE INDEX workflows_due ON workflows (sweep_at) WHERE state = 'open';
CREATE INDEX workflows_of_submission ON workflows (submission_id);
CREATE INDEX workflows_held ON workflows (noted_at) WHERE attribution = 'held';

CREATE TABLE tasks (
    task_id      TEXT PRIMARY KEY,
    workflow_id  TEXT,               -- NULL until FlowMesh has told
    state        TEXT NOT NULL CHECK (state IN ('open', 'settled')),
    outcome      TEXT CHECK (outcome IN ('charged', 'merged', 'nothing', 'ignored', 'gone')),
                                     -- of settling; merged: its execution is charged under another task
    eager        INTEGER NOT NULL DEFAULT 0 CHECK (eager IN (0, 1)),
                                     -- 1: there is evidence that it ended, so ask until it has
    settle_at    INTEGER,            -- when to ask FlowMesh after it; NULL: not before something is heard of it
    attempts     INTEGER NOT NULL DEFAULT 0,   -- since the last evidence, for the growing interval
    asked_at     INTEGER NOT NULL DEFAULT 0,   -- when it was last asked after
    heard        INTEGER NOT NULL DEFAULT 0,   -- counts what is heard of it, so that a question notices news on its way
    unknown_since INTEGER,                     -- since when FlowMesh says that it does not know it; NULL: it does
    leased_until INTEGER NOT NULL DEFAULT 0    -- somebody is asking; past it, they are taken for dead
) STRICT;
CREATE INDEX tasks_due ON tasks (settle_at) WHERE state = 'open' AND settle_at IS NOT NULL;
CREATE INDEX tasks_of_workflow ON tasks (workflow_id);

-- The charge row is the outbox: what is pending here is posted until Runmesh has it.
CREATE TABLE charges (
    task_id         TEXT PRIMARY KEY,  -- Runmesh's idempotency key
    workflow_id     TEXT,
    principal_id    TEXT REFERENCES principals,  -- who pays; NULL: held
    supplier_id     TEXT,              -- namespace of the worker; NULL: unknown
    cost            TEXT NOT NULL,     -- US dollars, plain decimal notation, digit for digit as FlowMesh reported it
    duration_sec    INTEGER NOT NULL,  -- run time, truncated toward zero
    cost_per_hour   TEXT NOT NULL,     -- US dollars per hour, a JSON number
    task_status     TEXT NOT NULL CHECK (task_status IN ('DONE', 'FAILED', 'CANCELLED')),
    assigned_worker TEXT,              -- with the next two: the execution
    started_at      TEXT,              -- as FlowMesh wrote it
    finished_at     TEXT,              -- as FlowMesh wrote it
    state           TEXT NOT NULL CHECK (state IN ('pending', 'posted', 'held', 'rejected')),
    hold_reason     TEXT CHECK (hold_reason IN ('no_owner', 'no_email')),
    attempts        INTEGER NOT NULL DEFAULT 0,  -- posts tried
    post_at         INTEGER NOT NULL,  -- when to post it (again)
    leased_until    INTEGER NOT NULL DEFAULT 0,  -- somebody is posting it; past it, they are taken for dead
    last_error      TEXT,              -- of the last try; for a rejected one, Runmesh's answer
    created_at      INTEGER NOT NULL,
    posted_at       INTEGER
) STRICT;
CREATE INDEX charges_due ON charges (post_at) WHERE state = 'pending';
-- All rows, not only held ones: an owner is also corrected on charges that are about to be posted.
CREATE INDEX charges_of_workflow ON charges (workflow_id);
CREATE INDEX charges_held_of ON charges (principal_id) WHERE state = 'held';
-- A merged batch shows one execution under several tasks: it is charged once.
CREATE UNIQUE INDEX charges_execution ON charges (assigned_worker, started_at, finished_at)
    WHERE assigned_worker IS NOT NULL AND started_at IS NOT NULL AND finished_at IS NOT NULL;
