//! What was looked at before a start, and what it was found to be.

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it, lines that can be copied among them. Empty where there is nothing to do.
    pub remedy: String,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Ok,
    /// Nobody can tell from here.
    Unknown,
    /// The daemon works, but something of it will not, or may not.
    Warn,
    /// The daemon cannot work.
    Fail,
}

/// As whom something was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The name.
    pub name: String,
    /// Whether it is the daemon's, for all that we can tell. What anybody else may do says nothing
    /// of what the daemon may.
    pub is_daemon: bool,
}

// === impl Check ===

impl Check {
    /// It is as it should be.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, "")
    }

    /// Nobody can tell from here; `remedy` is how a person could.
    pub fn unknown(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Unknown, found, remedy)
    }

    /// The daemon works, but something of it may not.
    pub fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Warn, found, remedy)
    }

    /// The daemon cannot work.
    pub fn fail(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Fail, found, remedy)
    }

    /// Whether the daemon cannot work as it is.
    pub fn stands_in_the_way(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    /// Whether somebody should know of it, though the daemon works.
    pub fn is_doubtful(&self) -> bool {
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

// === impl Asker ===

impl Asker {
    /// Says who it was.
    pub fn check(&self, whom: &str) -> Check {
        let (name, asker) = (format!("who asks {whom}"), &self.name);
        match self.is_daemon {
            true => Check::ok(name, asker),
            false => Check::unknown(
                name,
                format!("{asker}, which is not the daemon's account: what that may do is not seen"),
                "run this as the daemon's account, or ask for it as below",
            ),
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
