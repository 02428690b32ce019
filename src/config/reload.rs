//! What follows from a changed configuration while the server runs: a comparison, and nothing is done.

use super::settings::{Change, Key, Section as _, Visitor};
use super::{Config, RULES};

/// What a new configuration changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// What holds from now on: the old configuration with everything of the new one that can be taken over. The next
    /// comparison is made with this one.
    pub config: Config,
    /// What was taken over.
    pub taken_over: Vec<Changed>,
    /// What waits for a restart.
    pub waiting: Vec<Changed>,
}

/// A key whose value changed, fit for the log: no secret, and of lists only how long they are, since they may hold ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// As in a file: `limits.idle_timeout`.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it is in the new configuration.
    pub to: String,
}

/// What can be taken over does not go together with what waits for a restart, so nothing is taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}, but some of that waits for a restart: {}", waiting.join(", "))]
pub struct NeedsRestart {
    /// The rule that would be broken.
    pub reason: &'static str,
    /// The keys that wait.
    pub waiting: Vec<String>,
}

impl Config {
    /// Compares with a new configuration, which was checked on its own.
    ///
    /// # Errors
    /// [`NeedsRestart`].
    pub fn reload(&self, new: &Self) -> Result<Changes, NeedsRestart> {
        let mut changes = Changes { config: self.clone(), taken_over: Vec::new(), waiting: Vec::new() };
        let mut config = self.clone();
        config.walk(new, "", &mut changes);
        changes.config = config;
        match RULES.iter().find(|rule| (rule.broken)(&changes.config)) {
            None => Ok(changes),
            Some(rule) => {
                let waiting = changes.waiting.into_iter().map(|changed| changed.key).collect();
                Err(NeedsRestart { reason: rule.reason, waiting })
            }
        }
    }
}

impl Visitor for Changes {
    fn section(&mut self, _: &str, _: &[&str]) {}

    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, mine: &mut T, new: &T) {
        if mine == new {
            return;
        }
        let [from, to] = key.kind.difference(mine, new);
        let changed = Changed { key: key.path.to_owned(), from, to };
        match key.change {
            Change::Reload => {
                self.taken_over.push(changed);
                mine.clone_from(new);
            }
            Change::Restart => self.waiting.push(changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("test.toml", text).unwrap()
    }

    fn keys(changed: &[Changed]) -> Vec<&str> {
        changed.iter().map(|changed| &*changed.key).collect()
    }

    #[test]
    fn the_same_configuration_changes_nothing() {
        let old = config("[limits]\nidle_timeout = '2 min'");
        let changes = old.reload(&config("[limits]\nidle_timeout = '120 s'")).unwrap();
        assert_eq!(changes, Changes { config: old, taken_over: Vec::new(), waiting: Vec::new() });
    }

    #[test]
    fn what_can_be_taken_over_is_and_the_rest_waits() {
        let old = config("data_dir = 'a'");
        let new = "data_dir = 'b'\nserver_groups.default.addresses = ['h:1']\nlimits.idle_timeout = '5 min'";
        let changes = old.reload(&config(new)).unwrap();
        assert_eq!(keys(&changes.taken_over), ["server_groups", "limits.idle_timeout"]);
        assert_eq!(keys(&changes.waiting), ["data_dir"]);
        let told = changes.taken_over.iter().map(|it| format!("{} -> {}", it.from, it.to)).collect::<Vec<_>>();
        assert_eq!(told, ["not set -> 0 exact, a default", "\"2 min\" -> \"5 min\""]);
        let expected = config(&new.replace("'b'", "'a'"));
        assert_eq!(changes.config, expected);
        let again = expected.reload(&config(new)).unwrap();
        assert_eq!((keys(&again.taken_over), keys(&again.waiting)), (vec![], vec!["data_dir"]), "it still waits");
    }

    #[test]
    fn of_server_groups_it_is_told_which_changed() {
        let old = config("server_groups.exact.a0.addresses = ['h:1']\nserver_groups.exact.b0.addresses = ['h:2']");
        let new = "server_groups.exact.a0.addresses = ['h:3']\nserver_groups.exact.c0.addresses = ['h:2']";
        let changes = old.reload(&config(new)).unwrap();
        let [groups] = &changes.taken_over[..] else { panic!("{changes:?}") };
        assert_eq!((&*groups.from, &*groups.to), ("2 exact", "2 exact (changed: a0; gone: b0; new: c0)"));

        let many: String = (0..12).map(|n| format!("server_groups.exact.n{n:02}.addresses = ['h:1']\n")).collect();
        let changes = old.reload(&config(&many)).unwrap();
        let to = &changes.taken_over[0].to;
        assert!(to.ends_with("new: n00, n01, n02, n03, n04, n05, n06, n07 and 4 more)"), "{to}");
    }

    #[test]
    fn what_is_told_of_a_change_holds_no_ids() {
        let id = "2f".repeat(32);
        let changes = config("").reload(&config(&format!("admission.groups = [{id:?}]"))).unwrap();
        let [groups] = &changes.taken_over[..] else { panic!("{changes:?}") };
        assert_eq!((&*groups.from, &*groups.to), ("\"all\"", "a list of 1"));
    }

    #[test]
    fn a_mixture_that_cannot_be_is_refused_whole() {
        // No rule of today spans keys of both sorts, so one that is broken already stands in for it.
        let mut old = config("");
        old.listen.plain = true;
        old.listen.cert = Some("c".into());
        let refused = old.reload(&config("limits.idle_timeout = '5 min'")).unwrap_err();
        assert_eq!(refused.waiting, ["listen.plain", "listen.cert"]);
        assert!(refused.to_string().contains("`plain` means no TLS"), "{refused}");
    }
}
