CREATE INDEX events_of_cancellable ON events (id) WHERE kind IN ('question', 'cancellation');

DROP INDEX events_once;
CREATE UNIQUE INDEX events_once ON events (question, uuid, digest);

DROP INDEX events_of_questions;
CREATE INDEX events_of_questions ON events (datetime) WHERE kind = 'question';
ALTER TABLE events ADD COLUMN service TEXT;
UPDATE events
SET service = (
    SELECT substr(recipient, 1, instr(recipient, ':') - 1) FROM envelopes WHERE id = events.envelope
)
WHERE kind = 'question';
CREATE INDEX events_of_service ON events (service, datetime) WHERE kind = 'question';

DROP VIEW messages_set_aside;
DROP INDEX set_aside_once;
ALTER TABLE set_aside RENAME TO rejected;
CREATE UNIQUE INDEX rejected_once ON rejected (message_id, digest);
CREATE INDEX rejected_by_time ON rejected (at);
CREATE VIEW rejected_messages AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%S', (at - (at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || printf('.%06d+00:00', (at % 1000000 + 1000000) % 1000000) AS rejected_at,
    reason,
    message_id,
    nullif(ordering_key, '') AS ordering_key,
    attributes,
    length(CAST(data AS BLOB)) AS bytes,
    data
FROM rejected
ORDER BY id;
