//! What Tollgate costs, beside what cannot be avoided and what it replaces.
//!
//! `make bench` runs all of it and writes `docs/PERFORMANCE.md` and, for programs, `docs/performance.json`. Contenders are
//! interleaved, A B A B, and compared by the ratios of neighbouring runs: machines are noisy, and what disturbs one
//! disturbs its neighbour too.
//!
//! A [`section`] measures [`figure`]s in a [`context`], which knows the programs, the cores and the time; [`goals`] says what
//! they should be, and [`report`] writes them down. [`sections`] has the list of all.

pub mod bootstrap;
pub mod capture;
pub mod checks;
pub mod context;
pub mod cost;
pub mod figure;
pub mod goals;
pub mod h2load;
pub mod inside;
pub mod ledgers;
pub mod machine;
pub mod message;
pub mod paced;
pub mod paper;
pub mod peers;
pub mod percentile;
pub mod postgres;
pub mod report;
pub mod run;
pub mod section;
pub mod sections;
pub mod served;
pub mod servers;
pub mod template;
pub mod wire;
pub mod wrk;
