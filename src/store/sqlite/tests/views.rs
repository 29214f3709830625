//! The SQL views that people read with any SQLite. Every expected text is written out.

use super::*;

/// A view's rows, with its columns' names.
fn view(world: &World, sql: &str) -> Vec<Vec<(String, Option<String>)>> {
    let connection = world.connection();
    let mut statement = connection.prepare(sql).unwrap();
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| {
        names.iter().map(|name| Ok((name.clone(), row.get(&**name)?))).collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn column(world: &World, name: &str) -> Vec<String> {
    let rows = view(world, &format!("SELECT {name} FROM service_events ORDER BY datetime"));
    rows.into_iter().map(|mut row| row.remove(0).1.unwrap()).collect()
}

#[tokio::test]
async fn events_are_shown_with_the_columns_of_the_table_in_bigquery() {
    let world = World::new();
    let root = Uuid::from_u128(0x1234_5678_9abc_def0_0123_4567_89ab_cdef).to_string();
    let mut sent = Sent::new(1, "result")
        .with("uuid", "0c5f7c76-5d0e-4b1e-9f3a-1d2c3b4a5968")
        .with("originator_question_uuid", &root)
        .with("parent_question_uuid", &root)
        .with("originator", "octue/root:0.1.0")
        .with("cpus", "2")
        .with("a \"newer\" one", "é");
    sent.data = r#"{"output_values": [1.0, NaN], "kind": "result"}"#.to_owned();

    append(&world.store, &sent).await.unwrap();

    let question = "00000000-0000-0000-0000-000000000001";
    let backend_metadata = format!(r#"{{"message_id":"17011","ordering_key":"{question}"}}"#);
    let expected = [
        ("datetime", "2026-01-31T12:00:00.000007+00:00"),
        ("uuid", "0c5f7c76-5d0e-4b1e-9f3a-1d2c3b4a5968"),
        ("kind", "result"),
        ("event", r#"{"output_values": [1.0, NaN]}"#),
        ("other_attributes", r#"{"cpus":"2","retry_count":"0","a \"newer\" one":"é"}"#),
        ("originator", "octue/root:0.1.0"),
        ("parent", "local/local:local"),
        ("sender", "octue/child:1.2.0"),
        ("sender_type", "CHILD"),
        ("sender_sdk_version", "0.69.1"),
        ("recipient", "local/local:local"),
        ("originator_question_uuid", "12345678-9abc-def0-0123-456789abcdef"),
        ("parent_question_uuid", "12345678-9abc-def0-0123-456789abcdef"),
        ("question_uuid", question),
        ("backend", BACKEND),
        ("backend_metadata", &backend_metadata),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), Some(text.to_owned())));
    assert_eq!(view(&world, "SELECT * FROM service_events"), [expected]);
}

#[tokio::test]
async fn events_of_every_shape_are_shown_right() {
    let world = World::new();
    let shaped = |data: &str| {
        let mut sent = Sent::new(1, "result");
        data.clone_into(&mut sent.data);
        sent
    };
    let mut last = shaped(r#"{"a": 1, "kind": "result" , "b": "é"}"#)
        .with("datetime", "2026-01-31T12:00:00.25+02:00")
        .with("parent_question_uuid", "null");
    last.ordering_key.clear();
    last.message_id = "\"".to_owned();
    let sent = [
        shaped(r#"{"kind":"result"}"#).with("datetime", "1969-12-31T23:59:58.999999Z"),
        shaped(r#"{"kind": "result", "é": "kind"}"#).with("datetime", "1970-01-01T00:00:00"),
        last,
    ];

    append_all(&world.store, &sent).await.unwrap();

    assert_eq!(
        column(&world, "datetime"),
        [
            "1969-12-31T23:59:58.999999+00:00",
            "1970-01-01T00:00:00.000000+00:00",
            "2026-01-31T10:00:00.250000+00:00",
        ]
    );
    assert_eq!(column(&world, "event"), ["{}", r#"{"é": "kind"}"#, r#"{"a": 1, "b": "é"}"#]);
    assert_eq!(column(&world, "backend_metadata")[2], r#"{"message_id":"\"","ordering_key":null}"#);
    let orphans =
        view(&world, "SELECT kind FROM service_events WHERE parent_question_uuid IS NULL");
    assert_eq!(orphans.len(), 3);
}

#[tokio::test]
async fn a_query_by_question_uuid_uses_the_index_of_questions() {
    let world = World::new();
    let connection = world.connection();
    let mut statement = connection
        .prepare(
            "EXPLAIN QUERY PLAN SELECT event FROM service_events \
             WHERE question_uuid = '00000000-0000-0000-0000-000000000001' ORDER BY datetime",
        )
        .unwrap();
    let lines = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();

    let plan: Vec<_> = lines.map(Result::unwrap).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("events_of_question"), "{plan}");
    assert!(!plan.contains("SCAN e"), "{plan}");
}

#[tokio::test]
async fn a_rejected_message_is_shown_whole_and_once() {
    let world = World::new();
    let attributes = HashMap::from([("kind".to_owned(), "\"odd\"".to_owned())]);
    let text = RejectedMessage {
        message_id: "17",
        ordering_key: "",
        data: "{\"kïnd\"".as_bytes(),
        attributes: &attributes,
        reason: "data is not a JSON object",
        at: Timestamp(1_769_860_800_000_007),
    };
    let bytes = RejectedMessage { data: b"\xff\x00", ordering_key: "q", ..text };
    let nul = RejectedMessage { data: b"a\x00b", ..text };

    for message in [text, bytes, nul, text, RejectedMessage { reason: "another", ..bytes }] {
        world.store.reject(&message).await.unwrap();
    }

    let connection = world.connection();
    let mut statement = connection
        .prepare("SELECT *, typeof(data), CAST(data AS BLOB) FROM rejected_messages")
        .unwrap();
    type Seen = (String, String, String, Option<String>, String, i64, String, Vec<u8>);
    let seen: Vec<Seen> = statement
        .query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
                row.get(7)?,
                row.get(8)?,
            ))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let expected = |message: &RejectedMessage<'_>, bytes, kind: &str| {
        (
            "2026-01-31T12:00:00.000007+00:00".to_owned(),
            "data is not a JSON object".to_owned(),
            "17".to_owned(),
            Some(message.ordering_key.to_owned()).filter(|key| !key.is_empty()),
            r#"{"kind":"\"odd\""}"#.to_owned(),
            bytes,
            kind.to_owned(),
            message.data.to_vec(),
        )
    };
    assert_eq!(
        seen,
        [expected(&text, 8, "text"), expected(&bytes, 2, "blob"), expected(&nul, 3, "blob")]
    );
}
