//! How much memory Tollgate and Envoy hold.

use super::Edge;

/// High-water marks of the resident memory, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    tollgate: u64,
    envoy: u64,
}

impl Memory {
    pub fn of(edge: &Edge) -> Self {
        let high = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        let stack = &edge.stack;
        Self { tollgate: high(stack.tollgate.process().pid()), envoy: high(stack.envoy.process().pid()) }
    }

    /// Neither has at any moment since then held so many MiB more.
    pub fn assert_flat(self, edge: &Edge, mib: u64) {
        let now = Self::of(edge);
        for (name, before, after) in [("Tollgate", self.tollgate, now.tollgate), ("Envoy", self.envoy, now.envoy)] {
            assert!(after - before < mib * 1024, "{name} grew from {before} to {after} KiB");
        }
    }
}
