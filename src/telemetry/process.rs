//! What the system says of this process, by the names that every dashboard knows. Read when it is asked for; only where
//! there is a `/proc` as Linux has it.

use prometheus_client::registry::Registry;

/// Makes the figures of the process part of `/metrics`, where there are any.
pub fn register(registry: &mut Registry) {
    #[cfg(target_os = "linux")]
    registry.register_collector(Box::new(linux::Process));
    #[cfg(not(target_os = "linux"))]
    let _ = registry;
}

#[cfg(target_os = "linux")]
mod linux {
    use procfs::process::{LimitValue, Process as Proc};
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;
    use prometheus_client::metrics::gauge::ConstGauge;

    #[derive(Debug)]
    pub struct Process;

    impl Collector for Process {
        /// A figure that cannot be read is left out: it is no reason to have none of the others.
        #[expect(clippy::cast_precision_loss, reason = "a sample is a double, whatever is put into it")]
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            let Ok(process) = Proc::myself() else { return Ok(()) };
            let mut gauge = |name: &str, help: &str, value: Option<f64>| {
                let Some(value) = value else { return Ok(()) };
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
            };
            let limits = process.limits().ok();
            let max = limits.and_then(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(most) => Some(most as f64),
                LimitValue::Unlimited => None,
            });
            gauge("process_open_fds", "File descriptors open.", process.fd_count().ok().map(|open| open as f64))?;
            gauge("process_max_fds", "File descriptors that may be open.", max)?;
            let Ok(stat) = process.stat() else { return Ok(()) };
            let ticks = procfs::ticks_per_second() as f64;
            let resident = (stat.rss * procfs::page_size()) as f64;
            gauge("process_resident_memory_bytes", "Memory in use.", Some(resident))?;
            gauge("process_virtual_memory_bytes", "Memory addressed.", Some(stat.vsize as f64))?;
            gauge("process_threads", "Threads.", Some(stat.num_threads as f64))?;
            let booted = procfs::boot_time_secs().ok();
            let started = booted.map(|booted| booted as f64 + stat.starttime as f64 / ticks);
            gauge("process_start_time_seconds", "When the process began, in seconds since 1970.", started)?;
            let cpu = ConstCounter::new((stat.utime + stat.stime) as f64 / ticks);
            let help = "Processor time used.";
            cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)
        }
    }
}
