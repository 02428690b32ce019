//! The configuration as pages: the effective one for `config show`, every key for `config doc`.

use super::kinds::Shown;
use super::settings::{Change, Key, Section, Visitor};
use super::sources::{Effective, Origin, variable};
use super::{Config, RULES};

/// Where the remark behind a value begins, if the value leaves room.
const REMARK: usize = 44;

/// What the reference begins with.
const INTRODUCTION: &str = r#"# Configuration

<!-- Made by `heliostat config doc` from src/config/mod.rs; a test compares. -->

Values come from four places; each is stronger than the one before:

1. the defaults below;
2. a TOML file, named by `--config FILE` or else by the environment variable `HELIOSTAT_CONFIG`. None is looked for: without
   one, the defaults make a development box, in which `chat.csp.enabled` is true;
3. environment variables, whose names stand with each key. Texts and words need no quotes, lists are separated by commas,
   a table is an inline one in braces;
4. flags: `--set KEY=VALUE` for any key, written as in the environment, and flags of their own for some (`heliostat serve --help`).

What is not known or out of range is refused, wherever it stands, with its line, variable or flag; so is what cannot be
together. `heliostat config check` says what is wrong and has exit status 1 then, `heliostat config show` prints what
holds and where each value comes from. Both take the flags of `serve`.

Durations and sizes carry their unit: `"90 s"`, `"10 min"`, `"2 h"`, `"7 days"`; `"64 KiB"`, `"256 MiB"`, `"1 GiB"`. Zero
never means unlimited; `"unlimited"` does, where a limit can be left away. Relative paths are relative to the working
directory. A secret stands in the file itself, or in another one: `"file:PATH"`; in the environment and in flags only
the latter is taken.

A key marked *reload* can change while the server runs, one marked *restart* cannot. On SIGHUP the file is read again, with
the environment and the flags of the start over it, and so are certificates. The log says what was taken over, key by key, and what waits for a restart;
when anything is wrong, it says where, and nothing changes.
"#;

/// The reference of all keys, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = Reference { out: INTRODUCTION.to_owned() };
    Config::default().walk(&Config::default(), "", &mut page);
    page.out += "\n## What cannot be together\n\n";
    for rule in RULES {
        let keys: Vec<String> = rule.keys.iter().map(|key| format!("`{key}`")).collect();
        page.out += &format!("* {}: {}.\n", keys.join(", "), rule.reason);
    }
    page.out
}

struct Reference {
    out: String,
}

impl Visitor for Reference {
    fn section(&mut self, path: &str, about: &[&str]) {
        let title = if path.is_empty() { "At the top".to_owned() } else { format!("`[{path}]`") };
        self.out += &format!("\n## {title}\n\n{}\n", prose(about));
    }

    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, _: &mut T, default: &T) {
        let default = match key.kind.show(default) {
            Shown::Value(value) => format!("`{value}`"),
            other => other.to_string(),
        };
        let range = key.kind.range().map_or_else(String::new, |range| format!(", {range}"));
        let change = match key.change {
            Change::Reload => "reload",
            Change::Restart => "restart",
        };
        self.out += &format!(
            "\n### `{}`\n\n{}\n\n* {}{range}; default: {default}; {change}\n* `{}`\n",
            key.path,
            prose(key.about),
            key.kind.name(),
            variable(key.path),
        );
    }
}

/// The lines of a comment.
fn prose(about: &[&str]) -> String {
    about.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}

impl<S: Section> Effective<S> {
    /// A file that means what holds, with where each value comes from behind it. Secrets are hidden.
    #[must_use]
    pub fn show(&self) -> String {
        let mut page = Show { origin: &|key| self.origin(key), out: String::new(), header: None };
        self.config.clone().walk(&self.config, "", &mut page);
        page.out
    }
}

struct Show<'a> {
    origin: &'a dyn Fn(&str) -> &'a Origin,
    out: String,
    /// Of a section of which nothing was written yet.
    header: Option<String>,
}

impl Visitor for Show<'_> {
    fn section(&mut self, path: &str, _: &[&str]) {
        self.header = (!path.is_empty()).then(|| format!("\n[{path}]\n"));
    }

    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, value: &mut T, _: &T) {
        self.out.extend(self.header.take());
        let name = key.path.rsplit('.').next().unwrap_or(key.path);
        let line = match key.kind.show(value) {
            Shown::Value(value) => format!("{name} = {value}"),
            other => format!("# {name} is {other}"),
        };
        self.out += &match (self.origin)(key.path) {
            Origin::Default => line,
            origin => format!("{line:REMARK$}# {origin}"),
        };
        self.out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::FULL;
    use super::super::{Config, Sources};
    use super::*;

    #[test]
    fn the_committed_reference_is_the_generated_one() {
        let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
        assert_eq!(committed, reference(), "cargo run -- config doc > docs/configuration.md");
    }

    #[test]
    fn what_is_shown_means_the_same_when_it_is_read() {
        let full = Sources::text("full.toml", FULL).read().unwrap();
        for effective in [Sources::default().read().unwrap(), Sources::text("", "").read().unwrap(), full] {
            let shown = effective.show();
            assert_eq!(Config::parse("shown", &shown).unwrap(), effective.config, "{shown}");
        }
    }

    #[test]
    fn every_key_is_shown_with_where_it_comes_from() {
        let shown = Sources::text("full.toml", FULL).read().unwrap().show();
        let reference = reference();
        for key in reference.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')) {
            let (section, name) =
                key.rsplit_once('.').map_or((String::new(), key), |(s, name)| (format!("\n[{s}]\n"), name));
            let inside = shown.split_once(&section).unwrap().1.split("\n\n").next().unwrap();
            let stands = |line: &str| line.starts_with(&format!("{name} = ")) || line == format!("# {name} is not set");
            assert!(inside.lines().any(stands), "{key}: {shown}");
        }
        assert!(shown.contains("plain = false\n") && shown.contains("max_device_slots = 15 "), "{shown}");
        // What stands in a server group is not a key of its own.
        let inner = |line: &&str| ["addresses", "framing"].iter().any(|name| line.trim().starts_with(name));
        let keys = FULL.lines().filter(|line| line.contains(" = ") && !inner(line)).count() + 1;
        assert_eq!(shown.lines().filter(|line| line.contains("# full.toml, line ")).count(), keys, "{shown}");
        assert!(!shown.contains("[chat]"), "a section without keys needs no header: {shown}");
    }
}
