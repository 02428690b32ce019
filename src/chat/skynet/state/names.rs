//! Names of accounts: mail addresses, in lower case.

use crate::chat::skynet::wire::primitive::SHORT_MAX;

/// Longest part before the at sign, and longest label of a domain, in bytes (RFC 5321, RFC 1035).
const LOCAL_MAX: usize = 64;
const LABEL_MAX: usize = 63;

/// The name that was meant, in lower case; `None` when nobody can be called that.
///
/// The local part is a dot-atom, its characters ASCII or beyond (RFC 6531); the domain is labels of letters, digits and inner
/// hyphens. Quoted local parts and address literals are valid mail, and nobody's name here.
#[must_use]
pub fn normalised(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let (local, domain) = name.rsplit_once('@')?;
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let is_atom = |part: &str| !part.is_empty() && part.chars().all(atom);
    let is_label = |label: &str| {
        let inner = !label.starts_with('-') && !label.ends_with('-');
        !label.is_empty() && label.len() <= LABEL_MAX && inner && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    let good = name.len() <= SHORT_MAX
        && local.len() <= LOCAL_MAX
        && local.split('.').all(is_atom)
        && domain.contains('.')
        && domain.split('.').all(is_label);
    good.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_mail_address_in_lower_case() {
        assert_eq!(normalised("Alice.B+c@Example.COM").as_deref(), Some("alice.b+c@example.com"));
        assert_eq!(normalised("jörg@müller.example").as_deref(), Some("jörg@müller.example"));
        let long = format!("a@{}.example", "b".repeat(64));
        let longer = format!("{}@example.com", "a".repeat(65));
        for bad in [
            "",
            "alice",
            "@example.com",
            "alice@",
            "alice@example",
            "a..b@example.com",
            ".a@example.com",
            "a@-b.example",
            "a@b-.example",
            "a@b..example",
            "a b@example.com",
            "a\0@example.com",
            "a@exam\nple.com",
            "a@b@example.com",
            &long,
            &longer,
        ] {
            assert_eq!(normalised(bad), None, "{bad:?}");
        }
    }
}
