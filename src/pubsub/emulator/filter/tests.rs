use std::collections::HashMap;

use proptest::prelude::*;

use super::{Filter, FilterError, MAX_LENGTH, Term, parse};

fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[track_caller]
fn matches(filter: &str, pairs: &[(&str, &str)]) -> bool {
    Filter::parse(filter).unwrap().matches(&attributes(pairs))
}

#[track_caller]
fn error_text(filter: &str) -> String {
    Filter::parse(filter).unwrap_err().to_string()
}

#[test]
fn presence_needs_the_key_only() {
    assert!(matches("attributes:domain", &[("domain", "")]));
    assert!(!matches("attributes:domain", &[("Domain", "com")]));
}

#[test]
fn equality_needs_key_and_value() {
    assert!(matches(r#"attributes.domain = "com""#, &[("domain", "com")]));
    assert!(matches(r#"attributes.domain="com""#, &[("domain", "com")]));
    assert!(!matches(r#"attributes.domain = "com""#, &[("domain", "Com")]));
    assert!(!matches(r#"attributes.domain = "com""#, &[]));
}

#[test]
fn inequality_matches_messages_without_the_key() {
    assert!(matches(r#"attributes.domain != "com""#, &[("domain", "org")]));
    assert!(matches(r#"attributes.domain != "com""#, &[]));
    assert!(!matches(r#"attributes.domain != "com""#, &[("domain", "com")]));
}

#[test]
fn a_prefix_needs_the_key() {
    assert!(matches(r#"hasPrefix(attributes.domain, "co")"#, &[("domain", "com")]));
    assert!(!matches(r#"hasPrefix(attributes.domain, "co")"#, &[("domain", "c")]));
    assert!(!matches(r#"hasPrefix(attributes.domain, "")"#, &[]));
}

#[test]
fn operators_can_be_combined() {
    let filter = r#"attributes:a AND (attributes.b = "1" OR -attributes:c) AND NOT attributes:d"#;
    assert!(matches(filter, &[("a", ""), ("b", "1"), ("c", "")]));
    assert!(matches(filter, &[("a", "")]));
    assert!(!matches(filter, &[("a", ""), ("b", "2"), ("c", "")]));
    assert!(!matches(filter, &[("a", ""), ("d", "")]));
    assert!(matches("NOT (attributes:a OR attributes:b)", &[]));
    assert!(matches("NOT(attributes:a)", &[]));
}

#[test]
fn the_filter_of_the_sdk_is_accepted() {
    let filter = r#"attributes.recipient = "octue/test:1" AND attributes.question_uuid = "q" AND attributes.sender_type = "CHILD""#;
    let answer = [("recipient", "octue/test:1"), ("question_uuid", "q"), ("sender_type", "CHILD")];
    assert!(matches(filter, &answer));
    assert!(!matches(filter, &answer[..2]));
}

#[test]
fn keys_may_be_quoted() {
    assert!(matches(r#"attributes:"iana.org/language_tag""#, &[("iana.org/language_tag", "en")]));
    assert!(matches(r#"attributes."x y" = "1""#, &[("x y", "1")]));
    assert!(matches(r#"attributes.my-key_1 = "1""#, &[("my-key_1", "1")]));
    assert!(matches("attributes:AND", &[("AND", "")]));
}

#[test]
fn strings_have_escape_sequences() {
    let filter = r#"attributes.k = "\"\\\n\t\x41\u307F\U0001F600\101é""#;
    assert!(matches(filter, &[("k", "\"\\\n\tA\u{307f}\u{1f600}Aé")]));
}

#[test]
fn an_error_names_the_position_and_what_is_expected() {
    assert_eq!(
        error_text("attributes.a = 1"),
        "at byte 15: expected a string in double quotes, found `1`"
    );
    assert_eq!(error_text("attributes.a"), "at byte 12: expected `=` or `!=`, found the end");
    assert_eq!(
        error_text("attributes:a and attributes:b"),
        "at byte 13: expected `AND`, `OR` or the end, found `and attributes:b`"
    );
    assert_eq!(
        error_text("attributes:a AND attributes:b OR attributes:c"),
        "at byte 30: expected parentheses around mixed `AND` and `OR`"
    );
    assert_eq!(
        error_text(r#"attributes.a = "x"#),
        "at byte 17: expected the closing `\"`, found the end"
    );
}

#[test]
fn filters_that_google_refuses_are_refused() {
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
        assert!(Filter::parse(filter).is_err(), "`{filter}` is accepted");
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
    fn a_displayed_filter_parses_to_the_same(term in term()) {
        let printed = Filter { root: term.clone() }.to_string();
        prop_assert_eq!(parse::filter(&printed), Ok(term), "{}", printed);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse::filter(&text);
    }

    #[test]
    fn no_text_like_a_filter_panics(
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
