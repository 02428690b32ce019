//! What a judgement found, in four forms: a table for people, TAP, JUnit and JSON for machines.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A readable table
    Table,
    /// Test Anything Protocol, version 14
    Tap,
    /// JUnit's XML
    Junit,
    /// One JSON object
    Json,
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict", content = "detail")]
pub enum Verdict {
    /// The rule is kept.
    Passed,
    /// It is not, and this is what was seen.
    Failed(String),
    /// It was not tried, and this is why.
    Skipped(String),
}

/// One line of a report.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case's number.
    pub id: String,
    /// What has to hold, in a sentence.
    pub rule: &'static str,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long it took.
    pub took_ms: u64,
}

/// All lines, in the order of the cases.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Who was judged.
    pub subject: String,
    /// Case by case.
    pub outcomes: Vec<Outcome>,
    /// What was not cleaned up, in words; empty if nothing is left of the judgement.
    pub left_behind: Vec<String>,
    /// How long everything took.
    pub took_ms: u64,
}

impl Report {
    /// The numbers of the cases that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<&str> {
        let failed = self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Failed(_)));
        failed.map(|outcome| outcome.id.as_str()).collect()
    }

    /// Whether nothing failed and something was tried.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failed().is_empty() && self.outcomes.iter().any(|outcome| outcome.verdict == Verdict::Passed)
    }

    /// The report as text. `colours` are for the table alone.
    #[must_use]
    pub fn render(&self, format: Format, colours: bool) -> String {
        match format {
            Format::Table => self.table(colours),
            Format::Tap => self.tap(),
            Format::Junit => self.junit(),
            Format::Json => serde_json::to_string_pretty(self).unwrap_or_default() + "\n",
        }
    }

    fn counts(&self) -> [usize; 3] {
        let count = |fits: fn(&Verdict) -> bool| self.outcomes.iter().filter(|it| fits(&it.verdict)).count();
        [
            count(|verdict| *verdict == Verdict::Passed),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        ]
    }

    fn table(&self, colours: bool) -> String {
        let paint = |colour: &str, word: &str| {
            if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
        };
        let width = self.outcomes.iter().map(|outcome| outcome.id.len()).max().unwrap_or_default();
        let mut out = String::new();
        for outcome in &self.outcomes {
            let (word, detail) = match &outcome.verdict {
                Verdict::Passed => (paint("32", "pass"), None),
                Verdict::Failed(why) => (paint("31;1", "FAIL"), Some(why)),
                Verdict::Skipped(why) => (paint("33", "skip"), Some(why)),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{word}  {:width$}  {}", outcome.id, outcome.rule);
            if let Some(detail) = detail {
                let _ = writeln!(out, "      {:width$}  {}", "", paint("2", &format!("> {detail}")));
            }
        }
        for what in &self.left_behind {
            let _ = writeln!(out, "{}  {what}", paint("33", "left behind"));
        }
        let [passed, failed, skipped] = self.counts();
        let colour = if self.is_good() { "32" } else { "31;1" };
        let sum = format!("{passed} passed, {failed} failed, {skipped} skipped");
        let took = Duration::from_millis(self.took_ms).as_secs_f64();
        let _ = writeln!(out, "{} in {took:.1} s", paint(colour, &sum));
        out
    }

    fn tap(&self) -> String {
        let mut out = format!("TAP version 14\n1..{}\n", self.outcomes.len());
        for (number, outcome) in (1..).zip(&self.outcomes) {
            let (ok, directive) = match &outcome.verdict {
                Verdict::Passed => ("ok", String::new()),
                Verdict::Failed(_) => ("not ok", String::new()),
                Verdict::Skipped(why) => ("ok", format!(" # SKIP {}", one_line(why))),
            };
            let rule = outcome.rule.replace('\\', "\\\\").replace('#', "\\#");
            let _ = writeln!(out, "{ok} {number} - {} {rule}{directive}", outcome.id);
            let _ = writeln!(out, "  ---\n  duration_ms: {}", outcome.took_ms);
            if let Verdict::Failed(why) = &outcome.verdict {
                // A JSON string is a YAML string.
                let _ = writeln!(out, "  message: {}", serde_json::Value::from(one_line(why)));
            }
            out.push_str("  ...\n");
        }
        for what in &self.left_behind {
            let _ = writeln!(out, "# left behind: {}", one_line(what));
        }
        out
    }

    fn junit(&self) -> String {
        let [_, failed, skipped] = self.counts();
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let mut out = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"heliostat conform\" \
             hostname=\"{}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\" time=\"{:.3}\">\n",
            xml(&self.subject),
            self.outcomes.len(),
            seconds(self.took_ms)
        );
        for outcome in &self.outcomes {
            let (class, _) = outcome.id.split_once('.').unwrap_or((&outcome.id, ""));
            let _ = write!(
                out,
                "<testcase classname=\"{}\" name=\"{} {}\" time=\"{:.3}\"",
                xml(class),
                xml(&outcome.id),
                xml(outcome.rule),
                seconds(outcome.took_ms)
            );
            let _ = match &outcome.verdict {
                Verdict::Passed => writeln!(out, "/>"),
                Verdict::Failed(why) => writeln!(out, "><failure message=\"{}\"/></testcase>", xml(why)),
                Verdict::Skipped(why) => writeln!(out, "><skipped message=\"{}\"/></testcase>", xml(why)),
            };
        }
        for what in &self.left_behind {
            let _ = writeln!(out, "<system-err>left behind: {}</system-err>", xml(what));
        }
        out.push_str("</testsuite>\n</testsuites>\n");
        out
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What XML 1.0 cannot hold, not even escaped, becomes a question mark.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let outcome = |id: &str, verdict| Outcome { id: id.to_owned(), rule: "a < b, #1", verdict, took_ms: 12 };
        Report {
            subject: "ws://m/".to_owned(),
            outcomes: vec![
                outcome("D2M-1.2a", Verdict::Passed),
                outcome("D2M-12.7b", Verdict::Failed("saw \"x\"\n& more".to_owned())),
                outcome("CSP-13.5", Verdict::Skipped("no chat".to_owned())),
            ],
            left_behind: vec!["a group".to_owned()],
            took_ms: 1_250,
        }
    }

    #[test]
    fn people_read_a_table_with_colours_only_if_they_want_them() {
        let table = report().render(Format::Table, false);
        assert!(table.contains("pass  D2M-1.2a   a < b, #1\n"), "{table}");
        assert!(table.contains("FAIL  D2M-12.7b  a < b, #1\n                 > saw"), "{table}");
        assert!(table.ends_with("left behind  a group\n1 passed, 1 failed, 1 skipped in 1.2 s\n"), "{table}");
        assert!(!table.contains('\x1b'));
        assert!(report().render(Format::Table, true).contains("\x1b[31;1mFAIL\x1b[0m"));
    }

    #[test]
    fn tap_counts_skips_as_ok_and_explains_failures() {
        let tap = report().render(Format::Tap, true);
        assert!(tap.starts_with("TAP version 14\n1..3\nok 1 - D2M-1.2a a < b, \\#1\n"), "{tap}");
        assert!(tap.contains(
            "not ok 2 - D2M-12.7b a < b, \\#1\n  ---\n  duration_ms: 12\n  message: \"saw \\\"x\\\" & more\"\n  ...\n"
        ));
        assert!(tap.contains("ok 3 - CSP-13.5 a < b, \\#1 # SKIP no chat\n"), "{tap}");
    }

    #[test]
    fn junit_is_escaped() {
        let junit = report().render(Format::Junit, true);
        assert!(junit.contains("tests=\"3\" failures=\"1\" skipped=\"1\" time=\"1.250\""), "{junit}");
        assert!(junit.contains("<failure message=\"saw &quot;x&quot; &amp; more\"/>"), "{junit}");
        assert!(junit.contains("name=\"D2M-1.2a a &lt; b, #1\""), "{junit}");
    }

    #[test]
    fn json_says_the_verdict_of_each() {
        let json: serde_json::Value = serde_json::from_str(&report().render(Format::Json, true)).unwrap();
        assert_eq!(json["outcomes"][0]["verdict"], "passed");
        assert_eq!(json["outcomes"][1]["detail"], "saw \"x\"\n& more");
        assert_eq!(json["left_behind"][0], "a group");
    }

    #[test]
    fn only_what_was_tried_and_kept_is_good() {
        let mut report = report();
        assert_eq!((report.failed(), report.is_good()), (vec!["D2M-12.7b"], false));
        report.outcomes.remove(1);
        assert!(report.is_good());
        report.outcomes.remove(0);
        assert!(!report.is_good(), "nothing was tried");
    }
}
