//! Messages that are events, and messages that are not.

use super::*;
use crate::chain::Chain;
use proptest::prelude::*;

const QUESTION: &str = "2f1b8f3c-6ec5-4bb1-9a3b-0d6a1f0f6c11";

fn attributes(sender_type: &str) -> HashMap<String, String> {
    [
        ("uuid", "a3a0e0a2-7c1e-4c7e-8a52-b3d0a5d0b001"),
        ("datetime", "2024-04-11T10:46:48.236064+00:00"),
        ("question_uuid", QUESTION),
        ("originator_question_uuid", QUESTION),
        ("parent", "local/local:local"),
        ("originator", "local/local:local"),
        ("sender", "local/local:local"),
        ("recipient", "octue/example:1.2.0"),
        ("sender_type", sender_type),
        ("sender_sdk_version", "0.69.1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn error_text(data: &[u8], attributes: &HashMap<String, String>) -> String {
    Chain(&decode(data, attributes).unwrap_err()).to_string()
}

#[test]
fn a_question_keeps_its_inputs_to_the_byte() {
    let attributes = attributes("PARENT");
    let data = br#" { "input_values" : {"b": 1.0, "a": 12345678901234567890} , "kind":"question",
        "children": [ ], "input_manifest": null, "new": 1 } "#;

    let event = decode(data, &attributes).unwrap();

    assert_eq!(
        event.kind,
        Kind::Question(Inputs {
            input_values: Some(r#"{"b": 1.0, "a": 12345678901234567890}"#),
            input_manifest: Some("null"),
            children: Some("[ ]"),
        })
    );
    assert_eq!(event.attributes.retry_count, 0);
}

#[test]
fn falsy_values_are_values() {
    let attributes = attributes("PARENT");
    for value in ["0", "false", "\"\"", "[]", "{}"] {
        let data = format!(r#"{{"kind": "question", "input_values": {value}}}"#);
        let event = decode(data.as_bytes(), &attributes).unwrap();
        let Kind::Question(inputs) = event.kind else { panic!("{data}") };
        assert_eq!(inputs.input_values, Some(value));
    }
}

#[test]
fn bare_python_constants_are_kept() {
    let attributes = attributes("PARENT");
    let data = r#"{"kind": "question", "é": "NaN \" Infinity", "input_values": [NaN, -Infinity, Infinity, "NaN"]}"#;

    let event = decode(data.as_bytes(), &attributes).unwrap();

    assert_eq!(event.data, data);
    let Kind::Question(inputs) = event.kind else { panic!("no question") };
    assert_eq!(inputs.input_values, Some(r#"[NaN, -Infinity, Infinity, "NaN"]"#));
}

#[test]
fn a_kind_may_have_escape_sequences() {
    let data = br#"{"\u006bind": "hea\u0072tbeat", "x": 1}"#;
    let attributes = attributes("CHILD");
    let event = decode(data, &attributes).unwrap();
    assert_eq!(event.kind, Kind::Heartbeat);
    assert_eq!(&event.data[event.kind_member.clone()], r#""\u006bind": "hea\u0072tbeat", "#);
}

#[test]
fn an_unknown_kind_may_come_from_a_parent_or_a_child() {
    for sender_type in ["PARENT", "CHILD"] {
        let attributes = attributes(sender_type);
        let event = decode(br#"{"kind": "smoke signal"}"#, &attributes).unwrap();
        assert_eq!(event.kind, Kind::Other("smoke signal".into()));
    }
}

#[test]
fn without_its_kind_an_event_is_still_json() {
    let attributes = attributes("CHILD");
    for (data, rest) in [
        (r#"{"kind": "result"}"#, "{}"),
        (r#"{ "kind" : "result" }"#, "{  }"),
        (r#"{"kind": "result", "output_values": 1}"#, r#"{"output_values": 1}"#),
        (r#"{"output_values": 1, "kind": "result"}"#, r#"{"output_values": 1}"#),
        (r#"{"a": "}", "kind":"result" ,"b": 2}"#, r#"{"a": "}", "b": 2}"#),
    ] {
        let event = decode(data.as_bytes(), &attributes).unwrap();
        assert_eq!(event.json_without_kind(), rest);
    }
}

#[test]
fn an_old_root_question_has_null_for_its_parent() {
    let mut attributes = attributes("CHILD");
    attributes.insert("parent_question_uuid".into(), "null".into());
    let event = decode(br#"{"kind": "heartbeat"}"#, &attributes).unwrap();
    assert_eq!(event.attributes.parent_question_uuid, None);
}

#[test]
fn each_missing_attribute_is_named_with_what_was_expected() {
    for name in attributes("CHILD").keys() {
        let mut some = attributes("CHILD");
        some.remove(name);
        let error = error_text(br#"{"kind": "heartbeat"}"#, &some);
        assert!(error.starts_with(&format!("attribute `{name}` is missing: expected ")), "{error}");
    }
}

#[test]
fn each_wrong_attribute_is_named_with_its_value_and_what_was_expected() {
    for (name, value) in [
        ("uuid", "A3A0E0A2-7C1E-4C7E-8A52-B3D0A5D0B001"),
        ("uuid", "a3a0e0a27c1e4c7e8a52b3d0a5d0b001"),
        ("question_uuid", "not/a/dns/label"),
        ("parent_question_uuid", ""),
        ("originator_question_uuid", "0"),
        ("datetime", "yesterday"),
        ("parent", "nobody"),
        ("originator", "a/b:c d"),
        ("sender", "Octue/b:c"),
        ("recipient", "host/a/b:c"),
        ("sender_type", "child"),
        ("retry_count", "-1"),
    ] {
        let mut some = attributes("CHILD");
        some.insert(name.into(), value.into());
        let error = error_text(br#"{"kind": "heartbeat"}"#, &some);
        assert!(
            error.starts_with(&format!("attribute `{name}` is `{value}`: expected ")),
            "{error}"
        );
    }
}

#[test]
fn an_error_quotes_a_value_shortened_and_without_control_characters() {
    let mut some = attributes("CHILD");
    some.insert("sender".into(), format!("\x1b[31m\n{}", "x".repeat(5000)));
    let error = error_text(br#"{"kind": "heartbeat"}"#, &some);
    assert!(error.len() < 300 && !error.contains(['\x1b', '\n']), "{error}");
}

#[test]
fn data_that_is_not_an_event_is_an_error() {
    let attributes = attributes("CHILD");
    let deep = format!(r#"{{"kind": "heartbeat", "x": {}1{}"#, "[".repeat(9000), "]".repeat(8999));
    for (data, expected) in [
        (&b""[..], "EOF while parsing"),
        (b"[]", "expected a JSON object"),
        (b"{}", "missing field `kind`"),
        (br#"{"kind": 7}"#, "expected a string"),
        (br#"{"kind": "heartbeat""#, "EOF while parsing"),
        (br#"{"kind": "heartbeat"} {}"#, "trailing characters"),
        (br#"{"kind": "heartbeat", "kind": "result"}"#, "duplicate member `kind`"),
        (br#"{"kind": "heartbeat", "x": Nan}"#, "expected value"),
        (b"{\"kind\": \"\xff\"}", "invalid utf-8"),
        (deep.as_bytes(), "EOF while parsing"),
    ] {
        let error = error_text(data, &attributes);
        assert!(error.contains(expected), "{error} for {expected}");
    }
}

#[test]
fn a_child_cannot_send_a_question() {
    let error = error_text(br#"{"kind": "question"}"#, &attributes("CHILD"));
    assert!(error.contains("`sender_type` is `CHILD`: expected `PARENT`"), "{error}");
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("NaN".to_owned()),
        Just("-Infinity".to_owned()),
        Just("1.0".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| serde_json::to_string(&number).unwrap()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|list| format!("[{}]", list.join(", "))),
            prop::collection::vec((any::<String>(), inner), 0..4).prop_map(|members| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, value)| format!("{}:{value}", serde_json::to_string(key).unwrap()))
                    .collect();
                format!("{{{}}}", members.join(" ,"))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_message_panics(data: Vec<u8>, name in "[a-z_]{0,24}", value: String) {
        let mut some = attributes("CHILD");
        some.insert(name, value);
        let _ = decode(&data, &some);
    }

    #[test]
    fn an_event_round_trips_to_the_byte(values in json(), other in json(), first: bool) {
        let attributes = attributes("PARENT");
        let data = if first {
            format!(r#"{{"kind": "question", "input_values": {values}, "other": {other}}}"#)
        } else {
            format!(r#"{{"other": {other}, "input_values":{values},"kind":"question"}}"#)
        };

        let event = decode(data.as_bytes(), &attributes).unwrap();

        prop_assert_eq!(event.data, &data);
        let Kind::Question(inputs) = event.kind else { panic!("no question") };
        prop_assert_eq!(inputs.input_values, Some(&*values));
    }

    #[test]
    fn valid_attributes_are_parsed(
        uuid: u128, question: u128, parent: Option<u128>, retry_count: u32, micros in 0..4_000_000_000_000_000_i64,
    ) {
        let from = uuid::Uuid::from_u128;
        let (event, question_uuid) = (from(uuid), from(question));
        let mut some = attributes("CHILD");
        some.insert("uuid".into(), event.to_string());
        some.insert("question_uuid".into(), question_uuid.to_string());
        some.insert("retry_count".into(), retry_count.to_string());
        some.insert("datetime".into(), crate::event::Timestamp(micros).to_string());
        some.extend(parent.map(|parent| ("parent_question_uuid".into(), from(parent).to_string())));

        let parsed = Attributes::parse(&some).unwrap();

        prop_assert_eq!((parsed.uuid, parsed.question_uuid), (event, question_uuid));
        prop_assert_eq!(parsed.parent_question_uuid, parent.map(from));
        prop_assert_eq!((parsed.retry_count, parsed.datetime.0), (retry_count, micros));
    }
}
