//! Amounts of money, summed exactly: a cost has as many digits as FlowMesh wrote, and a sum has them all.

use std::fmt;
use std::str::FromStr;

use bigdecimal::BigDecimal;

/// More digits than a number of FlowMesh's can have, written out.
const LONGEST: usize = 1000;

/// US dollars.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(BigDecimal);

impl Money {
    /// Reads plain decimal notation, as the ledger has it: digits, and at most one point between digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if !digits(whole) || !digits(fraction) || text.len() > LONGEST {
            return None;
        }
        BigDecimal::from_str(text).ok().map(Self)
    }
}

impl std::ops::AddAssign<&Self> for Money {
    fn add_assign(&mut self, other: &Self) {
        self.0 += &other.0;
    }
}

impl fmt::Display for Money {
    /// Plain decimal notation, never an exponent, without idle zeros at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.normalized().to_plain_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum<'a>(costs: impl IntoIterator<Item = &'a str>) -> Money {
        let mut sum = Money::default();
        for cost in costs {
            sum += &Money::parse(cost).expect(cost);
        }
        sum
    }

    #[test]
    fn what_floats_get_wrong_is_exact() {
        assert_eq!(sum(["0.1", "0.2"]).to_string(), "0.3");
        assert_eq!(sum(["0.030208333333333334"; 3]).to_string(), "0.090625000000000002");
        assert_eq!(sum(["10000000000000000", "0.00000000000000000000000000000000001"]).to_string().len(), 53);
        assert_eq!(sum([]).to_string(), "0");
        assert_eq!(sum(["1000", "0.000"]).to_string(), "1000");
    }

    #[test]
    fn the_smallest_and_the_largest_that_flowmesh_can_write_are_kept() {
        let smallest = format!("0.{}5", "0".repeat(323));
        let largest = format!("17976931348623157{}", "0".repeat(292));
        assert_eq!(sum([smallest.as_str(), &largest]).to_string(), format!("{largest}{}", &smallest[1..]));
    }

    #[test]
    fn what_is_no_plain_amount_is_none() {
        for odd in ["", ".5", "5.", "-1", "+1", "1e3", " 1", "1,5", "NaN", "1.2.3", "١", &"9".repeat(1001)] {
            assert_eq!(Money::parse(odd), None, "{odd}");
        }
    }

    proptest! {
        /// Against whole numbers of the smallest unit, which are exact by nature.
        #[test]
        fn a_sum_of_any_costs_is_exact_in_any_order(units in prop::collection::vec(0_u64..u64::MAX / 2, 0..50)) {
            let text = |units: u128| format!("{}.{:018}", units / 10_u128.pow(18), units % 10_u128.pow(18));
            let costs: Vec<String> = units.iter().map(|units| text(u128::from(*units))).collect();
            let exact = Money::parse(&text(units.iter().map(|units| u128::from(*units)).sum())).expect("plain");
            prop_assert_eq!(sum(costs.iter().map(String::as_str)), exact.clone());
            prop_assert_eq!(sum(costs.iter().rev().map(String::as_str)), exact);
        }

        #[test]
        fn what_is_printed_is_plain_and_the_same_amount(whole in "0|[1-9][0-9]{0,40}", fraction in "[0-9]{1,40}") {
            let money = Money::parse(&format!("{whole}.{fraction}")).expect("plain");
            let printed = money.to_string();
            prop_assert!(printed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{}", printed);
            prop_assert_eq!(Money::parse(&printed), Some(money));
        }
    }
}
