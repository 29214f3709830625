//! The runs that nobody answered, page by page.

use crate::event::{RunId, SruidBuf, Timestamp};
use crate::store::sqlite::reader;
use crate::store::sqlite::stored::{self, ATTRIBUTES, FROM};
use crate::store::{QuestionCursor, UnansweredQuery, UnansweredQuestion};
use rusqlite::{Connection, named_params};
use uuid::Uuid;

/// Questions of a time, those of the same run that came later left out, without a terminal event.
/// The last term of each part is to the letter as its index says it, or it is not used.
const WHERE: &str = "\
    WHERE e.kind = 'question' AND e.datetime >= :from AND e.datetime < :until \
    AND (e.datetime, e.uuid) > (:datetime, :event) \
    AND NOT EXISTS (SELECT 1 FROM events AS t WHERE t.question = e.question \
        AND t.kind IN ('exception', 'result') AND t.retry_count = e.retry_count \
        AND t.kind IN \
        ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')) \
    AND NOT EXISTS (SELECT 1 FROM events AS t WHERE t.question = e.question \
        AND t.kind = 'question' AND t.retry_count = e.retry_count AND t.id < e.id \
        AND t.kind IN \
        ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')) \
    ORDER BY e.datetime, e.uuid LIMIT :limit";

/// A page of the runs without a terminal event.
pub(in crate::store::sqlite) fn unanswered(
    connection: &mut Connection,
    query: &UnansweredQuery,
) -> rusqlite::Result<Vec<UnansweredQuestion>> {
    // A page and the cancellations of what is on it at one moment.
    let snapshot = connection.transaction()?;
    let mut statement = snapshot.prepare_cached(&sql())?;
    // Before all that has a datetime, where nothing came before.
    let after =
        query.after.unwrap_or(QuestionCursor { datetime: Timestamp(i64::MIN), event: Uuid::nil() });
    let found = statement.query_map(
        named_params! {
            ":from": query.from.0,
            ":until": query.until.0,
            ":datetime": after.datetime.0,
            ":event": after.event.as_bytes(),
            ":limit": query.limit,
        },
        question,
    )?;
    let mut found: Vec<_> = found.collect::<rusqlite::Result<_>>()?;
    for unanswered in &mut found {
        unanswered.cancelled = reader::record(&snapshot, unanswered.run)?.cancelled;
    }
    Ok(found)
}

fn sql() -> String {
    format!("SELECT {ATTRIBUTES}, e.retry_count {FROM} {WHERE}")
}

/// Not known yet to be cancelled.
fn question(row: &rusqlite::Row<'_>) -> rusqlite::Result<UnansweredQuestion> {
    let cursor =
        QuestionCursor { datetime: Timestamp(row.get(1)?), event: Uuid::from_bytes(row.get(2)?) };
    let recipient = row.get_ref(8)?.as_str()?.parse::<SruidBuf>();
    let question = row.get_ref(11)?.as_str()?.parse::<Uuid>();
    Ok(UnansweredQuestion {
        run: RunId {
            question: question.map_err(|error| stored::unreadable(11, error))?,
            retry: row.get(15)?,
        },
        attributes: stored::attributes(row)?.into_iter().collect(),
        recipient: recipient.map_err(|error| stored::unreadable(8, error))?,
        cancelled: false,
        cursor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn a_sweep_reads_the_questions_of_its_time_alone_and_sorts_nothing() {
        let plan = plan(&sql());

        assert!(plan.contains("USING INDEX events_of_questions "), "{plan}");
        assert_eq!(plan.matches("events_of_run ").count(), 2, "{plan}");
        assert!(!plan.contains("ORDER BY"), "{plan}");
    }
}
