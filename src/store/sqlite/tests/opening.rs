//! New files, files of older versions, and files of other programs.

use super::*;

fn refusal(path: &Path) -> String {
    let error = SqliteStore::open(path, Options::default()).unwrap_err();
    Chain(&error).to_string()
}

#[tokio::test]
async fn a_file_that_is_opened_again_has_all_events() {
    let world = World::new();
    append(&world.store, &Sent::new(1, "heartbeat")).await.unwrap();
    let before = world.read(1).await;
    world.store.close().await;

    let store = SqliteStore::open(&world.path, Options::default()).unwrap();

    assert_eq!(read(&store, 1).await, before);
    append(&store, &Sent::new(1, "result")).await.unwrap();
    assert_eq!(read(&store, 1).await.len(), 2);
}

#[test]
fn a_file_has_our_application_id_and_version() {
    let world = World::new();
    let number = |name| {
        world.connection().pragma_query_value(None, name, |row| row.get::<_, i32>(0)).unwrap()
    };

    assert_eq!(number("application_id"), schema::APPLICATION_ID);
    assert_eq!(number("user_version"), schema::VERSION);
}

#[test]
fn every_commit_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let connection = schema::writable(&path, &Options::default()).unwrap();

    let level: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    let journal: String =
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();

    assert_eq!((level, &*journal), (2, "wal"));
}

#[test]
fn an_empty_file_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    std::fs::write(&path, "").unwrap();

    SqliteStore::open(&path, Options::default()).unwrap();
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_unchanged() {
    let world = World::new();
    let newer = schema::VERSION + 1;
    world.sql(&format!("PRAGMA user_version = {newer}"));

    let path = world.path.display();
    assert_eq!(
        refusal(&world.path),
        format!(
            "event store `{path}` has format version 4, this twined reads versions up to 3: use \
             the twined that wrote it or a newer one, or choose another path"
        )
    );
    let found: i32 =
        world.connection().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(found, newer);
}

#[tokio::test]
async fn a_file_of_an_older_version_is_migrated_and_keeps_all() {
    let downgrades = ["", "DROP INDEX events_of_questions; PRAGMA user_version = 1;"];
    for downgrade in downgrades {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let sent = Sent::new(1, "question");
        write_version_2(&path, &sent, downgrade);

        let store = SqliteStore::open(&path, Options::default()).unwrap();

        append(&store, &sent).await.unwrap();
        let found = read(&store, 1).await;
        assert_eq!(found.len(), 1, "the event is recognized");
        assert_eq!(found[0].attributes, sent.attributes.into_iter().collect());
        append(&store, &Sent::new(1, "cancellation").with("sender", PARENT)).await.unwrap();
        let cancelled = store.cancelled_questions(ViewPosition::default(), 10).await.unwrap();
        assert_eq!(cancelled.questions, [Uuid::from_u128(1)]);
        let (service, during) = ("local/local".to_owned(), TimeRange::ALL);
        let query = ServiceQuery { service, sender: None, during, after: None, limit: 10 };
        let questions = History::questions(&store, &query).await.unwrap();
        assert_eq!(questions.len(), 1, "the question is found by its service");
        let query = RejectedQuery { during, after: None, limit: 10 };
        let rejected = store.rejected(&query).await.unwrap();
        assert_eq!(rejected.len(), 1);
        assert_eq!((&*rejected[0].data, &*rejected[0].reason), (&b"{"[..], "data is not JSON"));
        store.close().await;
        assert_eq!(definition(&path), definition(&World::new().path));
    }
}

/// A file as version 2 wrote it, with one event and one rejected message.
fn write_version_2(path: &Path, sent: &Sent, downgrade: &str) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(include_str!("version_2.sql")).unwrap();
    connection.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    let question = &sent.attributes["question_uuid"];
    connection.execute("INSERT INTO questions (uuid) VALUES (?1)", [question]).unwrap();
    connection
        .execute(
            r#"INSERT INTO envelopes VALUES (1, ?1, ?1, ?2, ?1, 'PARENT', '0.69.1',
               '{"retry_count":"0"}')"#,
            [PARENT, SENDER],
        )
        .unwrap();
    connection
        .execute(
            "INSERT INTO events VALUES (1, ?1, ?2, ?3, 'question', 1, NULL, 1, 0, 1, NULL, NULL, \
             '17011', NULL, 1, 19, ?4)",
            rusqlite::params![
                sent.uuid().as_bytes(),
                Digest::from_data(sent.data.as_bytes()).0,
                Timestamp::parse(DATETIME).unwrap().0,
                sent.data.as_bytes(),
            ],
        )
        .unwrap();
    connection
        .execute(
            "INSERT INTO set_aside VALUES (1, '17012', ?1, '', '{', '{}', 'data is not JSON', 7)",
            [Digest::from_data(b"{").0],
        )
        .unwrap();
    connection.execute_batch(downgrade).unwrap();
}

/// The names of all that a file holds, and its indexes to the letter.
fn definition(path: &Path) -> Vec<(String, Option<String>)> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection
        .prepare(
            "SELECT name, CASE type WHEN 'index' THEN sql END FROM sqlite_schema ORDER BY name",
        )
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_file_that_is_no_event_store_is_refused_and_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    let notes = "Not a database, and longer than the header of one. ".repeat(40);
    std::fs::write(&text, &notes).unwrap();
    let other = folder.path().join("other.sqlite");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE notes (text)").unwrap();
    let bytes = std::fs::read(&other).unwrap();

    assert_eq!(
        refusal(&text),
        format!("event store `{}` is not a SQLite database: choose another path", text.display())
    );
    assert_eq!(
        refusal(&other),
        format!(
            "database `{}` is not an event store of twined: choose another path",
            other.display()
        )
    );
    assert_eq!(std::fs::read_to_string(&text).unwrap(), notes);
    assert_eq!(std::fs::read(&other).unwrap(), bytes);
}

#[test]
fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let path = missing.join("events.sqlite");

    assert_eq!(
        refusal(&path),
        format!(
            "no folder `{}` for event store `{}`: create it, or choose another path",
            missing.display(),
            path.display()
        )
    );
    assert_eq!(
        refusal(folder.path()),
        format!("event store `{}` is a folder: choose the path of a file", folder.path().display())
    );
}

/// Not even root can create files in `/sys`.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_is_not_writable_is_named() {
    let text = refusal(Path::new("/sys/events.sqlite"));

    assert!(
        text.starts_with(
            "cannot write event store `/sys/events.sqlite`: its folder, and the file if there is \
             one, must be writable: "
        ),
        "{text}"
    );
}

#[test]
fn a_read_only_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let path = world.path.clone();
    drop(world.store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();

    // Root can write it in spite of its mode.
    match SqliteStore::open(&path, Options::default()) {
        Ok(_) => assert!(std::fs::OpenOptions::new().append(true).open(&path).is_ok()),
        Err(error) => assert!(matches!(error, OpenError::NotWritable { .. }), "{error}"),
    }
}

/// SQLite's `unix-none` takes no locks, as if the file system granted every lock.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_without_locks_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");

    let error = schema::writable_by(&path, &Options::default(), Some("unix-none")).unwrap_err();

    assert!(matches!(error, OpenError::NoLocks { .. }), "{error}");
    assert_eq!(std::fs::metadata(&path).map_or(0, |file| file.len()), 0);
}

#[test]
fn opening_leaves_nothing_behind_but_the_store() {
    let world = World::new();
    drop(world.store);

    let left = std::fs::read_dir(world.path.parent().unwrap()).unwrap();

    let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["events.sqlite"]);
}
