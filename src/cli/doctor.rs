//! `twined doctor`: what `twined serve` looks at before it starts, alone.

use crate::check::{Check, Verdict};
use crate::cli::{FAILED, Failure, OK, terminal};
use crate::config::{self, Bus, Runs, ServeArgs, ServeSettings};
use crate::pubsub::look::{QUESTION_TOPIC_RIGHTS, ask_as, grant_role};
use crate::serve::{self, checks::Findings};
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
    let Args { serve, output } = args;
    let settings = serve.checked(config::ours)?;
    let Findings { mut checks, google_account } = serve::look(&settings).await?;
    checks.push(question_rights(&settings, google_account.as_deref()));
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

/// What the pods of questions may do. A service that may not look at its topic dies in silence, so
/// it is worth the trouble; but only their own account can ask.
fn question_rights(settings: &ServeSettings, account: Option<&str>) -> Check {
    let name = "rights of questions";
    let ServeSettings { topic, project, bus, runner, .. } = settings;
    if *bus != Bus::Google {
        return Check::ok(name, "an emulator has none to give");
    }
    let member = match (account, runner) {
        (Some(account), _) => account,
        (None, Runs::Kubernetes(_)) => "ACCOUNT",
        (None, Runs::Process(_)) => {
            return Check::unknown(name, "they have what GOOGLE_APPLICATION_CREDENTIALS names", "");
        }
    };
    let ask = ask_as(member, &format!("projects/{project}/topics/{topic}"), &QUESTION_TOPIC_RIGHTS);
    let needed = QUESTION_TOPIC_RIGHTS.join(", ");
    Check::unknown(
        name,
        format!(
            "as whom they run, {member}, is not us. They need {needed}; subscriptions to ask \
             others; their bucket's objects and storage.buckets.get; signBlob on themselves for \
             signed URLs; secretmanager.versions.access for credentials"
        ),
        format!(
            "ask as them; each that is not in the answer is missing:\n{ask}\n\
             what grants it:\n{}\n(without pubsub.topics.get a service dies before its first event)",
            grant_role(project, member)
        ),
    )
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
