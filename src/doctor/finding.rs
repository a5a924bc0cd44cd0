//! What a check says.

use serde::Serialize;

/// How good it is; the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, and something about it is worth knowing.
    Note,
    Problem,
}

/// One statement about this machine. No text in it holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What that means for crfs; `None` where all is well.
    pub meaning: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, found: found.into(), meaning: None, advice: None }
    }

    pub(super) fn note(found: impl Into<String>, meaning: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::with(Verdict::Note, found.into(), meaning.into(), advice.into())
    }

    pub(super) fn problem(found: impl Into<String>, meaning: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::with(Verdict::Problem, found.into(), meaning.into(), advice.into())
    }

    const fn with(verdict: Verdict, found: String, meaning: String, advice: String) -> Self {
        Self { verdict, found, meaning: Some(meaning), advice: Some(advice) }
    }
}

/// A finding, and the check that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub check: &'static str,
    #[serde(flatten)]
    pub finding: Finding,
}
