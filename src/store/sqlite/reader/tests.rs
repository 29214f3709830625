use super::*;

pub(super) fn plan(sql: &str) -> String {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../schema.sql")).unwrap();
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let mut rows = statement.raw_query();
    let mut plan = String::new();
    while let Some(row) = rows.next().unwrap() {
        plan += &row.get::<_, String>(3).unwrap();
        plan.push('\n');
    }
    plan
}

#[test]
fn an_event_is_looked_up_by_its_question_and_uuid() {
    for sql in [HAS, ROW] {
        let plan = plan(sql);
        assert!(plan.contains("INDEX events_once (question=? AND uuid=?"), "{plan}");
    }
}

#[test]
fn the_record_of_a_run_is_read_by_the_index_of_the_few_events_that_decide_it() {
    let plan = plan(&run_events_sql());

    assert!(plan.contains("USING INDEX events_of_run "), "{plan}");
}

#[test]
fn the_datetime_of_a_question_is_read_by_the_index_of_the_few_events_that_decide_its_runs() {
    let plan = plan(&asked_at_sql());

    assert!(plan.contains("USING INDEX events_of_run "), "{plan}");
}
