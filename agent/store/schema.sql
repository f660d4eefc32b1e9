-- One row for each job, and for each answer to a request that made no job (its id is NULL).
-- Payloads and answers stand apart, so that a change of state rewrites a small row only.
-- Times are seconds on the store's own time line: see timeline.py.
CREATE TABLE jobs (
    n INTEGER PRIMARY KEY,          -- in order of receipt
    id TEXT UNIQUE,
    mid INTEGER,                    -- MQTT packet id of a job that came without an id
    model TEXT NOT NULL,
    state TEXT NOT NULL,            -- agent.life.State
    lane TEXT NOT NULL,             -- jobs that may take the same routes; '' once answered
    parked INTEGER NOT NULL,        -- 1: on disk only
    priority INTEGER NOT NULL,
    received REAL NOT NULL,
    deadline REAL NOT NULL,
    not_before REAL NOT NULL,       -- deferred: not to be looked at before
    attempts INTEGER NOT NULL,      -- routes tried
    crashes INTEGER NOT NULL,       -- times the daemon died while the job ran
    fingerprint BLOB,               -- of what it asks for
    askers BLOB NOT NULL,           -- where its answer goes
    expires REAL,                   -- from then on the row may go
    trace BLOB                      -- the span that its work belongs to, until it is published
) STRICT;

CREATE INDEX backlog ON jobs (lane, priority DESC, deadline, n) WHERE parked;
CREATE INDEX backlog_deadline ON jobs (deadline) WHERE parked AND state <> 'answered';
CREATE INDEX expiry ON jobs (expires) WHERE expires IS NOT NULL;
CREATE INDEX unnamed ON jobs (mid, n) WHERE mid IS NOT NULL;

CREATE TABLE payloads (n INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE answers (n INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;

CREATE TABLE decisions (
    n INTEGER PRIMARY KEY,
    job TEXT NOT NULL,              -- the job's id
    decided REAL NOT NULL,          -- Unix seconds
    body BLOB NOT NULL              -- JSON, as on the topic `decisions`, and what came of it
) STRICT;
CREATE INDEX decisions_of_job ON decisions (job);

CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
