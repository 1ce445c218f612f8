//! Charts as SVG, which need nothing to be looked at.

use super::{
    line::{Line, human},
    push,
};

/// Characters of a bar's name.
const NAME: usize = 44;
/// Height of a bar with its gap, pixels.
const ROW: usize = 26;
/// Width of the longest bar, pixels.
const BAR: f64 = 420.0;
/// Of a curve's field, pixels.
const FIELD: (f64, f64) = (420.0, 180.0);

/// Horizontal bars, one a line.
pub(super) fn bars(title: &str, unit: &str, lines: &[&Line]) -> String {
    let most = most(lines.iter().map(|line| line.value));
    let height = 40 + lines.len() * ROW;
    let mut svg = begun(title, 900, height);
    for (place, line) in lines.iter().enumerate() {
        let y = 34 + place * ROW;
        let under = line.circumstances();
        let name: String = format!("{} {under}", line.subject)
            .chars()
            .take(NAME)
            .collect();
        let width = (line.value / most * BAR).max(1.0);
        let colour = if line.is_ours() { "#2563eb" } else { "#9ca3af" };
        push(
            &mut svg,
            &format!(
                "<text x=\"8\" y=\"{}\">{}</text>\n<rect x=\"330\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
                y + 13,
                escaped(&name),
                336.0 + width,
                y + 13,
                escaped(&human(line.value, unit)),
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Values over the size of the fleet, from zero on both axes.
pub(super) fn curve(title: &str, unit: &str, points: &[(f64, f64)]) -> String {
    let (width, height) = FIELD;
    let right = most(points.iter().map(|(x, _)| *x));
    let top = most(points.iter().map(|(_, y)| *y));
    let at = |(x, y): &(f64, f64)| (60.0 + x / right * width, 34.0 + height - y / top * height);
    let line: Vec<String> = points
        .iter()
        .map(|point| {
            let (x, y) = at(point);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    let mut svg = begun(title, 620, 250);
    push(
        &mut svg,
        &format!(
            "<path d=\"M60 34V{0}H{1}\" fill=\"none\" stroke=\"#9ca3af\"/>\n\
             <polyline points=\"{2}\" fill=\"none\" stroke=\"#2563eb\" stroke-width=\"2\"/>\n",
            34.0 + height,
            60.0 + width,
            line.join(" ")
        ),
    );
    for point in points {
        let (x, y) = at(point);
        push(
            &mut svg,
            &format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#2563eb\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n<text x=\"{x:.1}\" y=\"{}\">{}</text>\n",
                x + 6.0,
                y + 4.0,
                escaped(&human(point.1, unit)),
                34.0 + height + 16.0,
                point.0
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn begun(title: &str, width: usize, height: usize) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"8\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    )
}

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::MIN_POSITIVE, f64::max)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_runs_from_its_first_point_to_its_last() {
        let svg = curve("rss & more", "bytes", &[(100.0, 1024.0), (200.0, 2048.0)]);
        assert!(svg.contains("points=\"270.0,124.0 480.0,34.0\""), "{svg}");
        assert!(
            svg.contains("rss &amp; more") && svg.contains(">2 KiB<"),
            "{svg}"
        );
    }
}
