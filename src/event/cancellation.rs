//! The rule of who may cancel a question.

/// Whether a sender may cancel a question: only its parent and the originator of its tree may.
///
/// This prevents mistakes. It does not stop a sender that uses another service's name.
pub(crate) fn may_cancel(sender: &str, parent: &str, originator: &str) -> bool {
    sender == parent || sender == originator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_and_the_originator_may_cancel_a_question_and_no_other_sender_may() {
        for (sender, may) in [("a/parent:1", true), ("a/root:1", true), ("a/stranger:1", false)] {
            assert_eq!(may_cancel(sender, "a/parent:1", "a/root:1"), may, "{sender}");
        }
    }
}
