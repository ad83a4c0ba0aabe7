-- The oldest of what is not over is read at every scrape, and the latest held charges for the console: each is a step or a few
-- into an index, however much waits and however much is done.
CREATE INDEX charges_pending ON charges (created_at) WHERE state = 'pending';
CREATE INDEX charges_held ON charges (created_at) WHERE state = 'held';
CREATE INDEX workflows_open ON workflows (noted_at) WHERE state = 'open';
