//! Which chat server stands behind which server group (D2M spec 9.3).
//!
//! The name comes out of the device's URL. An exact entry is looked for first, then a template is filled in, then the
//! default is taken; when none of them is configured for a group, its devices can reflect but not proxy.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::framer::Framing;
use crate::wire::d2m::ServerGroup;

/// What a template address has to contain.
pub const PLACEHOLDER: &str = "{serverGroup}";

/// Where a chat server is and how its stream is cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `host:port`, to be tried in this order.
    pub addresses: Vec<String>,
    /// How its stream is cut.
    #[serde(default)]
    pub framing: Framing,
}

/// The directory as the configuration spells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// Chat servers of single server groups, by name.
    #[serde(default)]
    pub exact: HashMap<String, Target>,
    /// For groups not named in `exact`: each address contains `{serverGroup}`.
    pub template: Option<Target>,
    /// For everything else.
    pub default: Option<Target>,
}

/// Why a directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDirectory {
    /// The name of an exact entry can never be in a URL.
    #[error("`{0}` is no server group: 1 to 32 digits and letters")]
    Name(String),
    /// An entry leads nowhere.
    #[error("{0} has no address")]
    NoAddress(String),
    /// Not `host:port`.
    #[error("`{0}` is not an address of the form host:port")]
    Address(String),
    /// A template that is the same for every group.
    #[error("the template address `{0}` does not contain {PLACEHOLDER}")]
    NoPlaceholder(String),
}

/// Finds the chat server of a server group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    exact: HashMap<ServerGroup, Target>,
    template: Option<Target>,
    default: Option<Target>,
}

impl Directory {
    /// Checks what was configured.
    ///
    /// # Errors
    /// [`BadDirectory`] names the first entry that cannot work.
    pub fn new(config: DirectoryConfig) -> Result<Self, BadDirectory> {
        let mut exact = HashMap::with_capacity(config.exact.len());
        for (name, target) in config.exact {
            let group = ServerGroup::new(&name).ok_or_else(|| BadDirectory::Name(name.clone()))?;
            check(&format!("server group `{name}`"), &target)?;
            exact.insert(group, target);
        }
        if let Some(template) = &config.template {
            if let Some(fixed) = template.addresses.iter().find(|address| !address.contains(PLACEHOLDER)) {
                return Err(BadDirectory::NoPlaceholder(fixed.clone()));
            }
            // Filled in with a number, because the placeholder may well be (part of) the port.
            check("the template", &filled(template, "1"))?;
        }
        if let Some(default) = &config.default {
            check("the default", default)?;
        }
        Ok(Self { exact, template: config.template, default: config.default })
    }

    /// The chat server of `group`; `None` when nothing is configured for it.
    #[must_use]
    pub fn find(&self, group: &ServerGroup) -> Option<Target> {
        self.exact
            .get(group)
            .cloned()
            .or_else(|| self.template.as_ref().map(|template| filled(template, group.as_str())))
            .or_else(|| self.default.clone())
    }
}

fn filled(template: &Target, group: &str) -> Target {
    let addresses = template.addresses.iter().map(|address| address.replace(PLACEHOLDER, group)).collect();
    Target { addresses, framing: template.framing }
}

fn check(whose: &str, target: &Target) -> Result<(), BadDirectory> {
    if target.addresses.is_empty() {
        return Err(BadDirectory::NoAddress(whose.to_owned()));
    }
    match target.addresses.iter().find(|address| !is_address(address)) {
        Some(bad) => Err(BadDirectory::Address(bad.clone())),
        None => Ok(()),
    }
}

fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_ok = !host.is_empty() && !host.contains(char::is_whitespace) && (bracketed || !host.contains(':'));
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(toml: &str) -> Result<Directory, BadDirectory> {
        Directory::new(toml::from_str(toml).unwrap())
    }

    fn addresses(directory: &Directory, group: &str) -> Option<Vec<String>> {
        directory.find(&ServerGroup::new(group).unwrap()).map(|target| target.addresses)
    }

    #[test]
    fn exact_then_template_then_default() {
        let full = r#"
            [exact.a0]
            addresses = ["10.0.0.1:5222", "[::1]:443"]
            framing = "raw"
            [template]
            addresses = ["chat-{serverGroup}.example.org:5222"]
            [default]
            addresses = ["localhost:5222"]
        "#;
        let found = directory(full).unwrap();
        assert_eq!(addresses(&found, "a0").unwrap(), ["10.0.0.1:5222", "[::1]:443"]);
        assert_eq!(found.find(&ServerGroup::new("a0").unwrap()).unwrap().framing, Framing::Raw);
        assert_eq!(addresses(&found, "160").unwrap(), ["chat-160.example.org:5222"]);
        let only_default = directory("default.addresses = [\"localhost:5222\"]").unwrap();
        assert_eq!(addresses(&only_default, "160").unwrap(), ["localhost:5222"]);
        assert_eq!(addresses(&Directory::default(), "a0"), None);
    }

    #[test]
    fn an_entry_that_cannot_work_is_named() {
        let cases = [
            ("exact.a-0.addresses = [\"h:1\"]", BadDirectory::Name("a-0".into())),
            ("exact.a0.addresses = []", BadDirectory::NoAddress("server group `a0`".into())),
            ("default.addresses = [\"localhost\"]", BadDirectory::Address("localhost".into())),
            ("default.addresses = [\"localhost:0\"]", BadDirectory::Address("localhost:0".into())),
            ("default.addresses = [\"::1:5222\"]", BadDirectory::Address("::1:5222".into())),
            ("template.addresses = [\"h:1\"]", BadDirectory::NoPlaceholder("h:1".into())),
        ];
        for (toml, expected) in cases {
            assert_eq!(directory(toml), Err(expected), "{toml}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        assert!(toml::from_str::<DirectoryConfig>("fallback.addresses = []").is_err());
        assert!(toml::from_str::<DirectoryConfig>("default.address = []").is_err());
    }
}
