//! The cost of a subscription's filter: of parsing it, and of matching a message.
#![expect(missing_docs, reason = "criterion's macros make public items without any")]

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use twined::pubsub::emulator::filter::Filter;

/// The filter of the subscription that the SDK creates for each question.
const ANSWERS: &str = r#"attributes.recipient = "octue/parent:1.0.0" AND attributes.question_uuid = "2bf9a8a1-6b3e-4f0c-8b0e-0d7c1f4b7a10" AND attributes.sender_type = "CHILD""#;

fn attributes(question_uuid: &str) -> HashMap<String, String> {
    [
        ("datetime", "2026-11-23T10:00:00.000000"),
        ("uuid", "b8f0a4a2-0f5d-4e57-9a1c-5d1f6f1f0a11"),
        ("question_uuid", question_uuid),
        ("originator_question_uuid", question_uuid),
        ("parent", "octue/parent:1.0.0"),
        ("originator", "octue/parent:1.0.0"),
        ("sender", "octue/child:1.0.0"),
        ("sender_type", "CHILD"),
        ("sender_sdk_version", "0.69.1"),
        ("recipient", "octue/parent:1.0.0"),
        ("retry_count", "0"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn filter(c: &mut Criterion) {
    let filter = Filter::parse(ANSWERS).expect("the SDK's filter is valid");
    let mine = attributes("2bf9a8a1-6b3e-4f0c-8b0e-0d7c1f4b7a10");
    let other = attributes("ffffffff-6b3e-4f0c-8b0e-0d7c1f4b7a10");
    assert!(filter.matches(&mine) && !filter.matches(&other));

    c.bench_function("filter/parse", |b| b.iter(|| Filter::parse(black_box(ANSWERS))));
    c.bench_function("filter/match", |b| b.iter(|| filter.matches(black_box(&mine))));
    c.bench_function("filter/no match", |b| b.iter(|| filter.matches(black_box(&other))));
}

criterion_group!(benches, filter);
criterion_main!(benches);
