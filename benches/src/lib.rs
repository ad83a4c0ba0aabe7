//! What Tollgate costs, beside what cannot be avoided and what it replaces.
//!
//! `make bench` runs all of it and writes `docs/PERFORMANCE.md` and, for programs, `docs/performance.json`. Contenders are
//! interleaved, A B A B, and compared by the ratios of neighbouring runs: machines are noisy, and what disturbs one
//! disturbs its neighbour too.

pub mod figure;
