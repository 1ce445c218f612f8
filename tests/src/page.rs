//! Samples of a page in Prometheus' text format, as far as tests look at them.

/// The value of the first series of that name with all these labels. Values of labels are compared as they stand on
/// the page, with its escapes.
#[must_use]
pub fn value(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    series(page, name).find_map(|(has, value)| {
        let all = labels
            .iter()
            .all(|(key, value)| has.contains(&format!(",{key}=\"{value}\"")));
        all.then_some(value)
    })
}

/// Labels and values of every series of that name. A comma stands before each label.
pub fn series<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (String, f64)> + 'a {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((format!(",{labels}"), value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE up gauge\nup 1\nupper 2\nup{a=\"x\",b=\"y\"} 3\nup{ab=\"x\"} 4\n";

    #[test]
    fn finds_what_has_the_name_and_the_labels() {
        assert_eq!(value(PAGE, "up", &[]), Some(1.0));
        assert_eq!(value(PAGE, "up", &[("b", "y")]), Some(3.0));
        assert_eq!(value(PAGE, "up", &[("b", "x")]), None);
        assert_eq!(series(PAGE, "up").count(), 3);
    }
}
