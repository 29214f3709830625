//! Quantities as Kubernetes writes them: `500m`, `1.5Gi`, `1e3`.
//!
//! Stored as whole billionths, the resolution of Kubernetes; finer values are rounded up, as
//! Kubernetes does. So comparisons are exact.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Billionths in one unit.
const NANO: u128 = 1_000_000_000;

/// The largest quantity of Kubernetes, in billionths: 2⁶³ - 1.
const LARGEST: u128 = i64::MAX as u128 * NANO;

/// The longest text that is parsed. A useful quantity has a few characters.
const LENGTH: usize = 64;

/// Suffixes with their factors, in billionths.
const SUFFIXES: [(&str, u128); 15] = [
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("", NANO),
    ("k", NANO * 1_000),
    ("Ki", NANO << 10),
    ("M", NANO * 1_000_000),
    ("Mi", NANO << 20),
    ("G", NANO * 1_000_000_000),
    ("Gi", NANO << 30),
    ("T", NANO * 1_000_000_000_000),
    ("Ti", NANO << 40),
    ("P", NANO * 1_000_000_000_000_000),
    ("Pi", NANO << 50),
    // `Ei` and `E` stand last: `E` also begins an exponent.
    ("Ei", NANO << 60),
];

/// An amount of a resource: memory in bytes, CPUs. Never negative, and at most 2⁶³ - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u128);

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It is no number with an optional suffix.
    #[error(
        "not a quantity: a number such as `2`, `0.5` or `1e3`, or one with a suffix of \
         `m k M G T P E Ki Mi Gi Ti Pi Ei`, such as `512Mi`"
    )]
    Unreadable,
    /// It is negative.
    #[error("a quantity cannot be negative")]
    Negative,
    /// It exceeds the range of Kubernetes.
    #[error("a quantity cannot be over 9223372036854775807 (2^63 - 1)")]
    TooLarge,
}

// === impl Quantity ===

impl Quantity {
    /// A whole number.
    pub fn whole(number: u32) -> Self {
        Self(u128::from(number) * NANO)
    }

    /// A multiple of 2²⁰.
    pub fn mebi(number: u32) -> Self {
        Self((u128::from(number) << 20) * NANO)
    }

    /// A multiple in thousandths, rounded up to a whole number and bounded by the largest quantity.
    #[must_use]
    pub fn times_permille(self, permille: u32) -> Self {
        // Below 2⁹³ times below 2³²: it fits.
        let scaled = (self.0 * u128::from(permille)).div_ceil(1000);
        Self((scaled.div_ceil(NANO) * NANO).min(LARGEST))
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    /// Linear in the length of the text.
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > LENGTH {
            return Err(QuantityError::Unreadable);
        }
        let (negative, number) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) | None => (false, text),
        };
        let (value, rest) = Decimal::read(number).ok_or(QuantityError::Unreadable)?;
        let scaled = match SUFFIXES.iter().find(|(suffix, _)| *suffix == rest) {
            Some(&(_, unit)) => value.times(unit, 0),
            None => value.times(NANO, exponent(rest).ok_or(QuantityError::Unreadable)?),
        };
        if negative && !value.is_zero() {
            return Err(QuantityError::Negative);
        }
        scaled.filter(|&nano| nano <= LARGEST).map(Self).ok_or(QuantityError::TooLarge)
    }
}

impl fmt::Display for Quantity {
    /// The shortest exact form: with the largest suffix that leaves a whole number, a binary one if
    /// possible.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u128)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        let binary = |(suffix, _): &&(&str, u128)| suffix.ends_with('i');
        let all = SUFFIXES.iter().rev();
        let found = all.clone().filter(binary).find(whole).or_else(|| all.clone().find(whole));
        match found {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A number in YAML keeps its spelling.
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|err| D::Error::custom(format_args!("`{text}`: {err}")))
    }
}

// === impl Decimal ===

/// A decimal number: `digits` / 10^`scale`.
#[derive(Clone, Copy, Debug)]
struct Decimal {
    digits: u128,
    scale: u32,
    /// Whether further digits were cut, which make it a little larger.
    more: bool,
}

/// The most digits after the point. With more, a product could exceed 128 bits.
const SCALE: u32 = 18;

