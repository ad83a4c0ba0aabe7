//! Everything around Tollgate that is not Tollgate, on one machine.
//!
//! [`standin`] holds stand-ins for the systems on the other side of its wires. They are real HTTP
//! servers on real ports, scripted from the outside and asked afterwards what they saw. The tests of
//! Tollgate start them on port 0; the local stack starts them on fixed ports.
//!
//! [`control`] is how a stand-in that is a process of its own is scripted and asked, and [`cast`] is who they all know.
//!
//! [`stack`] brings up Tollgate itself and Envoy as child processes among them.
//!
//! [`chaos`] lets many people work with such a stack while everything around them fails, and compares what was
//! billed with what was run.
//!
//! Nothing here uses the `tollgate` crate: the stand-ins are a second, independent reading of the
//! contracts, so that a misreading on one side shows up as a failing test.

pub mod cast;
pub mod chaos;
pub mod control;
pub mod stack;
pub mod standin;
