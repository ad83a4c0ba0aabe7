-- Where the ledger went, if it was moved to another database. While there is a row here no `serve` begins on this file: what is
-- owed would be billed from two ledgers, and what is submitted would be known to one of them.
CREATE TABLE moved (
    id    INTEGER PRIMARY KEY CHECK (id = 1),  -- one row
    mark  TEXT NOT NULL,     -- the same is in the other ledger: as long as it is here nobody has used this one since
    place TEXT NOT NULL,     -- the other one's URL, without a password
    at    INTEGER NOT NULL   -- when it began to be moved
) STRICT;
-- Whoever deletes the row takes the file into use again. Submissions since then went elsewhere, so nobody is found by
-- elimination for a workflow of that time.
CREATE TRIGGER taken_back AFTER DELETE ON moved BEGIN
    INSERT INTO gaps (since, until) VALUES (old.at, MAX(old.at, CAST(strftime('%s', 'now') AS INTEGER) * 1000 + 999));
END;
