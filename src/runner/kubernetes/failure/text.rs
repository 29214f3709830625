//! Other people's words, made fit to be quoted.

use crate::event::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How much of a message is quoted, in characters: what kubelet and runtimes say is longer only
/// where it repeats itself.
const QUOTED: usize = 600;

/// How many lines of output are told: what the kubelet keeps of a log.
const TAIL_LINES: usize = 80;

/// How many bytes of output are told. (The kubelet keeps 2 KiB of a log and 4 KiB of a message;
/// an object made by somebody else can hold more.)
const TAIL_BYTES: usize = 64 * 1024;

/// A message on one line, its middle left out where it is long: schedulers say first what matters,
/// and runtimes last. Empty where it says nothing.
pub fn quote(message: &str) -> String {
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

/// A word without the query of an address: registries redirect to addresses that are signed there.
fn unsigned(word: &str) -> String {
    match word.split_once('?') {
        Some((address, query)) if address.contains("://") => {
            let after = query.trim_start_matches(|c: char| !matches!(c, '"' | '\'' | '>' | ')'));
            format!("{address}?…{after}")
        }
        _ => word.to_owned(),
    }
}

/// ` (they say: …)`, to be put behind a statement of ours; empty where nothing is said.
pub fn aside(who: &str, message: &str) -> String {
    match quote(message) {
        quoted if quoted.is_empty() => String::new(),
        quoted => format!(" ({who}: {quoted})"),
    }
}

/// The last lines of an output, each with its line feed. Nothing is escaped.
pub fn tail(output: &str) -> Vec<String> {
    let mut from = output.len().saturating_sub(TAIL_BYTES);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    let output = output.get(from..).unwrap_or_default();
    let lines: Vec<&str> = output.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines.into_iter().skip(skipped).map(|line| format!("{line}\n")).collect()
}

/// Whether a message has one of these in it, whatever the case of its letters.
pub fn says(message: &str, any: &[&str]) -> bool {
    let message = message.to_lowercase();
    any.iter().any(|part| message.contains(part))
}

/// A moment of the cluster's. What runtimes write for "never" (the year 1970, or 1) is none.
pub fn moment(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|time| Timestamp(time.0.as_microsecond())).filter(|moment| moment.0 > 0)
}

/// What a container requests of a resource, in Kubernetes' own notation.
pub fn requested<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a str> {
    Some(resources?.requests.as_ref()?.get(name)?.0.as_str())
}

/// What a container may have of a resource at most.
pub fn limit<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a str> {
    Some(resources?.limits.as_ref()?.get(name)?.0.as_str())
}

/// A signal's name, as `kill -l` lists it.
pub fn signal(number: i32) -> &'static str {
    match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        26 => "SIGVTALRM",
        31 => "SIGSYS",
        _ => "another signal",
    }
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
