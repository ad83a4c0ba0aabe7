-- The ledger that several Tollgates share. It has the tables of migrations/sqlite, and the few by which they know of each other.
--
-- Times are integers: milliseconds since the Unix epoch, UTC. Money is decimal text in US dollars, never a float. Texts compare
-- byte by byte, as in SQLite, whatever the database's own collation: pages are walked in their order.
--
-- Partial indexes cover live rows only, so that claiming work stays cheap however many rows are done: a claim steps into the
-- index of what is due from its oldest entry on and stops after so many, past the few that others have leased. A row leaves
-- such an index with each move, so these tables are vacuumed often.

CREATE TABLE ledger (
    id            BIGINT PRIMARY KEY CHECK (id = 1),  -- one row
    born_at       BIGINT NOT NULL,            -- workflows submitted before this are not ours to bill
    compared_at   BIGINT,                     -- when FlowMesh's whole list was last compared with it; NULL: not yet
    pruned_before BIGINT NOT NULL DEFAULT 0   -- rows from before this may have been pruned: a workflow from then is not billed (again)
);

CREATE TABLE principals (
    principal_id TEXT COLLATE "C" PRIMARY KEY,  -- lum.id's sub
    email        TEXT COLLATE "C",              -- where bills go, as last seen; NULL: charges are held
    seen_at      BIGINT NOT NULL                -- last submission
);

