//! `twined doctor`: the preflight checks of `twined serve`, without the daemon.

use crate::cli::{FAILED, Failure, OK, terminal};
use crate::config::{self, ServeArgs};
use crate::preflight::{PreflightCheck, Verdict};
use crate::serve;
use clap::ValueEnum;
use serde_json::json;
use std::fmt::Write as _;

/// Check everything that `twined serve` and its questions need, and print the remedies
///
/// Takes the settings of `twined serve`. Rights are checked with reviews and dry runs. A
/// subscription and a file that the checks create are deleted again; on an emulator, the topic
/// stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 the daemon can work, 1 it cannot.\n\n\
    [ok] passed, [warn] the daemon works but a part of it may not, [fail] the daemon cannot work, \
    [??] cannot be checked from here: the lines below it give a command that can.")]
pub(super) struct Args {
    #[command(flatten)]
    serve: ServeArgs,

    /// Google service account of the questions' pods [default: annotation of `--service-account`]
    ///
    /// Its rights are checked by impersonating it.
    #[arg(long, value_name = "EMAIL")]
    question_account: Option<String>,

    /// Format of the results
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Format of the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// A table for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

/// Makes the checks and prints their results.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let Args { serve, question_account, output } = args;
    let settings = serve.into_settings(config::env_variable)?;
    let checks = serve::check(&settings, question_account).await?;
    let failed = checks.iter().any(PreflightCheck::is_failure);
    let printed = match output {
        OutputFormat::Table => format!("{}\n\n{}", table(&checks), summary(&checks)),
        OutputFormat::Json => json!({ "ok": !failed, "checks": checks }).to_string(),
    };
    terminal::answer(&printed).map_err(Failure::failed)?;
    Ok(if failed { FAILED } else { OK })
}

/// One check a line, with its remedy below it.
pub(super) fn table(checks: &[PreflightCheck]) -> String {
    let mut text = String::new();
    for PreflightCheck { name, verdict, found, remedy } in checks {
        let found = terminal::safe(found).replace('\n', "\n         ");
        let _ = writeln!(text, "{:6}  {}: {found}", verdict.mark(), terminal::safe(name));
        for line in terminal::safe(remedy).lines() {
            let _ = writeln!(text, "          {line}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn summary(checks: &[PreflightCheck]) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let [ok, unknown, warn, fail] =
        [Verdict::Ok, Verdict::Unknown, Verdict::Warn, Verdict::Fail].map(count);
    format!("{ok} ok, {warn} warnings, {fail} failed, {unknown} not checked from here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_remedy_is_below_its_check() {
        let checks = [
            PreflightCheck::ok("topic t", "exists"),
            PreflightCheck::fail("store", "no\u{1b}[1m", "a\nb"),
        ];
        assert_eq!(
            table(&checks),
            "[ok]    topic t: exists\n[fail]  store: no\\u{1b}[1m\n          a\n          b"
        );
        assert!(summary(&checks).starts_with("1 ok, 0 warnings, 1 failed"));
    }
}
