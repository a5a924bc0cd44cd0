//! What proves who asks, and never shows itself.

use std::fmt;

/// A text that never shows itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the request that needs it and nothing else.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    Password {
        user: String,
        password: Secret,
    },
    /// An OAuth2 refresh token, which only a token server takes.
    Token(Secret),
}
