//! The cancelled questions that came after a position.

use crate::store::sqlite::reader::{self, KINDS_OF_RUN};
use crate::store::sqlite::stored;
use crate::store::{CancelledQuestions, ViewPosition};
use rusqlite::Connection;
use std::collections::HashSet;

/// A page of the questions that are cancelled now. Rows whose cancellation is not accepted do not
/// count, so only a full page has others behind it.
pub(in crate::store::sqlite) fn cancelled_questions(
    connection: &mut Connection,
    after: ViewPosition,
    limit: u32,
) -> rusqlite::Result<CancelledQuestions> {
    let snapshot = connection.transaction()?;
    let mut statement = snapshot.prepare_cached(&sql())?;
    let mut candidates = statement.query([after.0])?;
    let mut page = CancelledQuestions { questions: Vec::new(), position: after };
    let mut reported = HashSet::new();
    while page.questions.len() < limit as usize
        && let Some(row) = candidates.next()?
    {
        page.position = ViewPosition(row.get(0)?);
        let question: i64 = row.get(1)?;
        if !reported.contains(&question)
            && reader::is_cancelled(&reader::run_events(&snapshot, question)?)
        {
            reported.insert(question);
            page.questions.push(stored::uuid(row, 2)?);
        }
    }
    Ok(page)
}

/// Cancellations, and questions that had been cancelled when they came, in the order of
/// arrival. Left to itself the planner reads every row from the position on.
fn sql() -> String {
    format!(
        "SELECT e.id, e.question, q.uuid FROM events AS e INDEXED BY events_of_cancellable \
         JOIN questions AS q ON q.id = e.question \
         WHERE e.kind IN ('question', 'cancellation') AND e.id > ?1 \
         AND EXISTS (SELECT 1 FROM events AS c WHERE c.question = e.question \
             AND c.kind = 'cancellation' AND c.id <= e.id AND c.kind IN {KINDS_OF_RUN}) \
         ORDER BY e.id"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn cancellations_are_followed_by_their_index_without_sorting() {
        let plan = plan(&sql());

        assert!(plan.contains("INDEX events_of_cancellable "), "{plan}");
        assert!(plan.contains("INDEX events_of_run "), "{plan}");
        assert!(!plan.contains("ORDER BY"), "{plan}");
    }
}
