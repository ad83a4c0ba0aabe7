//! How many tokens that lum.id does not accept one source may bring. Pure: the clock is passed in.
//!
//! Only refusals cost anything, and they are counted when they are known: a restart behind which a whole office comes
//! back with good tokens costs it nothing. (That is why this is not `governor`, which cannot look without taking.) It is
//! the generic cell rate algorithm: one moment per source, by which all its refusals so far are paid off.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Whose budget it is: an IPv4 address, or the /64 of an IPv6 one, within which one customer has as many as they like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    Ip(IpAddr),
    /// An IPv6 /48, of which anybody can have one: 65 536 sources.
    Network(Ipv6Addr),
    /// A Unix socket, or nothing that Envoy named.
    Other,
}

impl Source {
    /// `address`: as Envoy vouches for it.
    #[must_use]
    pub fn of(address: &str) -> Self {
        match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(IpAddr::V6(address)) => Self::Ip(IpAddr::V6((address.to_bits() >> 64 << 64).into())),
            Ok(address) => Self::Ip(address),
            Err(_) => Self::Other,
        }
    }

    /// The network that this source is in, if it has one of its own.
    #[must_use]
    pub fn network(&self) -> Option<Self> {
        match self {
            Self::Ip(IpAddr::V6(address)) => Some(Self::Network((address.to_bits() >> 80 << 80).into())),
            Self::Ip(IpAddr::V4(_)) | Self::Network(_) | Self::Other => None,
        }
    }
}

/// What each source may have.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// From one refusal to the next, in the long run.
    pub interval: Duration,
    /// Refusals at once.
    pub burst: u32,
}

/// What a source has used up. A new one owes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Debt {
    paid_off: Option<Instant>,
}

/// So many sources' worth for a whole network.
const NETWORK_SOURCES: u32 = 16;

impl Budget {
    /// What all sources of one network may have together.
    #[must_use]
    pub fn of_network(&self) -> Self {
        Self { interval: self.interval / NETWORK_SOURCES, burst: self.burst.saturating_mul(NETWORK_SOURCES) }
    }

    /// # Errors
    /// How long a source whose budget is used up has to wait.
    pub fn allows(&self, debt: Debt, now: Instant) -> Result<(), Duration> {
        let owed = debt.paid_off.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        // One more must still fit in.
        match (owed + self.interval).checked_sub(self.interval * self.burst) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// Counts a refusal.
    #[must_use]
    pub fn charge(&self, debt: Debt, now: Instant) -> Debt {
        Debt { paid_off: Some(debt.paid_off.map_or(now, |at| at.max(now)) + self.interval) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Budget = Budget { interval: Duration::from_millis(100), burst: 5 };

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut debt = Debt::default();
        for n in 0..5 {
            assert_eq!(BUDGET.allows(debt, start), Ok(()), "{n}");
            debt = BUDGET.charge(debt, start);
        }
        assert_eq!(BUDGET.allows(debt, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(BUDGET.allows(debt, later), Ok(()));
        debt = BUDGET.charge(debt, later);
        assert_eq!(BUDGET.allows(debt, later), Err(Duration::from_millis(100)));
        assert_eq!(BUDGET.allows(debt, start + Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn a_source_is_an_address_or_the_network_of_a_customer() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("", "unix", true),
            ("192.0.2.1", "unix", false),
        ] {
            assert_eq!(Source::of(one) == Source::of(other), same, "{one} {other}");
        }
    }

    #[test]
    fn the_sources_of_one_network_share_a_larger_budget() {
        let network = |address: &str| Source::of(address).network();
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:ffff::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:2:2::1"));
        assert_eq!(network("192.0.2.1"), None);
        let wide = BUDGET.of_network();
        let (start, mut debt) = (Instant::now(), Debt::default());
        for n in 0..5 * 16 {
            assert!(wide.allows(debt, start).is_ok(), "{n}");
            debt = wide.charge(debt, start);
        }
        assert!(wide.allows(debt, start).is_err());
    }

    proptest! {
        #[test]
        fn no_source_gets_more_than_its_burst_and_its_rate(gaps in prop::collection::vec(0u64..300, 1..200)) {
            let start = Instant::now();
            let (mut now, mut debt, mut passed) = (start, Debt::default(), 0u32);
            for gap in gaps {
                now += Duration::from_millis(gap);
                match BUDGET.allows(debt, now) {
                    Ok(()) => {
                        debt = BUDGET.charge(debt, now);
                        passed += 1;
                    }
                    Err(wait) => prop_assert!(wait > Duration::ZERO && BUDGET.allows(debt, now + wait).is_ok()),
                }
            }
            let most = 5 + (now - start).as_millis() / 100;
            prop_assert!(u128::from(passed) <= most, "{passed} of {most}");
        }
    }
}
