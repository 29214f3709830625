//! The cancelled questions that came after a position.

use crate::store::sqlite::reader;
use crate::store::sqlite::stored;
use crate::store::{CancelledQuestions, ViewPosition};
use rusqlite::Connection;
use std::collections::HashSet;
use uuid::Uuid;

/// Cancellations, and questions that had been cancelled when they came, in the order of arrival.
/// The planner would rather read all rows from the position on.
const CANDIDATES: &str = "\
    SELECT e.id, e.question, q.uuid FROM events AS e INDEXED BY events_of_cancellable \
    JOIN questions AS q ON q.id = e.question \
    WHERE e.kind IN ('question', 'cancellation') AND e.id > ?1 \
    AND EXISTS (SELECT 1 FROM events AS c WHERE c.question = e.question \
        AND c.kind = 'cancellation' AND c.id <= e.id \
        AND c.kind IN \
        ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')) \
    ORDER BY e.id";

/// A page of the questions that are cancelled now. Rows whose cancellation is not accepted are passed
/// over, so only a full page has others behind it.
pub(in crate::store::sqlite) fn cancelled_questions(
    connection: &mut Connection,
    after: ViewPosition,
    limit: u32,
) -> rusqlite::Result<CancelledQuestions> {
    let snapshot = connection.transaction()?;
    let mut statement = snapshot.prepare_cached(CANDIDATES)?;
    let mut candidates = statement.query([after.0])?;
    let mut page = CancelledQuestions { questions: Vec::new(), position: after };
    let mut reported = HashSet::new();
    while page.questions.len() < limit as usize
        && let Some(row) = candidates.next()?
    {
        page.position = ViewPosition(row.get(0)?);
        let question: i64 = row.get(1)?;
        if !reported.contains(&question)
            && reader::is_cancelled(&reader::said(&snapshot, question)?)
        {
            reported.insert(question);
            let uuid = row.get_ref(2)?.as_str()?.parse::<Uuid>();
            page.questions.push(uuid.map_err(|error| stored::unreadable(2, error))?);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn cancellations_are_followed_by_their_index_and_sorted_by_nothing() {
        let plan = plan(CANDIDATES);

        assert!(plan.contains("INDEX events_of_cancellable "), "{plan}");
        assert!(plan.contains("INDEX events_of_run "), "{plan}");
        assert!(!plan.contains("ORDER BY"), "{plan}");
    }
}
