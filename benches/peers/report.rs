//! Figures of several rounds as medians, spreads and ratios.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use plotters::prelude::*;
use serde_json::{Value, json};

use super::Plan;

/// One figure of one program, a value per round.
#[derive(Debug)]
struct Figure {
    program: &'static str,
    name: &'static str,
    unit: &'static str,
    rounds: Vec<f64>,
}

/// What was measured in one comparison. The first program named is Heliostat as it is meant to run.
#[derive(Debug)]
pub struct Comparison {
    name: &'static str,
    /// Sizes, numbers, durability: what has to be known to read the figures.
    conditions: String,
    figures: Vec<Figure>,
    /// What could not be measured, and why.
    missing: Vec<String>,
    /// Figure, program, peer, whether more is better, and the target of the ratio.
    targets: Vec<Target>,
}

/// A ratio that is aimed at.
#[derive(Debug)]
pub struct Target {
    pub figure: &'static str,
    pub of: &'static str,
    pub to: &'static str,
    /// At least, or at most.
    pub aim: Aim,
}

#[derive(Debug, Clone, Copy)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Comparison {
    pub fn new(name: &'static str, conditions: String) -> Self {
        Self { name, conditions, figures: Vec::new(), missing: Vec::new(), targets: Vec::new() }
    }

    pub fn note(&mut self, program: &'static str, name: &'static str, unit: &'static str, value: f64) {
        match self.figures.iter_mut().find(|figure| (figure.program, figure.name) == (program, name)) {
            Some(figure) => figure.rounds.push(value),
            None => self.figures.push(Figure { program, name, unit, rounds: vec![value] }),
        }
    }

    pub fn missing(&mut self, what: &str) {
        self.missing.push(what.to_owned());
    }

    pub fn aim(&mut self, target: Target) {
        self.targets.push(target);
    }

    fn find(&self, program: &str, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| (figure.program, figure.name) == (program, name))
    }

    /// The ratio of each round, since rounds were measured side by side.
    fn ratio(&self, target: &Target) -> Option<Vec<f64>> {
        let (of, to) = (self.find(target.of, target.figure)?, self.find(target.to, target.figure)?);
        Some(of.rounds.iter().zip(&to.rounds).map(|(of, to)| of / to).collect())
    }

    pub fn table(&self) -> String {
        let mut out = format!("== {}\n   {}\n", self.name, self.conditions);
        let width = self.figures.iter().map(|figure| figure.program.len()).max().unwrap_or_default();
        for figure in &self.figures {
            let [low, median, high] = spread(&figure.rounds);
            let _ = writeln!(
                out,
                "   {:width$}  {:28} {:>12} {:10} ({} to {})",
                figure.program,
                figure.name,
                digits(median),
                figure.unit,
                digits(low),
                digits(high),
            );
        }
        for target in &self.targets {
            let Some(ratios) = self.ratio(target) else { continue };
            let [low, median, high] = spread(&ratios);
            let (met, aim) = match target.aim {
                Aim::AtLeast(aim) => (median >= aim, format!("at least {aim}")),
                Aim::AtMost(aim) => (median <= aim, format!("at most {aim}")),
            };
            let _ = writeln!(
                out,
                "   {}: {} / {} = {median:.2} ({low:.2} to {high:.2}); aimed at {aim}: {}",
                target.figure,
                target.of,
                target.to,
                if met { "met" } else { "MISSED" },
            );
        }
        for what in &self.missing {
            let _ = writeln!(out, "   not measured: {what}");
        }
        out
    }

    fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            let [low, median, high] = spread(&figure.rounds);
            json!({ "program": figure.program, "figure": figure.name, "unit": figure.unit,
                    "median": median, "low": low, "high": high, "rounds": figure.rounds })
        });
        let ratios = self.targets.iter().filter_map(|target| {
            let [low, median, high] = spread(&self.ratio(target)?);
            let (aim, value) = match target.aim {
                Aim::AtLeast(value) => ("at least", value),
                Aim::AtMost(value) => ("at most", value),
            };
            Some(json!({ "figure": target.figure, "of": target.of, "to": target.to, "median": median, "low": low,
                         "high": high, "aim": aim, "target": value }))
        });
        json!({ "name": self.name, "conditions": self.conditions, "figures": figures.collect::<Vec<_>>(),
                "ratios": ratios.collect::<Vec<_>>(), "missing": self.missing })
    }
}

/// Lowest, median, highest.
fn spread(rounds: &[f64]) -> [f64; 3] {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
}

fn digits(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// What the figures were measured on.
fn machine() -> Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim_matches([':', ' ', '\t']).to_owned())
    };
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
    };
    json!({
        "processor": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": read("/proc/loadavg").trim(),
        "commit": said("git", &["rev-parse", "--short", "HEAD"]),
        "haproxy": said("haproxy", &["-v"]),
        "mosquitto": said("mosquitto", &["-h"]),
    })
}

pub fn write(dir: &Path, plan: Plan, comparisons: &[Comparison]) {
    std::fs::create_dir_all(dir).unwrap();
    let all: Vec<Value> = comparisons.iter().map(Comparison::json).collect();
    let whole =
        json!({ "machine": machine(), "rounds": plan.rounds, "seconds": plan.lasts.as_secs_f64(), "comparisons": all });
    std::fs::write(dir.join("peers.json"), serde_json::to_string_pretty(&whole).unwrap()).unwrap();
    plot(&dir.join("peers.svg"), comparisons);
    println!("written: {0}/peers.json, {0}/peers.svg", dir.display());
}

/// Each ratio as a bar with its spread, on a scale of powers of two, with what is aimed at as a line across it.
fn plot(file: &Path, comparisons: &[Comparison]) {
    let rows: Vec<_> = comparisons
        .iter()
        .flat_map(|comparison| comparison.targets.iter().map(move |target| (comparison, target)))
        .filter_map(|(comparison, target)| {
            let name = format!("{}: {}, {} / {}", comparison.name, target.figure, target.of, target.to);
            Some((name, spread(&comparison.ratio(target)?), target.aim))
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let height = u32::try_from(rows.len()).unwrap() * 60 + 60;
    let root = SVGBackend::new(file, (900, height)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(30)
        .build_cartesian_2d(-3.0..3.0, 0.0..f64::from(u32::try_from(rows.len()).unwrap()))
        .unwrap();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(7)
        .x_label_formatter(&|power| format!("{}x", 2_f64.powf(*power)))
        .draw()
        .unwrap();
    for (row, (name, [low, median, high], aim)) in rows.into_iter().enumerate() {
        let top = f64::from(u32::try_from(row).unwrap());
        let (value, met) = match aim {
            Aim::AtLeast(value) => (value, median >= value),
            Aim::AtMost(value) => (value, median <= value),
        };
        let colour = if met { RGBColor(60, 140, 90) } else { RGBColor(190, 90, 50) };
        let [low, median, high, value] = [low, median, high, value].map(|ratio| ratio.log2().clamp(-3.0, 3.0));
        let bar = Rectangle::new([(0.0, top + 0.5), (median, top + 0.8)], colour.filled());
        let spread = PathElement::new([(low, top + 0.65), (high, top + 0.65)], BLACK.stroke_width(2));
        let aim = PathElement::new([(value, top + 0.42), (value, top + 0.88)], BLUE.stroke_width(2));
        chart.draw_series([bar]).unwrap();
        chart.draw_series([spread, aim]).unwrap();
        chart.draw_series([Text::new(name, (-2.95, top + 0.35), ("sans-serif", 15))]).unwrap();
    }
    root.present().unwrap();
}
