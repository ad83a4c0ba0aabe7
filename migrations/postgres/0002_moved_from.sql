-- The SQLite ledger that was moved into this one, if one was. Each batch of rows is committed with how far it goes, so that
-- whoever goes on after a kill knows what is here. While it is not done no Tollgate uses this ledger: half of what is owed is
-- not here yet.
CREATE TABLE moved_from (
    id       BIGINT PRIMARY KEY CHECK (id = 1),  -- one row
    mark     TEXT COLLATE "C" NOT NULL,   -- the same is in the source, as long as nobody has used that again
    source   TEXT COLLATE "C" NOT NULL,   -- its path
    born_at  BIGINT NOT NULL,             -- when it was made, by which it is known from others, too
    begun_at BIGINT NOT NULL,
    part     TEXT COLLATE "C",            -- the table that is being moved, and those before it are here; NULL: none is yet
    up_to    BIGINT,                      -- the last row of that table that is here, by its rowid in the source
    moved    BIGINT NOT NULL DEFAULT 0,   -- rows so far, of all tables
    done_at  BIGINT                       -- when all was here and had been compared; NULL: not yet
);