impl Decimal {
    /// Parses `1`, `1.5`, `1.` or `.5` at the start of a text. A number that saturates is too large
    /// in any case.
    fn read(text: &str) -> Option<(Self, &str)> {
        let mut read = Self { digits: 0, scale: 0, more: false };
        let (mut seen, mut point, mut end) = (false, false, text.len());
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'0'..=b'9' if point && read.scale == SCALE => read.more |= byte != b'0',
                b'0'..=b'9' => {
                    seen = true;
                    let digit = u128::from(byte - b'0');
                    read.digits = read.digits.saturating_mul(10).saturating_add(digit);
                    read.scale += u32::from(point);
                }
                b'.' if !point => point = true,
                _ => {
                    end = at;
                    break;
                }
            }
        }
        seen.then_some((read, &text[end..]))
    }

    fn is_zero(self) -> bool {
        self.digits == 0 && !self.more
    }

    /// This times `unit` times 10^`exponent`, rounded up; `None` if it exceeds all bounds.
    ///
    /// The fraction is reduced first. Then a result within the bounds fits into 128 bits: its
    /// divisor is at most 5^9, or the unit is 1.
    fn times(self, unit: u128, exponent: i32) -> Option<u128> {
        if self.is_zero() {
            return Some(0);
        }
        let power = i64::from(exponent) - i64::from(self.scale);
        let ten = |power: i64| 10_u128.checked_pow(u32::try_from(power).unwrap_or(u32::MAX));
        if power >= 0 {
            let product = self.digits.checked_mul(unit)?.checked_mul(ten(power)?)?;
            return product.checked_add(u128::from(self.more));
        }
        // With a divisor that does not fit, any number rounds up to one billionth.
        let Some(divisor) = ten(-power) else { return Some(1) };
        let common = greatest_common_divisor(unit, divisor);
        let (product, divisor) = (self.digits.checked_mul(unit / common)?, divisor / common);
        let up = product % divisor != 0 || self.more;
        Some(product / divisor + u128::from(up))
    }
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The exponent after `e` or `E`; `None` for any other text. A bare `E` is 10^18.
fn exponent(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['e', 'E'])?;
    if digits.is_empty() {
        return text.starts_with('E').then_some(18);
    }
    let bare = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let number = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit());
    // An exponent that does not fit acts as the largest that does.
    let edge = if digits.starts_with('-') { i32::MIN } else { i32::MAX };
    number.then(|| digits.parse().unwrap_or(edge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn quantities_of_kubernetes_are_parsed() {
        for (text, nano) in [
            ("0", 0),
            ("1", NANO),
            ("+1", NANO),
            ("500m", NANO / 2),
            ("0.5", NANO / 2),
            (".5", NANO / 2),
            ("5.", 5 * NANO),
            ("1n", 1),
            ("0.1n", 1),
            ("1e3", 1000 * NANO),
            ("1E3", 1000 * NANO),
            ("1E", 10_u128.pow(18) * NANO),
            ("12e-1", NANO * 12 / 10),
            ("1e-99", 1),
            ("256Mi", (256 << 20) * NANO),
            ("1.5Gi", 3 * (1 << 29) * NANO),
            ("0.1Ki", NANO * 1024 / 10),
            ("-0", 0),
            ("0e99", 0),
            ("1.0000000000000000000000000000000000000000", NANO),
            ("1.123456789012345678Ei", 1_295_257_491_548_890_608_726_471_714),
            ("0.0000000000000000000000001", 1),
            ("9223372036854775807", LARGEST),
        ] {
            assert_eq!(text.parse(), Ok(Quantity(nano)), "{text}");
        }
    }

    #[test]
    fn invalid_quantities_are_refused() {
        use QuantityError::{Negative, TooLarge, Unreadable};
        let long = "1".repeat(65);
        for (text, error) in [
            ("", Unreadable),
            ("Mi", Unreadable),
            (".", Unreadable),
            ("NaN", Unreadable),
            ("inf", Unreadable),
            ("1 Gi", Unreadable),
            ("1GB", Unreadable),
            ("1K", Unreadable),
            ("1e", Unreadable),
            ("1e+", Unreadable),
            ("1e99Ki", Unreadable),
            ("1.2.3", Unreadable),
            ("0x10", Unreadable),
            ("１", Unreadable),
            (&long, Unreadable),
            ("-1", Negative),
            ("-1Gi", Negative),
            ("1e99", TooLarge),
            ("1e99999999999", TooLarge),
            ("9Ei", TooLarge),
            ("9223372036854775808", TooLarge),
            (&long[..60], TooLarge),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn it_is_displayed_in_its_shortest_form() {
        for (text, written) in [
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5", "500m"),
            ("1000", "1k"),
            ("500M", "500M"),
            ("3", "3"),
            ("0.0", "0"),
            ("1e-9", "1n"),
        ] {
            assert_eq!(quantity(text).to_string(), written, "{text}");
        }
    }

    #[test]
    fn a_multiple_is_rounded_up_to_a_whole_number() {
        assert_eq!(quantity("512Mi").times_permille(2000), quantity("1Gi"));
        assert_eq!(quantity("1").times_permille(1500), quantity("2"));
        assert_eq!(quantity("9e18").times_permille(u32::MAX), Quantity(LARGEST));
    }

    proptest! {
        #[test]
        fn a_displayed_quantity_parses_to_itself(nano in 0..=LARGEST) {
            prop_assert_eq!(Quantity(nano).to_string().parse(), Ok(Quantity(nano)));
        }

        #[test]
        fn the_order_is_that_of_the_numbers(a in 0_u64..1 << 40, b in 0_u64..1 << 40, suffix in "(|m|k|Ki|M)") {
            let quantities = (quantity(&format!("{a}{suffix}")), quantity(&format!("{b}{suffix}")));
            prop_assert_eq!(quantities.0.cmp(&quantities.1), a.cmp(&b));
        }

        #[test]
        fn trailing_zeros_change_nothing(
            digits in "[0-9]{1,8}(\\.[0-9]{0,18})?",
            zeros in "0{0,20}",
            suffix in "(|m|n|k|Ki|M|Gi|Ti|e3|e-3)",
        ) {
            let point = if digits.contains('.') { "" } else { "." };
            let long = format!("{digits}{point}{zeros}{suffix}");
            let short = format!("{digits}{suffix}");
            prop_assert_eq!(long.parse::<Quantity>(), short.parse::<Quantity>());
        }

        #[test]
        fn a_fraction_is_exact(
            thousandths in 0_u64..1000,
            (suffix, unit) in prop::sample::select(vec![("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Ei", 60)]),
        ) {
            let exact = (u128::from(thousandths) * (NANO << unit)).div_ceil(1000);
            prop_assert_eq!(quantity(&format!("0.{thousandths:03}{suffix}")), Quantity(exact));
        }

        #[test]
        fn no_text_causes_a_panic(text in "[-+.0-9eEKMGinum ]{0,40}") {
            if let Ok(read) = text.parse::<Quantity>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }
    }
}
