//! Messages of the cluster, prepared for quoting.

use crate::event::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The longest quote, in characters. Messages of kubelets and runtimes are longer only where they
/// repeat themselves.
const QUOTED: usize = 600;

/// The most lines of output in a report: as many as the kubelet keeps of a log.
const TAIL_LINES: usize = 80;

/// The most bytes of output in a report. (The kubelet keeps 2 KiB of a log and 4 KiB of a message,
/// but another client can put more into an object.)
const TAIL_BYTES: usize = 64 * 1024;

/// A message on one line, without its middle where it is long: schedulers put first what matters,
/// and runtimes last. Empty for an empty message.
pub(super) fn quote(message: &str) -> String {
    let printed: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<String> = printed.split_whitespace().map(unsigned).collect();
    let line = words.join(" ");
    let line = line.trim_end_matches('.');
    let length = line.chars().count();
    if length <= QUOTED {
        return line.to_owned();
    }
    let first: String = line.chars().take(QUOTED / 2).collect();
    let last: String = line.chars().skip(length - QUOTED / 2).collect();
    format!("{first}…{last}")
}

/// A word without the query of a URL: registries redirect to URLs that are signed there.
fn unsigned(word: &str) -> String {
    match word.split_once('?') {
        Some((address, query)) if address.contains("://") => {
            let after = query.trim_start_matches(|c: char| !matches!(c, '"' | '\'' | '>' | ')'));
            format!("{address}?…{after}")
        }
        _ => word.to_owned(),
    }
}

/// ` (the node reports: …)`, to follow a statement of ours. Empty for an empty message.
pub(super) fn reported(by: &str, message: &str) -> String {
    match quote(message) {
        quoted if quoted.is_empty() => String::new(),
        quoted => format!(" ({by} reports: {quoted})"),
    }
}

/// The last lines of an output, each with its line feed. Nothing is escaped.
pub(super) fn tail(output: &str) -> Vec<String> {
    let mut from = output.len().saturating_sub(TAIL_BYTES);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    let output = output.get(from..).unwrap_or_default();
    let lines: Vec<&str> = output.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines.into_iter().skip(skipped).map(|line| format!("{line}\n")).collect()
}

/// Whether a message contains one of the fragments, which are in lower case.
pub(super) fn contains_any(message: &str, fragments: &[&str]) -> bool {
    let message = message.to_lowercase();
    fragments.iter().any(|fragment| message.contains(fragment))
}

/// A time of the cluster; `None` for what runtimes write instead of "never" (the year 1970, or 1).
pub(super) fn timestamp(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|time| Timestamp(time.0.as_microsecond())).filter(|time| time.0 > 0)
}

/// The request of a container for a resource, as Kubernetes writes it.
pub(super) fn requested<'a>(
    resources: Option<&'a ResourceRequirements>,
    name: &str,
) -> Option<&'a str> {
    Some(resources?.requests.as_ref()?.get(name)?.0.as_str())
}

/// The limit of a container for a resource, as Kubernetes writes it.
pub(super) fn limit<'a>(
    resources: Option<&'a ResourceRequirements>,
    name: &str,
) -> Option<&'a str> {
    Some(resources?.limits.as_ref()?.get(name)?.0.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_is_one_line_and_keeps_its_ends() {
        assert_eq!(quote(" a\n\tb\u{1b} c. "), "a b c");
        assert_eq!(quote("\u{0}"), "");
        let long = format!("first {} last", "é".repeat(5_000));
        let quoted = quote(&long);
        assert!(quoted.starts_with("first é") && quoted.ends_with("é last"), "{quoted}");
        assert_eq!(quoted.chars().count(), QUOTED + 1);
    }

    #[test]
    fn a_quoted_address_is_not_signed() {
        assert_eq!(
            quote(r#"Get "https://blobs.example.com/a?X-Signature=secret": i/o timeout? no"#),
            r#"Get "https://blobs.example.com/a?…": i/o timeout? no"#
        );
    }

    #[test]
    fn a_tail_keeps_whole_letters_and_the_last_lines() {
        assert_eq!(tail("a\r\n\nb"), ["a\n", "\n", "b\n"]);
        assert_eq!(tail(""), Vec::<String>::new());
        let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(tail(&lines).first().map(String::as_str), Some("20\n"));
        assert!(tail(&"é".repeat(TAIL_BYTES)).concat().len() <= TAIL_BYTES + 1);
    }
}
