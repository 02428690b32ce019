//! What `heliostat bench all` (or `size`, or `start`) measured, as one curve for each size that was varied.

use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

/// One curve.
struct Panel {
    /// What the name of a measured row begins with, and how the axis on the left is called.
    row: &'static str,
    left: &'static str,
    /// What it ends with behind the size, and how the axis below is called.
    suffix: &'static str,
    below: &'static str,
    /// What is measured in other units than are shown.
    times: f64,
}

const BELOW: [(&str, &str); 4] = [
    (" groups stored", "groups stored beside those under load"),
    (" messages queued", "messages queued before"),
    (" devices in a group", "devices in each group"),
    (" bytes in a message", "bytes in a message"),
];
const LEFT: [(&str, &str); 2] =
    [("reflects", "reflects per second"), ("server CPU per reflect", "server CPU, us per reflect")];
const START: [(&str, &str, f64); 2] =
    [("from start to ready", "from start to ready, ms", 1e3), ("memory then", "memory when ready, MiB", 1.0)];

/// Two rows of five.
fn panels() -> impl Iterator<Item = Panel> {
    LEFT.into_iter().zip(START).flat_map(|((row, left), (start, start_left, times))| {
        let reflects = BELOW.into_iter().map(move |(suffix, below)| Panel { row, left, suffix, below, times: 1.0 });
        let (suffix, below) = (" messages stored", "messages stored");
        reflects.chain([Panel { row: start, left: start_left, suffix, below, times }])
    })
}

/// One measured size: least, median, most.
struct Point {
    size: f64,
    spread: [f64; 3],
}

/// Draws `curves.svg` into a directory.
pub fn draw(measured: &Path, out: &Path) {
    let report: Value = serde_json::from_slice(&std::fs::read(measured).unwrap()).unwrap();
    let rows: Vec<&Value> = report["measurements"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|part| part["results"].as_array().unwrap())
        .collect();
    std::fs::create_dir_all(out).unwrap();
    let file = out.join("curves.svg");
    let root = SVGBackend::new(&file, (1_500, 560)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    for (area, panel) in root.split_evenly((2, 5)).iter().zip(panels()) {
        let points: Vec<Point> = rows.iter().filter_map(|result| point(result, &panel)).collect();
        if !points.is_empty() {
            curve(area, &points, &panel);
        }
    }
    root.present().unwrap();
    println!("written: {}", file.display());
}

fn point(result: &Value, panel: &Panel) -> Option<Point> {
    let name = result["name"].as_str()?;
    let size = name.strip_prefix(panel.row)?.strip_prefix(", ")?.strip_suffix(panel.suffix)?.parse().ok()?;
    let [least, median, most] = ["least", "median", "most"].map(|key| Some(result[key].as_f64()? * panel.times));
    Some(Point { size, spread: [least?, median?, most?] })
}

/// Sizes by powers of two, so that a curve that is flat is seen to be; the left axis begins at zero for the same reason.
fn curve(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, points: &[Point], panel: &Panel) {
    // Nothing at all has its place left of one.
    let at = |size: f64| size.max(0.5).log2();
    let (from, to) = (at(points[0].size), at(points[points.len() - 1].size));
    let most = points.iter().map(|point| point.spread[2]).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(72)
        .build_cartesian_2d(from - 0.5..to + 0.5, 0.0..most * 1.1)
        .unwrap();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc(panel.below)
        .y_desc(panel.left)
        .x_labels(4)
        .y_labels(5)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_label_formatter(&|power| format!("{:.0}", 2_f64.powf(*power)))
        .draw()
        .unwrap();
    let blue = RGBColor(50, 90, 160);
    let line: Vec<_> = points.iter().map(|point| (at(point.size), point.spread[1])).collect();
    chart.draw_series([PathElement::new(line, blue.stroke_width(1))]).unwrap();
    for Point { size, spread: [least, median, most] } in points {
        let x = at(*size);
        chart.draw_series([PathElement::new([(x, *least), (x, *most)], blue.stroke_width(1))]).unwrap();
        chart.draw_series([Circle::new((x, *median), 3, blue.filled())]).unwrap();
    }
}
