//! What an error says with its causes.

/// Its message and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // A cause that the messages above it already hold would be said twice.
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Caused {
        message: &'static str,
        source: Option<Box<Caused>>,
    }

    #[test]
    fn causes_follow_the_message_and_are_not_repeated() {
        let deepest = Caused { message: "no route", source: None };
        let cause = Caused { message: "r.io: no route", source: Some(Box::new(deepest)) };
        let error = Caused { message: "cannot mount", source: Some(Box::new(cause)) };
        assert_eq!(chain(&error), "cannot mount: r.io: no route");
    }
}
