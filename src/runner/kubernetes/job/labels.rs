//! The labels of a Job, and the annotations for values that do not fit into a label.

use super::{JobDefaults, MANAGER, label};
use crate::event::attributes::{ORIGINATOR, ORIGINATOR_QUESTION_UUID, PARENT};
use crate::event::{Digest, Sruid};
use crate::runner::LaunchRequest;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The longest value of a label.
const LENGTH: usize = 63;

/// The digits of the digest that distinguish two shortened values: 64 bits.
const DIGITS: usize = 16;

/// A text as the value of a label.
///
/// A text that fits is its own value. In any other text, characters that are not allowed become
/// `-`; the text is cut, and a digest of the whole text follows. One text has one value, so a
/// selector can be written for any. `octue/` and a name of 80 letters becomes `octue.<40
/// letters>-<16 hexadecimal digits>`.
pub fn label_value(text: &str) -> Cow<'_, str> {
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let fits = text.len() <= LENGTH
        && end(text.bytes().next())
        && end(text.bytes().next_back())
        && text.bytes().all(is_allowed);
    if fits || text.is_empty() {
        return Cow::Borrowed(text);
    }
    let cut: String = text
        .chars()
        .map(
            |character| if u8::try_from(character).is_ok_and(is_allowed) { character } else { '-' },
        )
        .skip_while(|character| !character.is_ascii_alphanumeric())
        .take(LENGTH - DIGITS - 1)
        .collect();
    let mut value = cut.trim_end_matches(['-', '_', '.']).to_owned();
    if !value.is_empty() {
        value.push('-');
    }
    for byte in &Digest::from_data(text.as_bytes()).0[..DIGITS / 2] {
        // Writing to a `String` cannot fail.
        let _ = write!(value, "{byte:02x}");
    }
    Cow::Owned(value)
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// The labels of a question's Job and pod, and the annotations with the whole values of those that
/// do not fit into a label.
pub(super) fn labels_and_annotations(
    launch: &LaunchRequest<'_>,
    network: &JobDefaults,
    attempt: u32,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let mut labels = BTreeMap::new();
    let mut annotations = BTreeMap::new();
    let mut put = |name: &str, full: &str| {
        let value = label_value(full);
        if value != full {
            annotations.insert(name.to_owned(), full.to_owned());
        }
        labels.insert(name.to_owned(), value.into_owned());
    };
    let attribute = |name: &str| launch.attributes.get(name).map(String::as_str);
    let recipient = launch.recipient.as_sruid();

    put(label::MANAGED_BY, MANAGER);
    put(label::TOPIC, &network.topic);
    put(label::QUESTION, &launch.run.question.to_string());
    put(label::RETRY, &launch.run.retry.to_string());
    put(label::ATTEMPT, &attempt.to_string());
    put(label::SERVICE, &service(recipient));
    put(label::REVISION, recipient.tag());
    if let Some(parent) = launch.parent_question {
        put(label::PARENT_QUESTION, &parent.to_string());
    }
    if let Some(originator) = attribute(ORIGINATOR_QUESTION_UUID) {
        put(label::ORIGINATOR_QUESTION, originator);
    }
    for (name, text) in
        [(label::PARENT, attribute(PARENT)), (label::ORIGINATOR, attribute(ORIGINATOR))]
    {
        if let Some(revision) = text.and_then(|text| Sruid::parse(text).ok()) {
            put(name, &service(revision));
        }
    }
    (labels, annotations)
}

/// `<namespace>.<name>`: a label's value has no `/`.
fn service(revision: Sruid<'_>) -> String {
    [revision.namespace(), ".", revision.name()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_that_fits_is_its_own_value() {
        for text in ["", "a", "octue.wind-speed", "1.0.0_rc", &"a".repeat(63)] {
            assert_eq!(label_value(text), text);
        }
    }

    #[test]
    fn a_long_text_is_shortened_and_stays_distinct() {
        let long = "a".repeat(64);
        let value = label_value(&long);
        assert_eq!(value.len(), 63);
        assert!(value.starts_with(&format!("{}-", "a".repeat(46))), "{value}");
        assert_ne!(value, label_value(&"a".repeat(65)));
        assert!(label_value("_tag").starts_with("tag-"));
        assert!(label_value("tag.").starts_with("tag-"));
        assert_eq!(label_value("__").len(), 16);
    }

    proptest! {
        #[test]
        fn every_text_has_a_valid_value(text in ".{1,200}") {
            let value = label_value(&text);
            prop_assert!((1..=63).contains(&value.len()));
            prop_assert!(value.bytes().all(is_allowed));
            for end in [value.bytes().next(), value.bytes().next_back()] {
                prop_assert!(end.unwrap().is_ascii_alphanumeric());
            }
            prop_assert_eq!(label_value(&text), value);
        }
    }
}
