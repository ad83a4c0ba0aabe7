//! A PostgreSQL of one's own, made by `scripts/postgres`.

use std::{
    fs::{OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A server with a data folder of its own. It ends with its handle, as in a crash.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    url: String,
    /// Made with it, and removed with it.
    made: Option<PathBuf>,
}

/// Whether what is committed is on the disk: for measuring. A crash of the server alone loses nothing either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    On,
    Off,
}

impl Postgres {
    /// The version that there is on this machine, such as `15.18`.
    ///
    /// # Errors
    /// When there is none.
    pub fn version() -> Result<String> {
        script(&["version"], Sync::Off)
    }

    /// Makes one on loopback, in a folder of its own that goes with it. It is not started yet.
    ///
    /// # Errors
    /// When there is no PostgreSQL.
    pub fn make(sync: Sync) -> Result<Self> {
        let made = script(&["new"], sync)?;
        let (dir, url) = made.split_once(' ').context("neither a folder nor a URL")?;
        let dir = PathBuf::from(dir);
        Ok(Self { made: dir.parent().map(Path::to_owned), dir, url: url.to_owned() })
    }

    /// Its data folder, with its configuration.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Changes its configuration, as of its next start.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn configure(&self, line: &str) -> Result<()> {
        append(&self.data().join("postgresql.conf"), line)
    }

    /// Makes one in `dir`, an existing folder that other users may enter, and starts it. It listens on the address `host` of this
    /// machine, and whoever reaches that address and knows the password may use it.
    ///
    /// # Errors
    /// When there is no PostgreSQL, or it does not start.
    pub fn start_new(dir: &Path, host: &str, port: u16) -> Result<Self> {
        // As root it runs as a user of its own, who must get there.
        std::fs::set_permissions(dir, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open {} for the user of PostgreSQL", dir.display()))?;
        let dir = dir.join("postgres");
        let path = text(&dir)?.to_owned();
        let url = script(&["make", &path, &port.to_string()], Sync::Off)?.replace("127.0.0.1", host);
        let server = Self { dir, url, made: None };
        server.configure(&format!("listen_addresses = '{host}'\n"))?;
        append(&server.data().join("pg_hba.conf"), "host all all samenet scram-sha-256\n")?;
        server.start()?;
        Ok(server)
    }

    /// Of a superuser, with the password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts it again, and returns when it takes connections.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&self) -> Result<()> {
        script(&["start", text(&self.dir)?], Sync::Off).map(drop)
    }

    /// An orderly stop, which cuts off whoever is connected.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Result<()> {
        script(&["stop", text(&self.dir)?, "fast"], Sync::Off).map(drop)
    }

    /// A crash: it writes nothing any more and recovers at its next start.
    ///
    /// # Errors
    /// When it does not end.
    pub fn crash(&self) -> Result<()> {
        script(&["stop", text(&self.dir)?, "immediate"], Sync::Off).map(drop)
    }
}

/// Processes of a server that hang as long as this lives.
#[derive(Debug)]
pub struct Frozen(Vec<Pid>);

impl Postgres {
    /// SIGSTOP to the whole of it: whoever is connected gets no answer, and whoever connects, neither.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<Frozen> {
        let file = self.data().join("postmaster.pid");
        let noted = std::fs::read_to_string(&file).context("PostgreSQL does not run")?;
        let first = process(noted.lines().next().unwrap_or_default())?;
        // It first, so that there are no more of them while they are looked for.
        let mut frozen = Frozen(Vec::new());
        frozen.freeze(first)?;
        let number = first.as_raw_nonzero();
        let others = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children"))
            .context("this system does not tell whose child a process is")?;
        for other in others.split_whitespace() {
            frozen.freeze(process(other)?)?;
        }
        Ok(frozen)
    }
}

impl Frozen {
    fn freeze(&mut self, process: Pid) -> Result<()> {
        kill_process(process, Signal::STOP).context("cannot stop a process of PostgreSQL")?;
        self.0.push(process);
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in &self.0 {
            let _ = kill_process(*process, Signal::CONT);
        }
    }
}

fn process(number: &str) -> Result<Pid> {
    number.trim().parse().ok().and_then(Pid::from_raw).with_context(|| format!("{number:?} is no process"))
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // One that is stopped already says so.
        let _ = self.crash();
        if let Some(made) = &self.made {
            let _ = std::fs::remove_dir_all(made);
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

fn append(file: &Path, line: &str) -> Result<()> {
    OpenOptions::new()
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// What `scripts/postgres` prints.
fn script(arguments: &[&str], sync: Sync) -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/postgres");
    let mut command = Command::new(script);
    command.args(arguments).env("TOLLGATE_TEST_FSYNC", if sync == Sync::On { "on" } else { "off" });
    let output = command.output().with_context(|| format!("cannot run {script}"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
