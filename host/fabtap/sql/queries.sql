-- Every query of store.py, by name. Parameters are named; a block ends where the next one begins.

-- One statement, so that a migration of another program can't come in between.
-- name: version_and_tables
SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master);

-- name: add_node
INSERT INTO node (node_id, first_seen_utc_ms) VALUES (:node_id, :utc_ms) ON CONFLICT DO NOTHING;

-- name: add_journal
INSERT INTO journal (node_id, journal_id, first_seen_utc_ms)
VALUES (:node_id, :journal_id, :utc_ms) ON CONFLICT DO NOTHING;

-- name: insert_event
INSERT INTO event (node_id, journal_id, seq, bytes, received_utc_ms)
VALUES (:node_id, :journal_id, :seq, :bytes, :received_utc_ms) ON CONFLICT DO NOTHING;

-- name: event_bytes
SELECT bytes FROM event WHERE node_id = :node_id AND journal_id = :journal_id AND seq = :seq;

-- name: insert_quarantine
INSERT INTO quarantine (node_id, journal_id, seq, bytes, received_utc_ms)
VALUES (:node_id, :journal_id, :seq, :bytes, :received_utc_ms) ON CONFLICT DO NOTHING;

-- name: seqs_after
SELECT seq FROM event WHERE node_id = :node_id AND journal_id = :journal_id AND seq > :seq ORDER BY seq;

-- name: gap_end
SELECT max(last_seq) FROM gap
WHERE node_id = :node_id AND journal_id = :journal_id AND first_seq <= :seq + 1 AND last_seq > :seq;

-- name: watermark
SELECT watermark FROM journal WHERE node_id = :node_id AND journal_id = :journal_id;

-- name: set_watermark
UPDATE journal SET watermark = :seq WHERE node_id = :node_id AND journal_id = :journal_id AND watermark < :seq;

-- name: insert_gap
INSERT INTO gap (node_id, journal_id, first_seq, last_seq) VALUES (:node_id, :journal_id, :first_seq, :last_seq);

-- name: take_gap
DELETE FROM gap WHERE node_id = :node_id AND journal_id = :journal_id AND :seq BETWEEN first_seq AND last_seq
RETURNING first_seq, last_seq;

-- name: insert_anchor
INSERT INTO anchor (node_id, journal_id, boot, mono_ms, utc_ms, uncertainty_ms)
VALUES (:node_id, :journal_id, :boot, :mono_ms, :utc_ms, :uncertainty_ms)
ON CONFLICT DO UPDATE SET utc_ms = excluded.utc_ms, uncertainty_ms = excluded.uncertainty_ms
WHERE excluded.uncertainty_ms < uncertainty_ms;

-- name: next_counter
INSERT INTO command_counter (node_id, boot_nonce, counter) VALUES (:node_id, :boot_nonce, :above + 1)
ON CONFLICT DO UPDATE SET counter = max(counter, :above) + 1 RETURNING counter;

-- name: add_count
INSERT INTO port_count (port, name, count) VALUES (:port, :name, :count)
ON CONFLICT DO UPDATE SET count = count + excluded.count;

-- name: nodes
SELECT node_id, first_seen_utc_ms FROM node ORDER BY node_id;

-- name: journals
SELECT node_id, journal_id, watermark, first_seen_utc_ms FROM journal ORDER BY node_id, journal_id;

-- name: events
SELECT node_id, journal_id, seq, bytes, received_utc_ms FROM event ORDER BY node_id, journal_id, seq;

-- name: settled_events
SELECT event.node_id, event.journal_id, seq, bytes, received_utc_ms
FROM event JOIN journal USING (node_id, journal_id)
WHERE seq <= watermark ORDER BY event.node_id, event.journal_id, seq;

-- name: quarantined
SELECT node_id, journal_id, seq, bytes, received_utc_ms FROM quarantine ORDER BY node_id, journal_id, seq, bytes;

-- name: gaps
SELECT node_id, journal_id, first_seq, last_seq FROM gap ORDER BY node_id, journal_id, first_seq;

-- name: anchors
SELECT node_id, journal_id, boot, mono_ms, utc_ms, uncertainty_ms FROM anchor
ORDER BY node_id, journal_id, boot, mono_ms;

-- name: port_counts
SELECT port, name, count FROM port_count ORDER BY port, name;
