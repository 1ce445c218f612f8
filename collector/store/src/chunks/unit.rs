//! How the values of a column become integers: in which unit.

use std::cmp::Ordering;

use nexus_proto::metrics::Scale;

/// A value is an integer in some decimal unit, or nothing but a double.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// As the wire codes it.
    Decimal(Scale),
    /// `m / 1000 / 1000`, which rounds twice: microseconds as node_exporter turns them into seconds.
    Micro,
    /// The bits of the double.
    Bits,
}

const RECIPROCAL: u8 = 0x10;
const MICRO: u8 = 0x20;
const BITS: u8 = 0x21;

impl Unit {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Decimal(scale) if scale.is_reciprocal() => scale.digits() | RECIPROCAL,
            Self::Decimal(scale) => scale.digits(),
            Self::Micro => MICRO,
            Self::Bits => BITS,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            MICRO => Some(Self::Micro),
            BITS => Some(Self::Bits),
            _ => Scale::new(code & 0x0f, code & RECIPROCAL != 0)
                .filter(|_| code < MICRO)
                .map(Self::Decimal),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a mantissa is used only if this gives the very value back"
    )]
    pub(super) fn value(self, mantissa: i64) -> f64 {
        match self {
            Self::Decimal(scale) => scale.value(mantissa),
            Self::Micro => mantissa as f64 / 1000.0 / 1000.0,
            Self::Bits => f64::from_bits(mantissa.cast_unsigned()),
        }
    }

    /// The integer whose value is exactly `value`.
    pub(super) fn mantissa(self, value: f64) -> Option<i64> {
        match self {
            Self::Decimal(scale) => scale.mantissa(value),
            Self::Micro => {
                let near = (value * 1e6).round();
                // Doubles are dense enough only up to here; NaN is not below it either.
                if near.abs().partial_cmp(&9e15) != Some(Ordering::Less) {
                    return None;
                }
                #[expect(clippy::cast_possible_truncation, reason = "an integer within bounds")]
                let mantissa = near as i64;
                (self.value(mantissa).to_bits() == value.to_bits()).then_some(mantissa)
            }
            Self::Bits => Some(value.to_bits().cast_signed()),
        }
    }

    /// The integer in this unit that a sum of such values stands for, which doubles miss by a little.
    pub(super) fn near(self, value: f64) -> Option<i64> {
        let factor = match self {
            Self::Decimal(scale) => 10_f64.powi(i32::from(scale.digits())),
            Self::Micro => 1e6,
            Self::Bits => return None,
        };
        let scaled = value * factor;
        let near = scaled.round();
        if near.abs().partial_cmp(&9e15) != Some(Ordering::Less) || (scaled - near).abs() > 1e-3 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an integer within bounds")]
        let near = near as i64;
        Some(near)
    }

    /// Fills `mantissas` with these values in a unit that holds each of them exactly.
    pub(super) fn fit(values: &[f64], mantissas: &mut Vec<i64>) -> Self {
        if let Some(unit) = Self::decimal(values, mantissas) {
            return unit;
        }
        if Self::Micro.convert(values, mantissas) {
            return Self::Micro;
        }
        Self::Bits.convert(values, mantissas);
        Self::Bits
    }

    fn decimal(values: &[f64], mantissas: &mut Vec<i64>) -> Option<Self> {
        mantissas.clear();
        let mut scale = Scale::default();
        let mut grown = false;
        for value in values {
            let (wider, mantissa) = scale.fit(*value)?;
            grown |= wider != scale && !mantissas.is_empty();
            scale = wider;
            mantissas.push(mantissa);
        }
        let unit = Self::Decimal(scale);
        // What fits fewer digits mostly fits more.
        (!grown || unit.convert(values, mantissas)).then_some(unit)
    }

    fn convert(self, values: &[f64], mantissas: &mut Vec<i64>) -> bool {
        mantissas.clear();
        mantissas.extend(values.iter().map_while(|value| self.mantissa(*value)));
        mantissas.len() == values.len()
    }
}
