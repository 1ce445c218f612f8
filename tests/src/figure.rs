//! What a benchmark prints: one JSON object a line.

use serde_json::{Map, Value, json};

/// One figure in base units.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The benchmark.
    pub bench: &'static str,
    /// What was measured.
    pub figure: &'static str,
    /// Of whom.
    pub subject: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Under which circumstances.
    pub params: Map<String, Value>,
}

impl Figure {
    /// As a line.
    #[must_use]
    pub fn to_line(&self) -> String {
        json!({
            "bench": self.bench,
            "figure": self.figure,
            "subject": self.subject,
            "value": self.value,
            "unit": self.unit,
            "params": self.params,
        })
        .to_string()
    }
}
