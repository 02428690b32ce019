//! Where values come from: defaults, a file, the environment, flags, each stronger than the one before.
//!
//! Every source is read on its own and remembers its places, so a value is never separated from the line, variable or flag it
//! came from. All mistakes are collected, also those in values that a stronger source replaces; only a file that is no TOML
//! ends the search at once, because what follows from that would be noise. Nothing here asks the process for its environment:
//! that is handed in, and secrets in files apart ([`super::kinds::Confidential`]) the same sources always give the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::kinds::Given;
use super::settings::{Key, Section, Visitor, below};
use super::{Config, RULES, Rule};

/// What the names of environment variables begin with that are keys.
/// The second underscore keeps those apart that orchestrators make for a service of this name (`HELIOSTAT_PORT`).
pub const PREFIX: &str = "HELIOSTAT__";

/// Everything a configuration is made from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: Option<(String, String)>,
    variables: Vec<(String, OsString)>,
    flags: Vec<Flag>,
}

/// A key that was set on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// As it was typed: `--listen`.
    pub name: String,
    /// The key it sets.
    pub key: String,
    /// To what.
    pub value: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// There is no file, so the development box is started.
    Development,
    /// A line of a file.
    File {
        /// Which file.
        name: Arc<str>,
        /// Counted from one.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

/// A configuration, and where it comes from.
#[derive(Debug, Clone)]
pub struct Effective<S = Config> {
    /// The values.
    pub config: S,
    /// Which file was read.
    pub file: Option<String>,
    pub(super) origins: BTreeMap<String, Origin>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    One(Box<Mistake>),
    /// Several things are wrong.
    #[error("{} mistakes in the configuration", .0.len())]
    Several(#[related] Vec<Mistake>),
}

/// Something in a configuration is wrong.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{}: {reason}", listed(places))]
pub struct Mistake {
    /// Where; more than one when values do not go together.
    pub places: Vec<Origin>,
    /// What is wrong.
    pub reason: String,
    #[source_code]
    text: Option<NamedSource<Arc<str>>>,
    #[label(collection, "here")]
    at: Vec<SourceSpan>,
}

impl Sources {
    /// Reads the file, if one is named, and picks from the environment what is meant for the configuration.
    ///
    /// # Errors
    /// [`ConfigError::Read`].
    pub fn gather(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: Vec<Flag>,
    ) -> Result<Self, ConfigError> {
        let read = |file: &Path| match std::fs::read_to_string(file) {
            Ok(text) => Ok((file.display().to_string(), text)),
            Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
        };
        let named = environment.into_iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
        let mut variables: Vec<_> = named.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        Ok(Self { file: file.map(read).transpose()?, variables, flags })
    }

    /// A file alone.
    #[must_use]
    pub fn text(name: &str, text: &str) -> Self {
        Self { file: Some((name.to_owned(), text.to_owned())), ..Self::default() }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every [`Mistake`] there is.
    pub fn read(&self) -> Result<Effective, ConfigError> {
        let base = if self.file.is_some() { Config::default() } else { Config::development() };
        self.read_over(base, RULES)
    }

    fn read_over<S: Section>(&self, mut config: S, rules: &[Rule<S>]) -> Result<Effective<S>, ConfigError> {
        let (name, text) = self.file.as_ref().map_or(("", ""), |(name, text)| (name, text));
        let (table, syntax) = DeTable::parse_recoverable(text);
        let mut reader = Reader::new(name, text, Outline::of(config.clone()));
        reader.take_table("", table.get_ref());
        if !syntax.is_empty() {
            reader.mistakes.clear();
            for error in &syntax {
                reader.complain(vec![reader.place(error.span().unwrap_or_default())], error.message());
            }
            return Err(reader.into_error());
        }
        for (name, value) in &self.variables {
            reader.take_variable(name, value);
        }
        for flag in &self.flags {
            reader.take_flag(flag);
        }
        config.walk(&S::default(), "", &mut reader);
        reader.check_rules(&config, rules);
        if !reader.mistakes.is_empty() {
            return Err(reader.into_error());
        }
        let origins = reader.places.into_iter().map(|(key, place)| (key, place.origin)).collect();
        Ok(Effective { config, file: self.file.as_ref().map(|(name, _)| name.clone()), origins })
    }
}

impl<S> Effective<S> {
    /// Where the value of `key` comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

impl ConfigError {
    /// Each sentence to be said about it; never with a secret in it.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Several(mistakes) => mistakes.iter().map(Mistake::to_string).collect(),
            Self::Read { .. } | Self::One(_) => vec![self.to_string()],
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Development => f.write_str("development box"),
            Self::File { name, line } => write!(f, "{name}, line {line}"),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

fn listed(places: &[Origin]) -> String {
    places.iter().map(Origin::to_string).collect::<Vec<_>>().join("; ")
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    PREFIX.to_owned() + &key.to_uppercase().replace('.', "__")
}

/// Which keys and sections there are.
#[derive(Debug, Default)]
struct Outline {
    /// Whether each is secret.
    keys: BTreeMap<String, bool>,
    sections: BTreeSet<String>,
}

impl Outline {
    fn of(mut root: impl Section) -> Self {
        let mut outline = Self::default();
        let same = root.clone();
        root.walk(&same, "", &mut outline);
        outline
    }

    /// For those who look for something that is not there.
    fn within(&self, section: &str) -> String {
        let inside = |path: &str| match path.rsplit_once('.') {
            Some((parent, name)) if parent == section => Some(format!("`{name}`")),
            None if section.is_empty() && !path.is_empty() => Some(format!("`{path}`")),
            _ => None,
        };
        let names: Vec<String> = self.keys.keys().chain(&self.sections).filter_map(|path| inside(path)).collect();
        names.join(", ")
    }
}

impl Visitor for Outline {
    fn section(&mut self, path: &str, _: &[&str]) {
        self.sections.insert(path.to_owned());
    }

    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, _: &mut T, _: &T) {
        self.keys.insert(key.path.to_owned(), key.kind.is_secret());
    }
}

/// Where something stands: what to call it, and what to underline.
#[derive(Debug, Clone)]
struct Place {
    origin: Origin,
    span: Option<Range<usize>>,
}

/// Takes what the sources give, the weakest first, and reads it key by key.
#[derive(Debug)]
struct Reader<'a> {
    name: Arc<str>,
    text: &'a str,
    outline: Outline,
    given: BTreeMap<String, Vec<(Place, Given<'a>)>>,
    /// What must not be printed of the text.
    secrets: Vec<Range<usize>>,
    /// Where the values come from that are not defaults.
    places: BTreeMap<String, Place>,
    mistakes: Vec<(Vec<Place>, String)>,
}

impl<'a> Reader<'a> {
    fn new(name: &str, text: &'a str, outline: Outline) -> Self {
        Self {
            name: Arc::from(name),
            text,
            outline,
            given: BTreeMap::new(),
            secrets: Vec::new(),
            places: BTreeMap::new(),
            mistakes: Vec::new(),
        }
    }

    /// A place in the file.
    fn place(&self, span: Range<usize>) -> Place {
        let line = 1 + self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count();
        Place { origin: Origin::File { name: Arc::clone(&self.name), line }, span: Some(span) }
    }

    fn complain(&mut self, places: Vec<Place>, reason: impl Into<String>) {
        self.mistakes.push((places, reason.into()));
    }

    fn take_table(&mut self, section: &str, table: &'a DeTable<'a>) {
        for (name, value) in table {
            let path = below(section, name.get_ref());
            // A quoted name with a dot in it would look like a path.
            let known = !name.get_ref().contains('.');
            match self.outline.keys.get(&path) {
                Some(&secret) if known => {
                    if secret {
                        self.secrets.push(value.span());
                    }
                    let place = self.place(name.span());
                    self.given.entry(path).or_default().push((place, Given::File(value)));
                }
                None if known && self.outline.sections.contains(&path) => match value.get_ref().as_table() {
                    Some(inner) => self.take_table(&path, inner),
                    None => {
                        let place = self.place(value.span());
                        self.complain(vec![place], format!("`{path}` is a section: its keys stand below [{path}]"));
                    }
                },
                _ => {
                    // It may be a secret whose key is misspelt, and only the key is of interest.
                    leaves(value, &mut self.secrets);
                    let (place, there) = (self.place(name.span()), self.outline.within(section));
                    self.complain(vec![place], format!("unknown key `{}`; there are {there}", name.get_ref()));
                }
            }
        }
    }

    fn take_variable(&mut self, name: &str, value: &'a OsString) {
        let place = Place { origin: Origin::Variable(name.to_owned()), span: None };
        let Some(key) = self.outline.keys.keys().find(|key| variable(key) == name).cloned() else {
            return self.complain(vec![place], "no key has a variable of this name; `heliostat config doc` lists all");
        };
        match value.to_str() {
            Some(text) => self.given.entry(key).or_default().push((place, Given::Text(text))),
            None => self.complain(vec![place], "the value is not UTF-8"),
        }
    }

    fn take_flag(&mut self, flag: &'a Flag) {
        let place = Place { origin: Origin::Flag(flag.name.clone()), span: None };
        if self.outline.keys.contains_key(&flag.key) {
            self.given.entry(flag.key.clone()).or_default().push((place, Given::Text(&flag.value)));
        } else {
            self.complain(vec![place], format!("unknown key `{}`; `heliostat config doc` lists all", flag.key));
        }
    }

    /// What cannot be together is looked for only among values that are right alone.
    fn check_rules<S>(&mut self, config: &S, rules: &[Rule<S>]) {
        if !self.mistakes.is_empty() {
            return;
        }
        for rule in rules.iter().filter(|rule| (rule.broken)(config)) {
            let places = rule.keys.iter().filter_map(|&key| self.places.get(key).cloned()).collect();
            self.complain(places, rule.reason);
        }
    }

    fn into_error(mut self) -> ConfigError {
        self.mistakes.sort_by_key(|(places, _)| {
            places.first().and_then(|place| place.span.as_ref()).map_or(usize::MAX, |span| span.start)
        });
        let names = self.outline.keys.iter().filter(|(_, secret)| **secret);
        let names: Vec<&str> = names.map(|(path, _)| path.rsplit('.').next().unwrap_or(path)).collect();
        self.secrets.extend(behind(self.text, &names));
        let text: Arc<str> = masked(self.text, &self.secrets).into();
        let finished = |(places, reason): (Vec<Place>, String)| {
            let at: Vec<SourceSpan> = places.iter().filter_map(|place| place.span.clone()).map(Into::into).collect();
            let text = (!at.is_empty()).then(|| NamedSource::new(&self.name, Arc::clone(&text)));
            Mistake { places: places.into_iter().map(|place| place.origin).collect(), reason, text, at }
        };
        let mut mistakes: Vec<Mistake> = self.mistakes.into_iter().map(finished).collect();
        match mistakes.pop() {
            Some(only) if mistakes.is_empty() => ConfigError::One(Box::new(only)),
            last => {
                mistakes.extend(last);
                ConfigError::Several(mistakes)
            }
        }
    }
}

impl Visitor for Reader<'_> {
    fn section(&mut self, _: &str, _: &[&str]) {}

    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, mine: &mut T, default: &T) {
        if mine != default {
            self.places.insert(key.path.to_owned(), Place { origin: Origin::Development, span: None });
        }
        for (place, given) in self.given.remove(key.path).unwrap_or_default() {
            match key.kind.read(given) {
                Ok(value) => {
                    *mine = value;
                    self.places.insert(key.path.to_owned(), place);
                }
                Err(faults) => {
                    for fault in faults {
                        let place = match (fault.at, given) {
                            (Some(span), Given::File(_)) => self.place(span),
                            (None, Given::File(value)) => self.place(value.span()),
                            (_, Given::Text(_)) => place.clone(),
                        };
                        self.complain(vec![place], format!("{}: {}", key.path, fault.reason));
                    }
                }
            }
        }
    }
}

/// Where the values are that `value` consists of.
fn leaves(value: &Spanned<DeValue<'_>>, out: &mut Vec<Range<usize>>) {
    match value.get_ref().as_table() {
        Some(table) => table.values().for_each(|inner| leaves(inner, out)),
        None => out.push(value.span()),
    }
}

/// What stands behind any of the names, up to the end of its line: a file that is no TOML, or has a key in a wrong place,
/// holds secrets that are no values.
fn behind(text: &str, names: &[&str]) -> Vec<Range<usize>> {
    let ends = |name: &&str| text.match_indices(*name).map(|(at, name)| at + name.len()).collect::<Vec<_>>();
    let line = |at: usize| at..text.get(at..).and_then(|rest| rest.find('\n')).map_or(text.len(), |end| at + end);
    names.iter().flat_map(ends).map(line).collect()
}

/// The text with nothing to read where secrets stand; every line and column stays where it was.
fn masked(text: &str, secrets: &[Range<usize>]) -> String {
    let secret = |at: usize| secrets.iter().any(|span| span.contains(&at));
    text.char_indices().fold(String::with_capacity(text.len()), |mut out, (at, char)| {
        if secret(at) && char != '\n' {
            out.extend(std::iter::repeat_n('*', char.len_utf8()));
        } else {
            out.push(char);
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kinds::{Confidential, Or, Secret, Switch};
    use crate::config::settings::settings;

    /// Reads a file, variables and flags; all complaints.
    fn complaints(text: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
        let sources = Sources {
            file: Some(("test.toml".into(), text.into())),
            variables: variables.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
            flags: flags.iter().map(|&(key, value)| flag(key, value)).collect(),
        };
        sources.read().map(|effective| effective.config).unwrap_err().sentences()
    }

    fn flag(key: &str, value: &str) -> Flag {
        Flag { name: format!("--set {key}"), key: key.into(), value: value.into() }
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        let cases = [
            ("\ndata_dirs = \"x\"", 2, "unknown key `data_dirs`; there are `data_dir`, "),
            ("[listen]\naddress = \"127.0.0.1:1\"\nport = 3", 3, "unknown key `port`; there are `address`, "),
            ("\n'listen.plain' = true", 2, "unknown key `listen.plain`"),
            ("[limit]\nx = 1\ny = 2", 1, "unknown key `limit`"),
            ("admin = 3", 1, "`admin` is a section: its keys stand below [admin]"),
            ("[chat.csp]\nlisten = \"5222\"", 2, "chat.csp.listen: expected an address"),
            ("durability = \"never\"", 1, "expected \"fsync\" or \"memory\", not \"never\""),
            ("[limits]\nmax_device_slots = 0", 2, "limits.max_device_slots: has to be between 1 and 15, not 0"),
            ("[limits]\nmax_device_slots = 16", 2, "has to be between 1 and 15, not 16"),
            ("[limits]\nmax_queue_messages = 0", 2, "has to be between 1 and 100_000_000, not 0"),
            ("[limits]\n\nmax_queue_bytes = \"0 B\"", 3, "has to be between 64 KiB and 1 TiB, not 0 B"),
            ("[limits]\nidle_timeout = \"44 s\"", 2, "has to be between 45 s and 1 day, not 44 s"),
            ("[limits]\ntransaction_ttl = \"0 s\"", 2, "has to be between 1 s and 1 day, not 0 s"),
            ("[limits]\ntransaction_ttl = 600", 2, "expected a duration with its unit"),
            ("\n[listen]\ncert = \"c.pem\"", 3, "`cert` and `key` need each other"),
            ("[listen]\nkey = \"k.pem\"", 2, "`cert` and `key` need each other"),
            ("[admission]\nmax_connections = 0", 2, "not 0; or \"unlimited\""),
            ("[admission]\ngroups = [\n\"2fd1\"]", 3, "expected a device group id of 64 hex digits, not \"2fd1\""),
            ("[admin]\nlisten = \"0.0.0.0:9090\"", 2, "has to be on a loopback address"),
            ("\n\n[server_groups.exact.a-b]\naddresses = [\"h:1\"]", 3, "`a-b` is no server group"),
            (
                "[server_groups]\nexact.a.addresses = [\"h:1\"]\nexact.b.addresses = []",
                3,
                "server group `b` has no address",
            ),
            ("[server_groups.default]\naddress = \"h:1\"", 2, "unknown field `address`"),
            ("[server_groups.default]\naddresses = [\"h\"]", 1, "`h` is not an address"),
            ("\n[limits\n", 2, ""),
            ("[listen]\nplain = 1\n[listen]\n", 3, "duplicate key"),
        ];
        for (text, line, expected) in cases {
            let found = complaints(text, &[], &[]);
            assert_eq!(found.len(), 1, "{text:?} gave: {found:?}");
            assert!(found[0].starts_with(&format!("test.toml, line {line}: ")), "{text:?} gave: {found:?}");
            assert!(found[0].contains(expected), "{text:?} gave: {found:?}");
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_all_pointed_at() {
        let text = "[limits]\nidle_timeout = \"1 min\"\nping_interval = \"60 s\"";
        let together = "`ping_interval` has to be shorter than `idle_timeout`";
        assert_eq!(complaints(text, &[], &[]), [format!("test.toml, line 3; test.toml, line 2: {together}")]);
        let ping = [("HELIOSTAT__LIMITS__PING_INTERVAL", "2 min")];
        assert_eq!(complaints("", &ping, &[]), [format!("{}: {together}", ping[0].0)], "the other is a default");
        assert_eq!(
            complaints(text, &ping, &[("limits.idle_timeout", "1 min")]),
            [format!("{}; --set limits.idle_timeout: {together}", ping[0].0)],
        );
        let plain = complaints("[listen]\ncert = 'c'\nkey = 'k'", &[], &[("listen.plain", "true")]);
        assert!(plain[0].starts_with("--set listen.plain; test.toml, line 2; test.toml, line 3: "), "{plain:?}");
    }

    #[test]
    fn variables_and_flags_are_named() {
        for (name, value, expected) in [
            ("HELIOSTAT__LISTEN__ADRESS", "127.0.0.1:1", "no key has a variable of this name"),
            ("HELIOSTAT__LISTEN", "127.0.0.1:1", "no key has a variable of this name"),
            ("HELIOSTAT__limits__idle_timeout", "90 s", "no key has a variable of this name"),
            ("HELIOSTAT__LIMITS__MAX_DEVICE_SLOTS", "many", "expected a whole number, not \"many\""),
            ("HELIOSTAT__LIMITS__MAX_DEVICE_SLOTS", "", "expected a whole number, not \"\""),
            ("HELIOSTAT__LISTEN__PLAIN", "1", "expected `true` or `false`"),
            ("HELIOSTAT__SERVER_GROUPS", "{ default.addresses = ['h'] }", "`h` is not an address"),
            ("HELIOSTAT__SERVER_GROUPS", "h:1", "server_groups: "),
        ] {
            let found = complaints("", &[(name, value)], &[]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("{name}: ")) && found[0].contains(expected), "{found:?}");
        }
        assert!(complaints("", &[], &[("limits.idle", "1 s")])[0].contains("--set limits.idle: unknown key"));
        assert!(complaints("", &[], &[("limits.idle_timeout", "1 s")])[0].starts_with("--set limits.idle_timeout: "));
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt as _;
        let bad = (OsString::from("HELIOSTAT__DATA_DIR"), OsString::from_vec(vec![b'/', 0xff]));
        let error = Sources::gather(None, [bad], Vec::new()).unwrap().read().unwrap_err();
        assert_eq!(error.to_string(), "HELIOSTAT__DATA_DIR: the value is not UTF-8");
    }

    #[test]
    fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
        let text = "[limits]\nidle_timeout = \"1 s\"\nx = 1\n[listen]\naddress = 3";
        let found = complaints(text, &[("HELIOSTAT__X", "1")], &[("limits.idle_timeout", "2 s"), ("y", "")]);
        let places: Vec<&str> = found.iter().map(|it| it.split(": ").next().unwrap()).collect();
        let expected = ["line 2", "line 3", "line 5"].map(|line| format!("test.toml, {line}"));
        assert_eq!(places[..3], expected);
        assert_eq!(places[3..], ["HELIOSTAT__X", "--set y", "--set limits.idle_timeout"]);
    }

    #[test]
    fn a_stronger_source_does_not_excuse_a_mistake() {
        let found = complaints("durability = 1", &[("HELIOSTAT__DURABILITY", "memory")], &[]);
        assert!(found[0].starts_with("test.toml, line 1: durability: "), "{found:?}");
    }

    #[test]
    fn the_strongest_source_wins_and_is_known() {
        let text = "data_dir = 'a'\ndurability = 'memory'\n[limits]\nmax_device_slots = 1\n";
        let variables = [("HELIOSTAT__LIMITS__MAX_DEVICE_SLOTS", "2"), ("HELIOSTAT__DATA_DIR", "b")]
            .map(|(n, v)| (n.into(), v.into()));
        let sources =
            Sources { variables: variables.into(), flags: vec![flag("data_dir", "c")], ..Sources::text("f", text) };
        let effective = sources.read().unwrap();
        assert_eq!((effective.config.data_dir.to_str(), effective.config.limits.max_device_slots), (Some("c"), 2));
        let origin = |key| effective.origin(key).to_string();
        assert_eq!(origin("data_dir"), "--set data_dir");
        assert_eq!(origin("limits.max_device_slots"), "HELIOSTAT__LIMITS__MAX_DEVICE_SLOTS");
        assert_eq!(origin("durability"), "f, line 2");
        assert_eq!(origin("limits.idle_timeout"), "default");
        assert_eq!(Sources::default().read().unwrap().origin("chat.csp.enabled"), &Origin::Development);
    }

    #[test]
    fn only_what_is_meant_for_the_configuration_is_picked_from_the_environment() {
        let all = ["HELIOSTAT_LOG", "HELIOSTAT_CONFIG", "HOME", "HELIOSTAT__X"].map(|name| (name.into(), "".into()));
        assert_eq!(Sources::gather(None, all, Vec::new()).unwrap().variables, [("HELIOSTAT__X".into(), "".into())]);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error =
            Sources::gather(Some(Path::new("/nowhere/heliostat.toml")), [], Vec::new()).unwrap_err().to_string();
        assert!(error.contains("/nowhere/heliostat.toml: No such file"), "{error}");
    }

    settings! {
        /// A section with a secret.
        struct Door {
            keys {
                /// Who has it comes in.
                token: Option<Secret> = None, Or(None, Confidential(8)), Reload;
                /// Whether it opens.
                open: bool = false, Switch, Reload;
            }
        }
    }

    #[test]
    fn a_secret_is_in_no_page_and_no_complaint() {
        let read = |text: &str| Sources::text("door.toml", text).read_over(Door::default(), &[]);
        let door = read("token = \"open sesame\"").unwrap();
        assert!(door.config.token.as_ref().is_some_and(|token| token.matches(b"open sesame")));
        let page = door.show();
        assert!(page.contains("# token is hidden") && page.contains("# door.toml, line 1"), "{page}");
        for told in [format!("{door:?}"), page] {
            assert!(!told.contains("sesame"), "{told}");
        }
        for text in [
            "token = \"sesame\"\nopen = 1",
            "token = \"open sesame\"\nopen = 1",
            "open = 1\ntoken = [\"sesame\"]",
            "open = ?\ntoken = \"sesame\"",
            "tokn = \"sesame\"",
            "x = { tokn = \"sesame\" }",
            "[x]\ntoken = \"sesame\"",
            "token = sesame",
            "token = \"sesame",
            "token = \"\"\"\nsesame\n",
            "token \"sesame\"",
        ] {
            let error = read(text).unwrap_err();
            let mut told = format!("{error:?}");
            told += &format!("{:?}", miette::Report::new(error));
            assert!(told.contains("****"), "{told}");
            assert_eq!(told.contains("1 │ [x]"), text.starts_with("[x]"), "{told}");
            assert!(!told.contains("sesame"), "{told}");
        }
    }
}
