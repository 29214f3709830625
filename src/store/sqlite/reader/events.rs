//! The events of a question or of a tree.

use crate::store::sqlite::reader::{self, RowPosition};
use crate::store::sqlite::stored::{self, ATTRIBUTES, CONTENTS, FROM};
use crate::store::{EventQuery, EventScope, StoredEvent};
use rusqlite::{Connection, named_params};

/// The events of a query, in the order of their datetimes, then of arrival.
pub(in crate::store::sqlite) fn events(
    connection: &mut Connection,
    query: &EventQuery,
) -> rusqlite::Result<Vec<StoredEvent>> {
    // A tree is read in two parts, which must be of one moment.
    let snapshot = connection.transaction()?;
    let (EventScope::Question(uuid) | EventScope::Parent(uuid) | EventScope::Originator(uuid)) =
        query.scope;
    let Some(question) = reader::id(&snapshot, uuid)? else { return Ok(Vec::new()) };
    let after = RowPosition::behind(&snapshot, query.during, query.after.as_ref())?;
    let mut found = Vec::new();
    for filter in filters(query.scope) {
        select(&snapshot, query, question, after, filter, &mut found)?;
    }
    found.sort_by_key(|read| (read.datetime, read.id));
    let limit = query.limit as usize;
    if query.tail {
        found.drain(..found.len().saturating_sub(limit));
    }
    found.truncate(limit);
    Ok(found.into_iter().map(|read| read.event).collect())
}

/// The parts of a scope. One index answers each, in order.
fn filters(scope: EventScope) -> &'static [&'static str] {
    match scope {
        EventScope::Question(_) => &["e.question = :question"],
        EventScope::Parent(_) => &["e.parent_question = :question"],
        EventScope::Originator(_) => &[
            "e.question = :question AND e.originator_question = :question",
            "e.originator_question = :question AND e.originator_question <> e.question",
        ],
    }
}

fn select(
    connection: &Connection,
    query: &EventQuery,
    question: i64,
    after: RowPosition,
    filter: &str,
    found: &mut Vec<stored::ReadEvent>,
) -> rusqlite::Result<()> {
    let json = |kinds: &[String]| serde_json::to_string(kinds).expect("texts are JSON");
    let mut statement = connection.prepare_cached(&sql(filter, query.tail))?;
    let rows = statement.query_map(
        named_params! {
            ":question": question,
            ":datetime": after.datetime,
            ":id": after.id,
            ":until": query.during.until.0,
            ":sender": query.sender.as_ref().map(|sender| sender.as_str()),
            ":kinds": json(&query.kinds),
            ":excluded": json(&query.exclude_kinds),
            ":limit": query.limit,
        },
        stored::event,
    )?;
    for row in rows {
        found.push(row?);
    }
    Ok(())
}

fn sql(filter: &str, tail: bool) -> String {
    let way = if tail { "DESC" } else { "ASC" };
    format!(
        "SELECT {ATTRIBUTES}, {CONTENTS} {FROM} WHERE {filter} \
         AND (e.datetime, e.id) > (:datetime, :id) AND e.datetime < :until \
         AND (:sender IS NULL OR v.sender = :sender) \
         AND (:kinds = '[]' OR e.kind IN (SELECT value FROM json_each(:kinds))) \
         AND e.kind NOT IN (SELECT value FROM json_each(:excluded)) \
         ORDER BY e.datetime {way}, e.id {way} LIMIT :limit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;
    use uuid::Uuid;

    #[test]
    fn every_scope_is_read_by_its_index_without_sorting() {
        let indexes = [
            (EventScope::Question as fn(Uuid) -> EventScope, vec!["events_of_question"]),
            (EventScope::Parent, vec!["events_of_parent"]),
            (EventScope::Originator, vec!["events_of_question", "events_of_originator"]),
        ];
        for (scope, indexes) in indexes {
            let filters = filters(scope(Uuid::nil()));
            assert_eq!(filters.len(), indexes.len());
            for (filter, index) in filters.iter().zip(indexes) {
                for tail in [false, true] {
                    let plan = plan(&sql(filter, tail));
                    assert!(plan.contains(&format!("USING INDEX {index} ")), "{plan}");
                    assert!(plan.contains("datetime>"), "{plan}");
                    assert!(!plan.contains("ORDER BY"), "{plan}");
                }
            }
        }
    }
}
