//! `twined doctor`: what `twined serve` looks at before it starts, alone.

use crate::check::{Check, Verdict};
use crate::cli::{FAILED, Failure, OK, terminal};
use crate::config::{self, ServeArgs};
use crate::serve;
use clap::ValueEnum;
use serde_json::json;
use std::fmt::Write as _;

/// Look at all that the daemon and its questions need, and say what is missing and how to mend it
///
/// Takes the settings of `twined serve`. It asks for rights by reviews and dry runs; of what it makes
/// (a subscription, a file) nothing stays but, on an emulator, the topic.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 the daemon can work, 1 it cannot.\n\n\
    [ok] as it should be, [warn] the daemon works but something of it may not, [fail] it cannot \
    work, [??] nobody can tell from here: how you can is said below it.")]
pub struct Args {
    #[command(flatten)]
    serve: ServeArgs,

    /// Google's service account of questions' pods [default: as `--service-account` is annotated]
    ///
    /// What it may do is asked for in its name.
    #[arg(long, value_name = "EMAIL")]
    question_account: Option<String>,

    /// For a person, or for a program
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// For whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A person
    #[default]
    Table,
    /// A program
    Json,
}

/// Looks, and prints what it found.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Args { serve, question_account, output } = args;
    let settings = serve.into_settings(config::env_variable)?;
    let checks = serve::look(&settings, question_account).await?;
    let failed = checks.iter().any(Check::stands_in_the_way);
    let printed = match output {
        Output::Table => format!("{}\n\n{}", table(&checks), sum(&checks)),
        Output::Json => json!({ "ok": !failed, "checks": checks }).to_string(),
    };
    terminal::answer(&printed).map_err(Failure::failed)?;
    Ok(if failed { FAILED } else { OK })
}

/// Checks below each other, and below each what to do about it.
pub fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, verdict, found, remedy } in checks {
        let found = terminal::safe(found).replace('\n', "\n         ");
        let _ = writeln!(text, "{:6}  {}: {found}", verdict.mark(), terminal::safe(name));
        for line in terminal::safe(remedy).lines() {
            let _ = writeln!(text, "          {line}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn sum(checks: &[Check]) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let [ok, unknown, warn, fail] =
        [Verdict::Ok, Verdict::Unknown, Verdict::Warn, Verdict::Fail].map(count);
    format!("{ok} ok, {warn} to look at, {fail} failed, {unknown} that nobody can tell from here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_what_to_do_below_what_is_wrong() {
        let checks =
            [Check::ok("topic t", "it is there"), Check::fail("store", "no\u{1b}[1m", "a\nb")];
        assert_eq!(
            table(&checks),
            "[ok]    topic t: it is there\n[fail]  store: no\\u{1b}[1m\n          a\n          b"
        );
        assert!(sum(&checks).starts_with("1 ok, 0 to look at, 1 failed"));
    }
}
