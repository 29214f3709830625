//! How a question reaches its service: as arguments of `ask-local`, or as a file if it is too long
//! for an argument.

use crate::event::Inputs;
use crate::event::attributes::{FORWARD_LOGS, RETRY_COUNT};
use std::collections::HashMap;
use std::ops::Range;

/// The longest argument, in bytes. The kernel refuses 128 KiB; the difference is for shell scripts
/// that add to an argument.
pub(crate) const ARGUMENT_LIMIT: usize = 120 * 1024;

/// The option of a question's attributes.
pub(crate) const ATTRIBUTES_OPTION: &str = "--attributes";
/// The option of its input values.
pub(crate) const VALUES_OPTION: &str = "--input-values";
/// The option of its input manifest.
pub(crate) const MANIFEST_OPTION: &str = "--input-manifest";

/// The file of a question: `{"input_values": …, "input_manifest": …, "children": …}`, each as
/// received, and only if it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuestionFile {
    /// The content.
    pub bytes: Vec<u8>,
    /// The range of the input values.
    pub input_values: Option<Range<usize>>,
    /// The range of the input manifest.
    pub input_manifest: Option<Range<usize>>,
}

// === impl QuestionFile ===

impl QuestionFile {
    /// Writes the inputs of a question.
    pub(crate) fn new(inputs: Inputs<'_>) -> Self {
        let Inputs { input_values, input_manifest, children } = inputs;
        let mut bytes = Vec::from(b"{");
        let mut put = |name: &str, text: Option<&str>| {
            let text = text?;
            if bytes.len() > 1 {
                bytes.push(b',');
            }
            bytes.extend_from_slice(format!("\"{name}\":").as_bytes());
            let start = bytes.len();
            bytes.extend_from_slice(text.as_bytes());
            Some(start..bytes.len())
        };
        let input_values = put("input_values", input_values);
        let input_manifest = put("input_manifest", input_manifest);
        put("children", children);
        bytes.push(b'}');
        Self { bytes, input_values, input_manifest }
    }
}

/// The JSON of a question's attributes for `--attributes`: as received, with defaults for two
/// without which the SDK fails before its first event.
pub(crate) fn attributes(received: &HashMap<String, String>) -> String {
    let given = received.iter().map(|(name, value)| (&**name, &**value));
    let missing = [(RETRY_COUNT, "0"), (FORWARD_LOGS, "0")];
    object(given.chain(missing.into_iter().filter(|(name, _)| !received.contains_key(*name))))
}

/// The JSON of attributes, as received.
pub(crate) fn json(received: &HashMap<String, String>) -> String {
    object(received.iter().map(|(name, value)| (&**name, &**value)))
}

/// Sorted by name, so that one question has one text.
fn object<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_unstable();
    let mut bytes = Vec::with_capacity(1024);
    let mut put = |before: &[u8], text: &str| {
        bytes.extend_from_slice(before);
        serde_json::to_writer(&mut bytes, text).expect("a text is JSON");
    };
    let mut before: &[u8] = b"{";
    for (name, value) in pairs {
        put(before, name);
        put(b":", value);
        before = b",";
    }
    if bytes.is_empty() {
        bytes.push(b'{');
    }
    bytes.push(b'}');
    String::from_utf8(bytes).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_given_inputs_as_received() {
        let inputs =
            Inputs { input_values: Some("[ NaN ]"), input_manifest: None, children: Some("[]") };
        let file = QuestionFile::new(inputs);
        assert_eq!(file.bytes, br#"{"input_values":[ NaN ],"children":[]}"#);
        assert_eq!(&file.bytes[file.input_values.unwrap()], b"[ NaN ]");
        assert_eq!(file.input_manifest, None);
        assert_eq!(QuestionFile::new(Inputs::default()).bytes, b"{}");
    }

    #[test]
    fn attributes_that_the_sdk_needs_are_added() {
        let received = HashMap::from([("forward_logs".to_owned(), "1".to_owned())]);
        assert_eq!(attributes(&received), r#"{"forward_logs":"1","retry_count":"0"}"#);
        assert_eq!(json(&received), r#"{"forward_logs":"1"}"#);
        assert_eq!(json(&HashMap::new()), "{}");
        let escaped = HashMap::from([("a\"\n".to_owned(), "\u{1}é".to_owned())]);
        assert_eq!(json(&escaped), "{\"a\\\"\\n\":\"\\u0001é\"}");
    }
}
