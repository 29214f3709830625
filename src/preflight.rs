//! The results of preflight checks, which run before a start and in `twined doctor`.

use serde::Serialize;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreflightCheck {
    /// What was checked.
    pub name: String,
    /// The result.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it, with commands to copy. Empty if there is nothing to do.
    pub remedy: String,
}

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The check passed.
    Ok,
    /// It cannot be checked from here.
    Unknown,
    /// The daemon works, but a part of it may not.
    Warn,
    /// The daemon cannot work.
    Fail,
}

/// The account whose credentials a check used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreflightIdentity {
    /// Its name.
    pub name: String,
    /// Whether it is the daemon's account, as far as is known. The rights of another account are
    /// no evidence for the daemon's.
    pub is_daemon: bool,
}

/// The rights on one resource, and which of them an account lacks.
#[derive(Clone, Debug)]
pub(crate) struct CheckedRights<'a> {
    /// The name of the check.
    pub(crate) name: &'a str,
    /// All rights that are needed.
    pub(crate) rights: &'a [&'a str],
    /// Those that are missing.
    pub(crate) missing: &'a [&'a str],
    /// What does not work without them; `None` if nothing works.
    pub(crate) loss: Option<&'a str>,
    /// Commands with which a person checks the rights of the daemon's account.
    pub(crate) review: String,
    /// Commands that grant the rights.
    pub(crate) grant: String,
}

// === impl PreflightCheck ===

impl PreflightCheck {
    /// A check that passed.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, "")
    }

    /// A check that cannot run here. `remedy` is a command with which a person can run it.
    pub fn unknown(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Unknown, found, remedy)
    }

    /// A check with a finding that does not stop the daemon.
    pub fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Warn, found, remedy)
    }

    /// A check that failed: the daemon cannot work.
    pub fn fail(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Fail, found, remedy)
    }

    /// Whether the daemon cannot work.
    pub fn is_failure(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    /// Whether it is a warning.
    pub fn is_warning(&self) -> bool {
        self.verdict == Verdict::Warn
    }

    fn new(
        name: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict, found: found.into(), remedy: remedy.into() }
    }
}

// === impl PreflightIdentity ===

impl PreflightIdentity {
    /// The check that names the account used for `service`.
    pub(crate) fn check(&self, service: &str) -> PreflightCheck {
        let (name, account) = (format!("identity for {service}"), &self.name);
        match self.is_daemon {
            true => PreflightCheck::ok(name, account),
            false => PreflightCheck::unknown(
                name,
                format!("{account} is not the daemon's account, whose rights cannot be checked"),
                "run this command as the daemon's account, or use the commands below",
            ),
        }
    }
}

// === impl CheckedRights ===

impl CheckedRights<'_> {
    /// Judges the rights of an account.
    pub(crate) fn judge(self, identity: &PreflightIdentity) -> PreflightCheck {
        let Self { name, rights, missing, loss, review, grant } = self;
        let PreflightIdentity { name: account, is_daemon } = identity;
        if !is_daemon {
            let found = match missing.is_empty() {
                true => format!("{account} may: {}", rights.join(", ")),
                false => format!("{account} may not: {}", missing.join(", ")),
            };
            return PreflightCheck::unknown(name, found, review);
        }
        if missing.is_empty() {
            return PreflightCheck::ok(name, rights.join(", "));
        }
        let found = format!("missing: {}", missing.join(", "));
        match loss {
            Some(loss) => PreflightCheck::warn(name, format!("{found}; {loss}"), grant),
            None => PreflightCheck::fail(name, found, grant),
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// Its mark in a table.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Ok => "[ok]",
            Self::Unknown => "[??]",
            Self::Warn => "[warn]",
            Self::Fail => "[fail]",
        }
    }
}
