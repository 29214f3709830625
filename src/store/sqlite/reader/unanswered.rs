//! The runs without a terminal event.

use crate::store::sqlite::reader::{self, KINDS_OF_RUN, RowPosition};
use crate::store::sqlite::stored::{self, ATTRIBUTES, FROM, RUN};
use crate::store::{StoredQuestion, UnansweredQuery, UnansweredQuestion};
use rusqlite::{Connection, named_params};

/// A page of the runs without a terminal event.
pub(in crate::store::sqlite) fn unanswered(
    connection: &mut Connection,
    query: &UnansweredQuery,
) -> rusqlite::Result<Vec<UnansweredQuestion>> {
    // A page and its cancellations must be of one moment.
    let snapshot = connection.transaction()?;
    let after = RowPosition::behind(&snapshot, query.during, query.after.as_ref())?;
    let mut statement = snapshot.prepare_cached(&sql())?;
    let mut rows = statement.query(named_params! {
        ":datetime": after.datetime,
        ":id": after.id,
        ":until": query.during.until.0,
        ":limit": query.limit,
    })?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let StoredQuestion { run, attributes, recipient, cursor } = stored::question(row)?;
        let cancelled = reader::is_cancelled(&reader::run_events(&snapshot, row.get(17)?)?);
        found.push(UnansweredQuestion { run, attributes, recipient, cancelled, cursor });
    }
    Ok(found)
}

/// A later question event of the same run is left out.
fn sql() -> String {
    format!(
        "SELECT {ATTRIBUTES}, {RUN}, e.question {FROM} WHERE e.kind = 'question' \
         AND (e.datetime, e.id) > (:datetime, :id) AND e.datetime < :until \
         AND NOT EXISTS (SELECT 1 FROM events AS t WHERE t.question = e.question \
             AND t.kind IN ('exception', 'result') AND t.retry_count = e.retry_count \
             AND t.kind IN {KINDS_OF_RUN}) \
         AND NOT EXISTS (SELECT 1 FROM events AS t WHERE t.question = e.question \
             AND t.kind = 'question' AND t.retry_count = e.retry_count AND t.id < e.id \
             AND t.kind IN {KINDS_OF_RUN}) \
         ORDER BY e.datetime, e.id LIMIT :limit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn unanswered_questions_are_read_by_an_index_of_their_time_without_sorting() {
        let plan = plan(&sql());

        assert!(plan.contains("USING INDEX events_of_questions "), "{plan}");
        assert_eq!(plan.matches("events_of_run ").count(), 2, "{plan}");
        assert!(!plan.contains("ORDER BY"), "{plan}");
    }
}
