-- The first tables: what the nodes reported, as they reported it, and what the collector needs to serve them.
-- Events are never changed; whatever can be derived from them is derived again, so it has no table here.

CREATE TABLE node (
    node_id INTEGER PRIMARY KEY CHECK (node_id > 0),
    first_seen_utc_ms INTEGER NOT NULL
) STRICT;

-- `watermark` is the highest seq such that each of 1..watermark is durable in `event` or covered by `gap`.
CREATE TABLE journal (
    node_id INTEGER NOT NULL REFERENCES node,
    journal_id BLOB NOT NULL CHECK (length(journal_id) = 8),
    watermark INTEGER NOT NULL DEFAULT 0,
    first_seen_utc_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, journal_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    node_id INTEGER NOT NULL,
    journal_id BLOB NOT NULL,
    seq INTEGER NOT NULL CHECK (seq BETWEEN 1 AND 4294967295),
    bytes BLOB NOT NULL,
    received_utc_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, journal_id, seq),
    FOREIGN KEY (node_id, journal_id) REFERENCES journal
) STRICT, WITHOUT ROWID;

-- What a node no longer had when it was asked: declared, never guessed. Both ends belong to the gap.
CREATE TABLE gap (
    node_id INTEGER NOT NULL,
    journal_id BLOB NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL CHECK (last_seq >= first_seq),
    PRIMARY KEY (node_id, journal_id, first_seq),
    FOREIGN KEY (node_id, journal_id) REFERENCES journal
) STRICT, WITHOUT ROWID;

-- The key of a stored event with other bytes: a cloned board or a fault. Each variant is kept once.
CREATE TABLE quarantine (
    node_id INTEGER NOT NULL,
    journal_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    received_utc_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, journal_id, seq, bytes),
    FOREIGN KEY (node_id, journal_id, seq) REFERENCES event
) STRICT, WITHOUT ROWID;

-- UTC at a moment of a boot. Boot numbers belong to a journal: a reformatted board counts its boots from 1 again.
CREATE TABLE anchor (
    node_id INTEGER NOT NULL,
    journal_id BLOB NOT NULL,
    boot INTEGER NOT NULL,
    mono_ms INTEGER NOT NULL,
    utc_ms INTEGER NOT NULL,
    uncertainty_ms INTEGER NOT NULL CHECK (uncertainty_ms >= 0),
    PRIMARY KEY (node_id, journal_id, boot, mono_ms),
    FOREIGN KEY (node_id, journal_id) REFERENCES journal
) STRICT, WITHOUT ROWID;

-- The last counter given to a command. A nonce keeps its row, so that one that comes back doesn't start again.
CREATE TABLE command_counter (
    node_id INTEGER NOT NULL REFERENCES node,
    boot_nonce INTEGER NOT NULL,
    counter INTEGER NOT NULL CHECK (counter BETWEEN 1 AND 4294967295),
    PRIMARY KEY (node_id, boot_nonce)
) STRICT, WITHOUT ROWID;

-- What a port has seen: frames, bytes, faults by name.
CREATE TABLE port_count (
    port TEXT NOT NULL,
    name TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (port, name)
) STRICT, WITHOUT ROWID;
