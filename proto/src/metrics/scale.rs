//! Doubles as integer mantissas with a decimal scale.

use std::cmp::Ordering;

use crate::agent::v1 as wire;

use super::MetricError;

/// How a mantissa becomes a value: `m / 10^digits`, or `m × (1 / 10^digits)`, which rounds
/// differently. node_exporter turns milliseconds into seconds the second way, most others use the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Scale {
    digits: u8,
    reciprocal: bool,
}

const POWERS: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// 2^63: an i64 holds what lies strictly below it, in amount.
const BOUND: f64 = 9_223_372_036_854_775_808.0;

impl Scale {
    /// Of integers.
    pub const WHOLE: Self = Self {
        digits: 0,
        reciprocal: false,
    };

    /// A scale of so many digits, of at most nine.
    #[must_use]
    pub fn new(digits: u8, reciprocal: bool) -> Option<Self> {
        let scale = Self { digits, reciprocal };
        (usize::from(digits) < POWERS.len()).then_some(scale)
    }

    /// How many decimal digits a value has.
    #[must_use]
    pub fn digits(self) -> u8 {
        self.digits
    }

    /// Whether mantissas are multiplied with the reciprocal.
    #[must_use]
    pub fn is_reciprocal(self) -> bool {
        self.reciprocal
    }

    fn power(self) -> f64 {
        POWERS.get(usize::from(self.digits)).copied().unwrap_or(1.0)
    }

    /// The value of a mantissa.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "the encoder uses a mantissa only if this gives the very value back"
    )]
    pub fn value(self, mantissa: i64) -> f64 {
        if self.reciprocal {
            mantissa as f64 * (1.0 / self.power())
        } else {
            mantissa as f64 / self.power()
        }
    }

    /// The mantissa whose value is exactly `value`.
    #[must_use]
    pub fn mantissa(self, value: f64) -> Option<i64> {
        let scaled = (value * self.power()).round();
        // Neither do NaN and the infinities.
        if scaled.abs().partial_cmp(&BOUND) != Some(Ordering::Less) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an integer within i64's bounds"
        )]
        let mantissa = scaled as i64;
        (self.value(mantissa).to_bits() == value.to_bits()).then_some(mantissa)
    }

    /// The first scale from this one on that holds `value` exactly.
    #[must_use]
    pub fn fit(self, value: f64) -> Option<(Self, i64)> {
        if let Some(mantissa) = self.mantissa(value) {
            return Some((self, mantissa));
        }
        (self.digits..10)
            .flat_map(|digits| [false, true].map(|reciprocal| Self { digits, reciprocal }))
            .filter(|scale| *scale > self)
            .find_map(|scale| scale.mantissa(value).map(|mantissa| (scale, mantissa)))
    }

    pub(super) fn from_wire(def: &wire::SeriesDef) -> Result<Self, MetricError> {
        u8::try_from(def.scale)
            .ok()
            .and_then(|digits| Self::new(digits, def.reciprocal))
            .ok_or(MetricError::Scale(def.scale))
    }

    pub(super) fn write(self, def: &mut wire::SeriesDef) {
        def.scale = u32::from(self.digits);
        def.reciprocal = self.reciprocal;
    }
}
