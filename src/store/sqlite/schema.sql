-- What repeats is written once: the uuid of a question, which all of its events carry, and the
-- attributes that all events between the same two services share. An event's row has the rest.
-- `WITHOUT ROWID`, `STRICT` and generated columns are left alone, so that the SQLite of an older
-- Python reads the file too.

-- As text, so that a query of the view below by `question_uuid` finds its index.
CREATE TABLE questions (
    id INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE
);

CREATE TABLE envelopes (
    id INTEGER PRIMARY KEY,
    parent TEXT NOT NULL,
    originator TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipient TEXT NOT NULL,
    sender_type TEXT NOT NULL,
    sender_sdk_version TEXT NOT NULL,
    other_attributes TEXT NOT NULL, -- JSON: the known attributes that have no column
    UNIQUE (sender, recipient, parent, originator, sender_type, sender_sdk_version, other_attributes)
);

CREATE TABLE events (
    id INTEGER PRIMARY KEY, -- in the order of arrival
    uuid BLOB NOT NULL,
    digest BLOB NOT NULL, -- of the data: the SDK sometimes gives two events one uuid
    datetime INTEGER NOT NULL, -- microseconds since 1970
    kind TEXT NOT NULL,
    question INTEGER NOT NULL REFERENCES questions,
    parent_question INTEGER REFERENCES questions,
    originator_question INTEGER NOT NULL REFERENCES questions,
    retry_count INTEGER NOT NULL,
    envelope INTEGER NOT NULL REFERENCES envelopes,
    other_attributes TEXT, -- JSON: the attributes of names that we do not know, where there are any
    as_written TEXT, -- JSON: the attributes whose text is not what their columns give back
    service TEXT, -- of the recipient, `<namespace>/<name>`; NULL where the event is no question
    message_id TEXT NOT NULL,
    ordering_key TEXT, -- NULL where it is the question's uuid, as it nearly always is
    kind_start INTEGER NOT NULL, -- of the bytes of `data` that hold the member `kind`
    kind_end INTEGER NOT NULL,
    data BLOB NOT NULL -- last, so that the columns before it are read without it
);

-- The question first: the events of the questions that run now are near each other, and the uuids of
-- all events are not.
CREATE UNIQUE INDEX events_once ON events (question, uuid, digest);
CREATE INDEX events_of_question ON events (question, datetime);
CREATE INDEX events_of_parent ON events (parent_question, datetime)
    WHERE parent_question IS NOT NULL;
-- The root's own events are found by the index above.
CREATE INDEX events_of_originator ON events (originator_question, datetime)
    WHERE originator_question <> question;
-- The few events that decide how far a run is, so that a long log costs their readers nothing.
CREATE INDEX events_of_run ON events (question, kind)
    WHERE kind IN ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result');
-- Questions by time, of all services and of one. (Each index ends with the id, so a cursor has a
-- place among rows of one datetime.)
CREATE INDEX events_of_questions ON events (datetime) WHERE kind = 'question';
CREATE INDEX events_of_service ON events (service, datetime) WHERE kind = 'question';
-- Questions and cancellations in the order of arrival, for those who follow cancellations.
CREATE INDEX events_of_cancellable ON events (id) WHERE kind IN ('question', 'cancellation');

CREATE TABLE rejected (
    id INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL,
    digest BLOB NOT NULL, -- of the data
    ordering_key TEXT NOT NULL,
    data NOT NULL, -- TEXT where it is text, else a BLOB
    attributes TEXT NOT NULL, -- JSON
    reason TEXT NOT NULL,
    at INTEGER NOT NULL -- microseconds since 1970
);

CREATE UNIQUE INDEX rejected_once ON rejected (message_id, digest);
CREATE INDEX rejected_by_time ON rejected (at);

-- The table that networks have in BigQuery, column by column.
CREATE VIEW service_events AS
SELECT
    -- Whole seconds rounded down, also before 1970.
    strftime('%Y-%m-%dT%H:%M:%S', (e.datetime - (e.datetime % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || printf('.%06d+00:00', (e.datetime % 1000000 + 1000000) % 1000000) AS datetime,
    lower(substr(hex(e.uuid), 1, 8) || '-' || substr(hex(e.uuid), 9, 4) || '-'
        || substr(hex(e.uuid), 13, 4) || '-' || substr(hex(e.uuid), 17, 4) || '-'
        || substr(hex(e.uuid), 21)) AS uuid,
    e.kind AS kind,
    CAST(substr(e.data, 1, e.kind_start) || substr(e.data, e.kind_end + 1) AS TEXT) AS event,
    CASE
        WHEN e.other_attributes IS NULL THEN v.other_attributes
        ELSE json_patch(v.other_attributes, e.other_attributes)
    END AS other_attributes,
    v.originator AS originator,
    v.parent AS parent,
    v.sender AS sender,
    v.sender_type AS sender_type,
    v.sender_sdk_version AS sender_sdk_version,
    v.recipient AS recipient,
    o.uuid AS originator_question_uuid,
    p.uuid AS parent_question_uuid,
    q.uuid AS question_uuid,
    'GoogleCloudPubSub' AS backend,
    json_object(
        'message_id', e.message_id,
        'ordering_key', nullif(coalesce(e.ordering_key, q.uuid), '')
    ) AS backend_metadata
FROM events AS e
JOIN questions AS q ON q.id = e.question
JOIN questions AS o ON o.id = e.originator_question
JOIN envelopes AS v ON v.id = e.envelope
LEFT JOIN questions AS p ON p.id = e.parent_question;

-- For people: the messages that could not be handled, and why.
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
