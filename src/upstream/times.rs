//! How long the systems on the other side take to answer.

use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    peer: &'static str,
    call: &'static str,
}

/// The times of all calls. Clones share them; each client takes the handles of its calls once.
#[derive(Debug, Clone)]
pub struct Times(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for Times {
    fn default() -> Self {
        // From a neighbour's answer to the longest time limit.
        Self(Family::new_with_constructor(|| {
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
        }))
    }
}

impl Times {
    /// Makes them one of the families of `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time of a call to another system, to the end of its answer or failure, by peer and call";
        registry.register("tollgate_upstream_duration_seconds", help, self.0.clone());
    }

    /// The times of one kind of call.
    #[must_use]
    pub fn of(&self, peer: &'static str, call: &'static str) -> Call {
        Call(self.0.get_or_create_owned(&Labels { peer, call }))
    }
}

/// The times of one kind of call.
#[derive(Debug, Clone)]
pub struct Call(Histogram);

impl Call {
    /// Begins to measure one, which ends with what is returned here, however it ends.
    #[must_use]
    pub fn begin(&self) -> UnderWay<'_> {
        UnderWay { call: self, since: Instant::now() }
    }
}

/// A call that is being measured, until it is dropped.
#[derive(Debug)]
pub struct UnderWay<'a> {
    call: &'a Call,
    since: Instant,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.call.0.observe(self.since.elapsed().as_secs_f64());
    }
}
