use std::collections::HashMap;

use proptest::prelude::*;

use super::{Filter, FilterError, MAX_LENGTH, Term, parse};

fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[track_caller]
fn wants(filter: &str, pairs: &[(&str, &str)]) -> bool {
    Filter::parse(filter).unwrap().matches(&attributes(pairs))
}

#[track_caller]
fn refusal(filter: &str) -> String {
    Filter::parse(filter).unwrap_err().to_string()
}

#[test]
fn presence_asks_for_the_key_alone() {
    assert!(wants("attributes:domain", &[("domain", "")]));
    assert!(!wants("attributes:domain", &[("Domain", "com")]));
}

#[test]
fn equality_asks_for_key_and_value() {
    assert!(wants(r#"attributes.domain = "com""#, &[("domain", "com")]));
    assert!(wants(r#"attributes.domain="com""#, &[("domain", "com")]));
    assert!(!wants(r#"attributes.domain = "com""#, &[("domain", "Com")]));
    assert!(!wants(r#"attributes.domain = "com""#, &[]));
}

#[test]
fn inequality_also_wants_messages_without_the_key() {
    assert!(wants(r#"attributes.domain != "com""#, &[("domain", "org")]));
    assert!(wants(r#"attributes.domain != "com""#, &[]));
    assert!(!wants(r#"attributes.domain != "com""#, &[("domain", "com")]));
}

#[test]
fn a_prefix_needs_the_key() {
    assert!(wants(r#"hasPrefix(attributes.domain, "co")"#, &[("domain", "com")]));
    assert!(!wants(r#"hasPrefix(attributes.domain, "co")"#, &[("domain", "c")]));
    assert!(!wants(r#"hasPrefix(attributes.domain, "")"#, &[]));
}

#[test]
fn operators_combine() {
    let filter = r#"attributes:a AND (attributes.b = "1" OR -attributes:c) AND NOT attributes:d"#;
    assert!(wants(filter, &[("a", ""), ("b", "1"), ("c", "")]));
    assert!(wants(filter, &[("a", "")]));
    assert!(!wants(filter, &[("a", ""), ("b", "2"), ("c", "")]));
    assert!(!wants(filter, &[("a", ""), ("d", "")]));
    assert!(wants("NOT (attributes:a OR attributes:b)", &[]));
    assert!(wants("NOT(attributes:a)", &[]));
}

#[test]
fn the_filter_of_the_sdk_is_read() {
    let filter = r#"attributes.recipient = "octue/test:1" AND attributes.question_uuid = "q" AND attributes.sender_type = "CHILD""#;
    let answer = [("recipient", "octue/test:1"), ("question_uuid", "q"), ("sender_type", "CHILD")];
    assert!(wants(filter, &answer));
    assert!(!wants(filter, &answer[..2]));
}

#[test]
fn keys_may_be_quoted() {
    assert!(wants(r#"attributes:"iana.org/language_tag""#, &[("iana.org/language_tag", "en")]));
    assert!(wants(r#"attributes."x y" = "1""#, &[("x y", "1")]));
    assert!(wants(r#"attributes.my-key_1 = "1""#, &[("my-key_1", "1")]));
    assert!(wants("attributes:AND", &[("AND", "")]));
}

#[test]
fn strings_hold_escapes() {
    let filter = r#"attributes.k = "\"\\\n\t\x41\u307F\U0001F600\101é""#;
    assert!(wants(filter, &[("k", "\"\\\n\tA\u{307f}\u{1f600}Aé")]));
}

#[test]
fn a_refusal_names_the_place_and_what_was_expected() {
    assert_eq!(
        refusal("attributes.a = 1"),
        "at byte 15: expected a string in double quotes, found `1`"
    );
    assert_eq!(refusal("attributes.a"), "at byte 12: expected `=` or `!=`, found the end");
    assert_eq!(
        refusal("attributes:a and attributes:b"),
        "at byte 13: expected `AND`, `OR` or the end, found `and attributes:b`"
    );
    assert_eq!(
        refusal("attributes:a AND attributes:b OR attributes:c"),
        "at byte 30: expected parentheses, for `AND` and `OR` are mixed"
    );
    assert_eq!(
        refusal(r#"attributes.a = "x"#),
        "at byte 17: expected the closing `\"`, found the end"
    );
}

#[test]
fn what_google_refuses_is_refused() {
    for filter in [
        "",
        "attributes",
        "attributes:",
        "attributes:a AND",
        "attributes:a attributes:b",
        "NOT NOT attributes:a",
        "labels:a",
        "Attributes:a",
        "attributes.a.b = \"c\"",
        "attributes.a = 'c'",
        "attributes.a == \"c\"",
        "attributes.a < \"c\"",
        "hasprefix(attributes.a, \"b\")",
        "hasPrefix(attributes:a, \"b\")",
        "hasPrefix(attributes.a)",
        "(attributes:a",
        "attributes:a)",
        "()",
        "attributes.a = \"\\q\"",
        "attributes.a = \"\\ud800\"",
    ] {
        assert!(Filter::parse(filter).is_err(), "`{filter}` is no filter");
    }
}

#[test]
fn length_and_depth_are_limited() {
    let long = format!("attributes:{}", "a".repeat(MAX_LENGTH));
    assert_eq!(Filter::parse(&long), Err(FilterError::TooLong { length: MAX_LENGTH + 11 }));

    let deep = format!("{}attributes:a{}", "(".repeat(70), ")".repeat(70));
    assert_eq!(Filter::parse(&deep), Err(FilterError::TooDeep { position: 64 }));
}

fn term() -> impl Strategy<Value = Term> {
    let key = prop_oneof!["[a-zA-Z0-9_-]{1,8}", any::<String>()];
    let leaf = prop_oneof![
        key.clone().prop_map(|key| Term::Has { key }),
        (key.clone(), any::<String>()).prop_map(|(key, value)| Term::Equals { key, value }),
        (key.clone(), any::<String>()).prop_map(|(key, value)| Term::Differs { key, value }),
        (key, any::<String>()).prop_map(|(key, prefix)| Term::HasPrefix { key, prefix }),
    ];
    leaf.prop_recursive(6, 32, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|term| Term::Not(Box::new(term))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Term::All),
            prop::collection::vec(inner, 2..4).prop_map(Term::Any),
        ]
    })
}

proptest! {
    #[test]
    fn a_printed_filter_reads_back_the_same(term in term()) {
        let printed = Filter { root: term.clone() }.to_string();
        prop_assert_eq!(parse::filter(&printed), Ok(term), "{}", printed);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse::filter(&text);
    }

    #[test]
    fn nothing_close_to_a_filter_panics(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "attributes", ":", ".", "a", "=", "!=", "\"", "\\", "\"x\"", "hasPrefix", "(", ")",
                ",", "NOT ", "-", " AND ", " OR ", "é", "\\u12", " ",
            ]),
            0..40,
        )
    ) {
        let text = words.concat();
        if let Ok(term) = parse::filter(&text) {
            let printed = Filter { root: term.clone() }.to_string();
            prop_assert_eq!(parse::filter(&printed), Ok(term));
        }
    }
}
