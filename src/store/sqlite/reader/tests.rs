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
fn every_read_goes_by_its_index_and_sorts_nothing() {
    let indexes = [
        (EventScope::Question as fn(Uuid) -> EventScope, vec!["events_of_question"]),
        (EventScope::Parent, vec!["events_of_parent"]),
        (EventScope::Originator, vec!["events_of_question", "events_of_originator"]),
    ];
    for (of, indexes) in indexes {
        let filters = filters(of(Uuid::nil()));
        assert_eq!(filters.len(), indexes.len());
        for (filter, index) in filters.iter().zip(indexes) {
            for tail in [false, true] {
                let plan = plan(&sql(filter, tail));
                assert!(plan.contains(&format!("USING INDEX {index} ")), "{plan}");
                assert!(!plan.contains("ORDER BY"), "{plan}");
            }
        }
    }
}

#[test]
fn a_look_at_a_run_reads_only_what_speaks_of_it() {
    let plan = plan(&of_run());

    assert!(plan.contains("USING INDEX events_of_run "), "{plan}");
}

#[test]
fn a_look_at_when_a_question_was_asked_reads_only_what_speaks_of_it() {
    let plan = plan(ASKED);

    assert!(plan.contains("USING INDEX events_of_run "), "{plan}");
}
