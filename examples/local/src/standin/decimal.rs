//! Amounts as text. Money is compared digit by digit, never through a float.

use std::cmp::Ordering;

/// A number without its notation: sign, digits before and after the point, no idle zeros.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    whole: String,
    fraction: String,
}

/// Writes a JSON number, exponent or not, in plain notation, digit for digit: `1.5e-7` becomes
/// `0.00000015`, and `2.0` stays `2.0`. `None` when `number` is not a number.
#[must_use]
pub fn plain_decimal(number: &str) -> Option<String> {
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if whole.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || exponent.abs() > 400 {
        return None;
    }
    let point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?;
    let length = i32::try_from(digits.len()).ok()?;
    let plain = if point <= 0 {
        let zeros = "0".repeat(usize::try_from(-point).ok()?);
        format!("0.{zeros}{digits}")
    } else if point >= length {
        let zeros = "0".repeat(usize::try_from(point - length).ok()?);
        format!("{digits}{zeros}")
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).ok()?);
        format!("{whole}.{fraction}")
    };
    Some(if negative { format!("-{plain}") } else { plain })
}

/// Whether two numbers, in whatever notation, are the same amount: `0.30` and `3e-1` are.
#[must_use]
pub fn same_amount(left: &str, right: &str) -> bool {
    compare(left, right) == Some(Ordering::Equal)
}

/// Which amount is greater. `None` when one of them is not a number.
pub(super) fn compare(left: &str, right: &str) -> Option<Ordering> {
    let (left, right) = (parse(left)?, parse(right)?);
    let magnitude = left
        .whole
        .len()
        .cmp(&right.whole.len())
        .then_with(|| left.whole.cmp(&right.whole))
        .then_with(|| left.fraction.cmp(&right.fraction));
    Some(match (left.negative, right.negative) {
        (false, false) => magnitude,
        (true, true) => magnitude.reverse(),
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
    })
}

/// Whether this is a decimal as the contracts want it: digits, at most one point with digits on both
/// sides, no sign, no exponent, no leading zeros.
pub(super) fn is_plain(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(fraction) && (whole == "0" || !whole.starts_with('0'))
}

fn parse(number: &str) -> Option<Decimal> {
    let plain = plain_decimal(number)?;
    let unsigned = plain.strip_prefix('-').unwrap_or(&plain);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let whole = whole.trim_start_matches('0').to_owned();
    let fraction = fraction.trim_end_matches('0').to_owned();
    let zero = whole.is_empty() && fraction.is_empty();
    Some(Decimal { negative: plain.starts_with('-') && !zero, whole, fraction })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_written_out_digit_for_digit() {
        for (number, plain) in [
            ("0.030208333333333334", "0.030208333333333334"),
            ("1.5e-7", "0.00000015"),
            ("1e16", "10000000000000000"),
            ("1.25e1", "12.5"),
            ("1.25E+1", "12.5"),
            ("2.0", "2.0"),
            ("-3e-1", "-0.3"),
        ] {
            assert_eq!(plain_decimal(number).as_deref(), Some(plain), "{number}");
        }
        for not_a_number in ["", "-", "abc", "1.2.3", "1e", ".5", "1e999999999"] {
            assert_eq!(plain_decimal(not_a_number), None, "{not_a_number}");
        }
    }

    #[test]
    fn amounts_are_compared_by_value() {
        assert!(same_amount("0.30", "3e-1"));
        assert!(same_amount("-0", "0.00"));
        assert!(!same_amount("0.3", "0.30000000000000004"));
        assert_eq!(compare("10", "9.99"), Some(Ordering::Greater));
        assert_eq!(compare("0.09", "0.1"), Some(Ordering::Less));
        assert_eq!(compare("-2", "-1"), Some(Ordering::Less));
        assert_eq!(compare("-2", "1"), Some(Ordering::Less));
    }

    #[test]
    fn the_plain_form_has_no_sign_exponent_or_leading_zero() {
        for plain in ["0", "0.42", "12", "12.00", "0.030208333333333334"] {
            assert!(is_plain(plain), "{plain}");
        }
        for odd in ["", ".5", "5.", "-1", "+1", "1e3", "01", "00.1", " 1", "1,5", "NaN"] {
            assert!(!is_plain(odd), "{odd}");
        }
    }
}
