//! What every section is given: the programs, the cores, the rounds and the time.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tollgate_local::stack::Envoy;

/// Where and how to measure.
pub struct Context {
    /// The repository.
    pub root: PathBuf,
    /// Where cargo put the programs: this one, `tollgate`, `tollgate-local`, `floor`.
    pub programs: PathBuf,
    /// How often each measurement is taken.
    pub rounds: usize,
    /// Whether this is only to see that everything works: what it measures means nothing.
    pub quick: bool,
    cores: Option<Cores>,
    scratch: tempfile::TempDir,
    started: Instant,
}

/// Who runs where.
#[derive(Debug, Clone, Copy)]
struct Cores {
    server: usize,
    load: usize,
}

impl Context {
    /// Puts this process, which makes load and has the stand-ins, on the core for that, where there are two and `taskset`.
    ///
    /// # Errors
    /// When the programs are not beside this one.
    pub async fn new(rounds: usize, quick: bool) -> Result<Self> {
        let this = std::env::current_exe().context("this program does not know where it is")?;
        let programs = this.parent().context("this program is nowhere")?.to_owned();
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = root.canonicalize().with_context(|| format!("there is no repository at {}", root.display()))?;
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        let mut context = Self { root, programs, rounds, quick, cores: None, scratch, started: Instant::now() };
        for program in ["tollgate", "floor"] {
            context.program(program)?;
        }
        context.cores = Cores::take().await;
        Ok(context)
    }

    /// One of the programs that are built here.
    ///
    /// # Errors
    /// When it was not built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.is_file() {
            bail!("there is no {name} beside this program: build all with `make bench`");
        }
        Ok(path)
    }

    /// Tollgate, to be run on the core of the servers; for [`tollgate_local::stack::Tollgate::start`].
    ///
    /// # Errors
    /// As [`Self::on_server_core`].
    pub fn tollgate(&self) -> Result<PathBuf> {
        self.on_server_core(&self.program("tollgate")?)
    }

    /// The reference Envoy, to be run on the core of the servers; for [`tollgate_local::stack::Envoy::start`].
    ///
    /// # Errors
    /// As [`Self::on_server_core`]; also when it was not fetched.
    pub fn envoy(&self) -> Result<PathBuf> {
        self.on_server_core(&Envoy::fetched(&self.root, None)?)
    }

    /// A program that runs this one, with whatever arguments, on the core of the servers. It has the same process id, and as
    /// it is on one core from the start, tokio has one worker by itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn on_server_core(&self, program: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(cores) = self.cores else { return Ok(program.to_owned()) };
        let name = program.file_name().context("a program without a name")?;
        let script = self.scratch.path().join(name);
        let text = format!("#!/bin/sh\nexec taskset -c {} '{}' \"$@\"\n", cores.server, program.display());
        // Written once: what is being run cannot be written.
        if std::fs::read_to_string(&script).ok().as_deref() != Some(&text) {
            std::fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} a program", script.display()))?;
        }
        Ok(script)
    }

    /// A command on the core of the load; gone with its handle.
    #[must_use]
    pub fn on_load_core(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match self.cores {
            None => Command::new(program),
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &cores.load.to_string()]).arg(program);
                command
            }
        };
        command.kill_on_drop(true);
        command
    }

    /// One sentence for the report.
    #[must_use]
    pub fn pinning(&self) -> String {
        match self.cores {
            Some(Cores { server, load }) => format!(
                "`taskset` puts servers, Envoy among them, on core {server}, and load generators and stand-ins on core {load}."
            ),
            None => "Nothing was pinned to a core, for want of `taskset` or of a second core: servers and load generators disturb \
                     each other, so only ratios mean anything."
                .to_owned(),
        }
    }

    /// A folder that all sections share, gone at the end.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A new folder, gone at the end.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self) -> Result<tempfile::TempDir> {
        tempfile::tempdir_in(self.scratch.path()).context("no temporary folder")
    }

    /// How long to measure: `full`, or an eighth of it in the quick form.
    #[must_use]
    pub fn duration(&self, full: Duration) -> Duration {
        if self.quick { full / 8 } else { full }
    }

    /// Tells how it goes.
    pub fn progress(&self, section: &str, round: usize, what: impl Display) {
        let (elapsed, of) = (self.started.elapsed().as_secs(), self.rounds);
        eprintln!("{elapsed:4} s  {section}, round {} of {of}: {what}", round + 1);
    }

    /// Since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Cores {
    /// The first two cores that this process may use; it is then on the second one.
    async fn take() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let &[server, load, ..] = core_numbers(allowed.trim()).as_slice() else { return None };
        let mut taskset = Command::new("taskset");
        taskset.args(["-a", "-p", "-c", &load.to_string(), &std::process::id().to_string()]);
        let done = taskset.output().await.ok()?;
        done.status.success().then_some(Self { server, load })
    }
}

/// The numbers of a list as Linux writes it: `0-2,5`.
fn core_numbers(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, end) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=end.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_has_ranges_and_single_ones() {
        assert_eq!(core_numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(core_numbers("3"), [3]);
        assert_eq!(core_numbers(""), Vec::<usize>::new());
    }
}
