//! Questions, newest first: those to a service, and those of a view by text and state.

use crate::store::sqlite::reader::{self, KINDS_OF_RUN, RowPosition};
use crate::store::sqlite::stored::{self, ATTRIBUTES, FROM, RUN};
use crate::store::{QuestionFilter, ServiceQuery, StoredQuestion, ViewedQuestion};
use rusqlite::{Connection, named_params};

/// The patterns of a text for `LIKE`.
struct Patterns {
    /// In names and uuids.
    plain: String,
    /// In JSON as it is, as text of a JSON string, and as Python writes that by default: in ASCII.
    json: [String; 3],
}

/// A page of the questions to a service.
pub(in crate::store::sqlite) fn questions_to_service(
    connection: &mut Connection,
    query: &ServiceQuery,
) -> rusqlite::Result<Vec<StoredQuestion>> {
    let snapshot = connection.transaction()?;
    let before = RowPosition::before(&snapshot, query.during, query.after.as_ref())?;
    let filter = "e.service = :service AND (:sender IS NULL OR v.sender = :sender)";
    let mut statement = snapshot.prepare_cached(&format!("{} LIMIT :limit", sql(filter)))?;
    let found = statement.query_map(
        named_params! {
            ":service": query.service,
            ":sender": query.sender.as_ref().map(|sender| sender.as_str()),
            ":since": query.during.since.0,
            ":datetime": before.datetime,
            ":id": before.id,
            ":limit": query.limit,
        },
        stored::question,
    )?;
    found.collect()
}

/// A page of the questions of a view. Reads on until enough of them are in the wanted state.
pub(in crate::store::sqlite) fn questions_of_view(
    connection: &mut Connection,
    filter: &QuestionFilter,
) -> rusqlite::Result<Vec<ViewedQuestion>> {
    let snapshot = connection.transaction()?;
    let before = RowPosition::before(&snapshot, filter.during, filter.after.as_ref())?;
    let patterns = filter.text.as_deref().map(Patterns::new);
    let mut statement = snapshot.prepare_cached(&sql(condition(filter)))?;
    let mut bind = |name: &str, value: &dyn rusqlite::ToSql| -> rusqlite::Result<()> {
        match statement.parameter_index(name)? {
            Some(index) => statement.raw_bind_parameter(index, value),
            None => Ok(()),
        }
    };
    bind(":since", &filter.during.since.0)?;
    bind(":datetime", &before.datetime)?;
    bind(":id", &before.id)?;
    bind(":service", &filter.service)?;
    if let Some(Patterns { plain, json }) = &patterns {
        bind(":text", plain)?;
        for (name, pattern) in [":raw", ":json", ":ascii"].into_iter().zip(json) {
            bind(name, pattern)?;
        }
    }
    let mut rows = statement.raw_query();
    let mut found = Vec::new();
    while found.len() < filter.limit as usize
        && let Some(row) = rows.next()?
    {
        let events = reader::run_events(&snapshot, row.get(17)?)?;
        let record = reader::fold(row.get(16)?, &events);
        if filter.state.is_none_or(|state| state == record.state()) {
            found.push(ViewedQuestion { question: stored::question(row)?, record });
        }
    }
    Ok(found)
}

fn condition(filter: &QuestionFilter) -> &'static str {
    match (&filter.service, &filter.text) {
        (None, None) => "TRUE",
        (Some(_), None) => "e.service = :service",
        (None, Some(_)) => TEXT,
        (Some(_), Some(_)) => SERVICE_AND_TEXT,
    }
}

macro_rules! text {
    ($before:literal) => {
        concat!(
            $before,
            "(q.uuid LIKE :text ESCAPE '\\' OR o.uuid LIKE :text ESCAPE '\\' \
             OR p.uuid LIKE :text ESCAPE '\\' OR v.recipient LIKE :text ESCAPE '\\' \
             OR v.parent LIKE :text ESCAPE '\\' OR v.originator LIKE :text ESCAPE '\\' \
             OR CAST(e.data AS TEXT) LIKE :raw ESCAPE '\\' \
             OR CAST(e.data AS TEXT) LIKE :json ESCAPE '\\' \
             OR CAST(e.data AS TEXT) LIKE :ascii ESCAPE '\\')"
        )
    };
}

const TEXT: &str = text!("");
const SERVICE_AND_TEXT: &str = text!("e.service = :service AND ");

/// Without a limit. A later question event of the same run is left out.
fn sql(filter: &str) -> String {
    format!(
        "SELECT {ATTRIBUTES}, {RUN}, e.question {FROM} WHERE {filter} AND e.kind = 'question' \
         AND e.datetime >= :since AND (e.datetime, e.id) < (:datetime, :id) \
         AND NOT EXISTS (SELECT 1 FROM events AS t WHERE t.question = e.question \
             AND t.kind = 'question' AND t.retry_count = e.retry_count AND t.id < e.id \
             AND t.kind IN {KINDS_OF_RUN}) \
         ORDER BY e.datetime DESC, e.id DESC"
    )
}

// === impl Patterns ===

impl Patterns {
    fn new(text: &str) -> Self {
        let quoted = serde_json::to_string(text).expect("a text is JSON");
        let json = &quoted[1..quoted.len() - 1];
        Self { plain: pattern(text), json: [pattern(text), pattern(json), pattern(&ascii(json))] }
    }
}

/// A pattern that finds a text wherever it is.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for letter in text.chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

/// JSON in ASCII: every other letter as UTF-16 with `\u`.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            ' '..='~' => ascii.push(letter),
            _ => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    ascii += &format!("\\u{unit:04x}");
                }
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::reader::tests::plan;

    #[test]
    fn questions_are_read_by_an_index_of_their_time_without_sorting() {
        for (filter, index) in [
            ("TRUE", "events_of_questions"),
            (TEXT, "events_of_questions"),
            ("e.service = :service", "events_of_service"),
            (SERVICE_AND_TEXT, "events_of_service"),
        ] {
            let plan = plan(&sql(filter));
            assert!(plan.contains(&format!("USING INDEX {index} ")), "{plan}");
            assert!(plan.contains("datetime>? AND datetime<?"), "{plan}");
            assert!(plan.contains("USING INDEX events_of_run "), "{plan}");
            assert!(!plan.contains("ORDER BY"), "{plan}");
        }
    }
}
