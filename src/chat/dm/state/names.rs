//! What users can be called (spec 6.3).
//!
//! Names that look the same are the same: what they share is their NFKC form in folded case. *Not done*: letters of other
//! scripts that look alike; fingerprints of keys are there for that.

use unicode_normalization::{UnicodeNormalization as _, is_nfc};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// How long a name may be, in Unicode scalars.
const LENGTHS: std::ops::RangeInclusive<usize> = 3..=32;

/// Whether somebody can be called that.
#[must_use]
pub fn is_allowed(name: &str) -> bool {
    let is_shown = |c: char| {
        !matches!(
            c.general_category(),
            GeneralCategory::Control
                | GeneralCategory::Format
                | GeneralCategory::PrivateUse
                | GeneralCategory::Surrogate
                | GeneralCategory::Unassigned
                | GeneralCategory::LineSeparator
                | GeneralCategory::ParagraphSeparator
        )
    };
    let is_other_space = |c: char| c != ' ' && c.is_whitespace();
    LENGTHS.contains(&name.chars().count())
        && is_nfc(name)
        && name.chars().all(|c| is_shown(c) && !is_other_space(c))
        && !name.starts_with(' ')
        && !name.ends_with(' ')
        && !name.contains("  ")
        && !key(name).trim().is_empty()
}

/// What a name shares with those that look the same.
#[must_use]
pub fn key(name: &str) -> String {
    caseless::default_case_fold_str(&name.nfkc().collect::<String>()).nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_people_can_read() {
        for name in ["bob", "Ann Lee", "Zoë Ångström", "日本語", "Строка", &"x".repeat(32)] {
            assert!(is_allowed(name), "{name:?}");
        }
        let decomposed = "Zoe\u{308}";
        let bad = ["", "ab", " bob", "bob ", "a  b", "a\tb", "a\u{200b}b", "a\u{202e}b", "a\u{e000}b", "a\u{a0}b"];
        for name in bad.into_iter().chain(["a\nb", "a\u{2028}b", decomposed, &"x".repeat(33)]) {
            assert!(!is_allowed(name), "{name:?}");
        }
    }

    #[test]
    fn names_that_look_the_same_are_the_same() {
        for (one, other) in [("Straße", "STRASSE"), ("bob", "Ｂｏｂ"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("ﬁn", "FIN")]
        {
            assert_eq!(key(one), key(other), "{one} {other}");
        }
        assert_ne!(key("bob"), key("rob"));
    }
}