CREATE TABLE submissions (
    submission_id TEXT COLLATE "C" PRIMARY KEY,  -- minted by Check
    principal_id  TEXT COLLATE "C" NOT NULL REFERENCES principals,
    request_id    TEXT COLLATE "C" NOT NULL,     -- Envoy's: a repeated Check finds its own row
    opened_at     BIGINT NOT NULL,               -- when Check let it through
    ended_at      BIGINT,                        -- when the log said that the request was over; NULL: not heard of
    failed        BOOLEAN NOT NULL DEFAULT false,
                                     -- FlowMesh answered with an error of its own, so it may well have made none
    workflow_id   TEXT COLLATE "C",  -- what came of it
    state         TEXT COLLATE "C" NOT NULL CHECK (state IN ('open', 'resolved', 'refused')),
                                     -- open: may have made a workflow nobody told us of; refused: made none
    UNIQUE (principal_id, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
-- Candidates for a workflow whose own log entry never came.
CREATE INDEX submissions_open ON submissions (opened_at) WHERE state = 'open';
-- What is pruned is looked for from the oldest on.
CREATE INDEX submissions_over ON submissions (opened_at, submission_id) WHERE state <> 'open';

CREATE TABLE workflows (
    workflow_id   TEXT COLLATE "C" PRIMARY KEY,
    principal_id  TEXT COLLATE "C" REFERENCES principals,  -- who pays; NULL: nobody known yet
    submission_id TEXT COLLATE "C",  -- where the owner comes from
    attribution   TEXT COLLATE "C" CHECK (attribution IN ('log', 'matched', 'operator', 'held')),
                                     -- how the owner was found; held: it was looked for in vain; NULL: not yet looked for
    hold_reason   TEXT COLLATE "C",  -- for the operator, when held
    state         TEXT COLLATE "C" NOT NULL CHECK (state IN ('open', 'settled', 'ignored', 'gone')),
                                     -- ignored: older than the ledger, or pruned; gone: FlowMesh no longer knows it
    noted_at      BIGINT NOT NULL,   -- when the ledger first heard of it
    submitted_at  BIGINT,            -- when FlowMesh took it, as far as FlowMesh was asked for its owner
    sweep_at      BIGINT NOT NULL,   -- when to ask FlowMesh after it again
    sweeps        BIGINT NOT NULL DEFAULT 0,   -- how often that has been done, for the growing interval
    asked_at      BIGINT NOT NULL DEFAULT 0,   -- when it was last asked after
    heard         BIGINT NOT NULL DEFAULT 0,   -- counts what is heard of it, so that a sweep notices news on its way
    unknown_since BIGINT,                      -- since when FlowMesh says that it does not know it; NULL: it does
    leased_until  BIGINT NOT NULL DEFAULT 0    -- somebody is asking; past it, they are taken for dead
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX workflows_due ON workflows (sweep_at) WHERE state = 'open';
-- What is being worked on, which is little: when the next piece is due would else be found by reading all that is open.
CREATE INDEX workflows_leased ON workflows (leased_until) WHERE leased_until <> 0;
CREATE INDEX workflows_of_submission ON workflows (submission_id);
CREATE INDEX workflows_held ON workflows (noted_at) WHERE attribution = 'held';
-- The oldest that is not over is read at every scrape: one step.
CREATE INDEX workflows_open ON workflows (noted_at) WHERE state = 'open';
CREATE INDEX workflows_over ON workflows (noted_at, workflow_id) WHERE state <> 'open';

CREATE TABLE tasks (
    task_id       TEXT COLLATE "C" PRIMARY KEY,
    workflow_id   TEXT COLLATE "C",  -- NULL until FlowMesh has told
    state         TEXT COLLATE "C" NOT NULL CHECK (state IN ('open', 'settled')),
    outcome       TEXT COLLATE "C" CHECK (outcome IN ('charged', 'merged', 'nothing', 'ignored', 'gone')),
                                     -- of settling; merged: its execution is charged under another task
    eager         BOOLEAN NOT NULL DEFAULT false,  -- there is evidence that it ended, so ask until it has
    settle_at     BIGINT,            -- when to ask FlowMesh after it; NULL: not before something is heard of it
    attempts      BIGINT NOT NULL DEFAULT 0,   -- since the last evidence, for the growing interval
    asked_at      BIGINT NOT NULL DEFAULT 0,   -- when it was last asked after
    heard         BIGINT NOT NULL DEFAULT 0,   -- counts what is heard of it, so that a question notices news on its way
    unknown_since BIGINT,                      -- since when FlowMesh says that it does not know it; NULL: it does
    hold_reason   TEXT COLLATE "C",            -- why what FlowMesh said of it cannot be charged; NULL: nothing is wrong with it
    leased_until  BIGINT NOT NULL DEFAULT 0    -- somebody is asking; past it, they are taken for dead
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX tasks_due ON tasks (settle_at) WHERE state = 'open' AND settle_at IS NOT NULL;
CREATE INDEX tasks_leased ON tasks (leased_until) WHERE leased_until <> 0;
CREATE INDEX tasks_of_workflow ON tasks (workflow_id);
CREATE INDEX tasks_held ON tasks (settle_at) WHERE state = 'open' AND hold_reason IS NOT NULL;
CREATE INDEX tasks_gone ON tasks (asked_at) WHERE outcome = 'gone';
-- Tasks of no workflow, which are pruned by themselves.
CREATE INDEX tasks_nobodys ON tasks (asked_at, task_id) WHERE workflow_id IS NULL AND state = 'settled';

-- The charge row is the outbox: what is pending here is posted until Runmesh has it.
CREATE TABLE charges (
    number          BIGINT GENERATED BY DEFAULT AS IDENTITY,  -- later ones have higher numbers, more or less
    task_id         TEXT COLLATE "C" PRIMARY KEY,  -- Runmesh's idempotency key
    workflow_id     TEXT COLLATE "C",
    principal_id    TEXT COLLATE "C" REFERENCES principals,  -- who pays; NULL: held
    supplier_id     TEXT COLLATE "C",  -- namespace of the worker; NULL: unknown
    cost            TEXT COLLATE "C" NOT NULL,  -- US dollars, plain decimal notation, digit for digit as FlowMesh reported it
    duration_sec    BIGINT NOT NULL,   -- run time, truncated toward zero
    cost_per_hour   TEXT COLLATE "C" NOT NULL,  -- US dollars per hour, a JSON number
    task_status     TEXT COLLATE "C" NOT NULL CHECK (task_status IN ('DONE', 'FAILED', 'CANCELLED')),
    assigned_worker TEXT COLLATE "C",  -- with the next two: the execution
    started_at      TEXT COLLATE "C",  -- as FlowMesh wrote it
    finished_at     TEXT COLLATE "C",  -- as FlowMesh wrote it
    state           TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'posted', 'held', 'rejected')),
    hold_reason     TEXT COLLATE "C" CHECK (hold_reason IN ('no_owner', 'no_email')),
    attempts        BIGINT NOT NULL DEFAULT 0,  -- posts tried
    post_at         BIGINT NOT NULL,   -- when to post it (again)
    leased_until    BIGINT NOT NULL DEFAULT 0,  -- somebody is posting it; past it, they are taken for dead
    last_error      TEXT COLLATE "C",  -- of the last try; for a rejected one, Runmesh's answer
    created_at      BIGINT NOT NULL,
    posted_at       BIGINT
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX charges_number ON charges (number);
CREATE INDEX charges_due ON charges (post_at) WHERE state = 'pending';
CREATE INDEX charges_leased ON charges (leased_until) WHERE leased_until <> 0;
-- All rows, not only held ones: an owner is also corrected on charges that are about to be posted.
CREATE INDEX charges_of_workflow ON charges (workflow_id);
CREATE INDEX charges_held_of ON charges (principal_id) WHERE state = 'held';
CREATE INDEX charges_pending ON charges (created_at) WHERE state = 'pending';
CREATE INDEX charges_held ON charges (created_at) WHERE state = 'held';
CREATE INDEX charges_rejected ON charges (created_at) WHERE state = 'rejected';
-- A period's posted charges, for reconciliation.
CREATE INDEX charges_posted ON charges (posted_at, task_id) WHERE state = 'posted';
-- A merged batch shows one execution under several tasks: it is charged once.
CREATE UNIQUE INDEX charges_execution ON charges (assigned_worker, started_at, finished_at)
    WHERE assigned_worker IS NOT NULL AND started_at IS NOT NULL AND finished_at IS NOT NULL;

-- When submissions went through without a row that came later: whose a workflow of such a time is cannot be found by elimination.
CREATE TABLE gaps (
    since BIGINT NOT NULL,  -- the first of them was let through
    until BIGINT NOT NULL,  -- and the last one
    PRIMARY KEY (since, until)
);

-- The Tollgates that share this ledger. Each says every second up to when all submissions that it let through have their row
-- here. Before that has reached a workflow's time, of all of them, its owner is not found by elimination: who is missing may be
-- the one. One that is not heard of for long leaves a gap.
CREATE TABLE replicas (
    name           TEXT COLLATE "C" PRIMARY KEY,  -- TOLLGATE_REPLICA
    incarnation    TEXT COLLATE "C" NOT NULL,     -- this start of it
    beats          BIGINT NOT NULL DEFAULT 0,     -- grows while it lives; others compare it by their own clocks
    recorded_until BIGINT NOT NULL
);

-- What one replica does for all: whoever holds it renews it, and when it is not renewed another one takes it. By the
-- database's clock, so that those of the replicas need not agree.
CREATE TABLE duties (
    duty        TEXT COLLATE "C" PRIMARY KEY,
    incarnation TEXT COLLATE "C" NOT NULL,
    until       TIMESTAMPTZ NOT NULL
);

-- Whose tokens every replica is to forget. Notifications tell of a new row at once, and each heartbeat looks for those that
-- were missed.
CREATE TABLE purges (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    what   TEXT COLLATE "C" NOT NULL  -- JSON, as the admin listener takes it
);
