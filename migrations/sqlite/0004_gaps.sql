-- When submissions went through without a row that came later: whose a workflow of such a time is cannot be found by elimination.
CREATE TABLE gaps (
    since INTEGER NOT NULL,  -- the first of them was let through
    until INTEGER NOT NULL   -- and the last one
) STRICT;
