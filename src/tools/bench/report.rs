//! What was measured: medians of rounds, with the least and the most beside them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::machine::{self, Machine};

/// Which way a number is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Less,
    More,
}

/// All measurements of a run.
#[derive(Debug)]
pub(super) struct Report {
    machine: Machine,
    parameters: Value,
    parts: Vec<Part>,
    load_after: String,
}

#[derive(Debug)]
struct Part {
    name: &'static str,
    parameters: Value,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    /// In the order they were measured.
    rounds: Vec<f64>,
}

impl Report {
    pub(super) fn new(machine: Machine, parameters: &Value) -> Self {
        Self { machine, parameters: parameters.clone(), parts: Vec::new(), load_after: String::new() }
    }

    /// What follows belongs to this measurement.
    pub(super) fn begin(&mut self, name: &'static str, parameters: Value) {
        self.parts.push(Part { name, parameters, rows: Vec::new() });
    }

    /// What the rounds said; nothing when it could not be measured.
    pub(super) fn add(&mut self, name: &str, unit: &'static str, better: Better, rounds: Vec<f64>) {
        if let Some(part) = self.parts.last_mut().filter(|_| !rounds.is_empty()) {
            part.rows.push(Row { name: name.to_owned(), unit, better, rounds });
        }
    }

    pub(super) fn finish(&mut self) {
        self.load_after = machine::load_average();
    }

    pub(super) fn table(&self) -> String {
        let it = &self.machine;
        let mut out = format!(
            "{}, {} build\n{}, {} cores, {} MiB, Linux {}, {} ({} us for an append and a sync)\nload average {} before, {} after\n",
            it.program,
            it.build,
            it.processor,
            it.cores,
            it.memory_mib,
            it.kernel,
            it.filesystem,
            it.sync_us,
            it.load_before,
            self.load_after,
        );
        if it.build == "debug" {
            out.push_str("a debug build: these numbers say nothing about a release\n");
        }
        let names = self.parts.iter().flat_map(|part| &part.rows).map(|row| row.name.len());
        let width = names.max().unwrap_or_default();
        writeln!(out, "all: {}", self.parameters).unwrap_or_default();
        for part in &self.parts {
            writeln!(out, "\n{}: {}", part.name, part.parameters).unwrap_or_default();
            for row in &part.rows {
                let (least, median, most) = row.spread();
                let [least, median, most] = [least, median, most].map(shown);
                let name = &row.name;
                writeln!(out, "  {name:width$}  {median:>10} {:5}  ({least} to {most})", row.unit).unwrap_or_default();
            }
        }
        out
    }

    pub(super) fn json(&self) -> Value {
        let row = |row: &Row| {
            let (least, median, most) = row.spread();
            json!({
                "name": row.name, "unit": row.unit, "median": median, "least": least, "most": most, "rounds": row.rounds,
                "better": match row.better { Better::Less => "less", Better::More => "more" },
            })
        };
        let part = |part: &Part| {
            let rows: Vec<Value> = part.rows.iter().map(row).collect();
            json!({"name": part.name, "parameters": part.parameters, "results": rows})
        };
        let mut machine = self.machine.json();
        if let Some(machine) = machine.as_object_mut() {
            machine.insert("load_average_after".to_owned(), json!(self.load_after));
        }
        let parts: Vec<Value> = self.parts.iter().map(part).collect();
        json!({"machine": machine, "parameters": self.parameters, "measurements": parts})
    }
}

impl Row {
    /// Least, median and most. Of an even number of rounds the median is the mean of the middle two.
    fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.saturating_sub(1)), at(half)) };
        (at(0), median, at(sorted.len().saturating_sub(1)))
    }
}

/// With three digits that mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_and_its_spread_all_of_it() {
        let row = |rounds: &[f64]| Row { name: String::new(), unit: "", better: Better::Less, rounds: rounds.to_vec() };
        assert_eq!(row(&[5.0, 1.0, 9.0]).spread(), (1.0, 5.0, 9.0));
        assert_eq!(row(&[5.0, 1.0, 9.0, 6.0]).spread(), (1.0, 5.5, 9.0));
        assert_eq!(row(&[2.0]).spread(), (2.0, 2.0, 2.0));
    }

    #[test]
    fn numbers_are_shown_with_the_digits_that_mean_something() {
        assert_eq!([0.012_34, 1.239, 12.39, 12_345.6].map(shown), ["0.012", "1.24", "12.4", "12346"]);
    }
}
