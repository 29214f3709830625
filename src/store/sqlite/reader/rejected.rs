//! Rejected messages, newest first.

use crate::store::sqlite::stored::{self, REJECTED};
use crate::store::{RejectedCursor, RejectedQuery, StoredRejectedMessage};
use rusqlite::{Connection, OptionalExtension, named_params, params};

/// A page of the rejected messages of a time.
pub(in crate::store::sqlite) fn rejected(
    connection: &mut Connection,
    query: &RejectedQuery,
) -> rusqlite::Result<Vec<StoredRejectedMessage>> {
    let snapshot = connection.transaction()?;
    let until = query.during.until.0;
    let (at, id) = match &query.after {
        Some(cursor) if cursor.at.0 < until => (cursor.at.0, id(&snapshot, cursor)?),
        Some(_) | None => (until, 0),
    };
    let mut statement = snapshot.prepare_cached(&sql())?;
    let found = statement.query_map(
        named_params! {
            ":since": query.during.since.0,
            ":at": at,
            ":id": id,
            ":limit": query.limit,
        },
        stored::rejected,
    )?;
    found.collect()
}

fn id(connection: &Connection, cursor: &RejectedCursor) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT id FROM rejected WHERE message_id = ?1 AND digest = ?2")?
        .query_row(params![cursor.message_id, cursor.digest], |row| row.get(0))
        .optional()
        .map(Option::unwrap_or_default)
}

fn sql() -> String {
    format!(
        "SELECT {REJECTED} FROM rejected WHERE at >= :since AND (at, id) < (:at, :id) \
         ORDER BY at DESC, id DESC LIMIT :limit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn rejected_messages_are_read_by_an_index_of_their_time_without_sorting() {
        let plan = plan(&sql());

        assert!(plan.contains("USING INDEX rejected_by_time (at>? AND at<?)"), "{plan}");
        assert!(!plan.contains("ORDER BY"), "{plan}");
    }
}
