//! Secrets and the log filter, where they are kept in files: taken up while Tollgate runs, with every stream and connection
//! left alone.
//!
//! The files are looked at every so often, and a change is judged when two looks in a row saw the same, so that one which
//! is under way is not taken for a mistake; at SIGHUP, by which somebody says that it is done, it is judged at once. What
//! cannot be used is told once, and what is in force stays.
//!
//! What it does not do: take up anything else. An environment cannot change under a running process.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use secrecy::SecretString;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, LogFilter, Secret, SettingFile, expose};
use crate::lifecycle::TaskError;
use crate::telemetry::{FilterInForce, OutcomeLabels};

/// What a file was seen to hold, or why it cannot be used, as one line that names the variable.
type Look = Result<SecretString, String>;

/// What is kept in files.
pub struct Secrets {
    watched: Vec<Watched>,
    hang_up: Signal,
    reloads: Family<OutcomeLabels, Counter>,
}

/// What a file is for.
#[derive(Clone)]
enum Kept {
    Secret(Secret),
    Log(LogFilter, FilterInForce),
}

struct Watched {
    kept: Kept,
    variable: &'static str,
    /// What was judged last, whether it could be used or not.
    judged: Look,
    last_seen: Look,
}

impl Secrets {
    /// From here on SIGHUP is no longer the end of the process, also where nothing is in a file.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn new(config: &Config, log: FilterInForce, reloads: Family<OutcomeLabels, Counter>) -> std::io::Result<Self> {
        let secrets = [
            config.billing.as_ref().map(|billing| &billing.secret),
            config.flowmesh.api_key.as_ref(),
            config.ledger.password(),
        ];
        let secrets = secrets.into_iter().flatten().cloned().map(Kept::Secret);
        let watched = secrets.chain([Kept::Log(config.log.clone(), log)]).filter_map(Watched::new).collect();
        Ok(Self { watched, hang_up: signal(SignalKind::hangup())?, reloads })
    }

    /// Looks at the files every so often, and at SIGHUP, and takes up what has changed, until the stop.
    ///
    /// # Errors
    /// None of its own: a bad file is told, counted and waited out.
    pub async fn keep(mut self, every: Duration, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = self.hang_up.recv() => true,
                () = tokio::time::sleep(every) => false,
            };
            let mut changes = 0;
            for watched in &mut self.watched {
                let kept = watched.kept.clone();
                let Some(seen) = tokio::task::spawn_blocking(move || kept.look()).await? else { continue };
                if let Some(outcome) = watched.take(seen, asked) {
                    changes += 1;
                    if matches!(watched.kept, Kept::Secret(_)) {
                        self.reloads.get_or_create(&OutcomeLabels { outcome }).inc();
                    }
                }
            }
            if asked {
                let files = self.watched.iter().filter(|watched| matches!(watched.kept, Kept::Secret(_))).count();
                let log = if files < self.watched.len() { " and the log filter" } else { "" };
                tracing::info!(files, changes, "SIGHUP: looked at {files} secret files{log}, {changes} changed");
            }
        }
    }
}

impl Kept {
    fn file(&self) -> Option<&SettingFile> {
        match self {
            Self::Secret(secret) => secret.file(),
            Self::Log(filter, _) => filter.file(),
        }
    }

    fn in_force(&self) -> SecretString {
        match self {
            Self::Secret(secret) => secret.get(),
            Self::Log(filter, _) => filter.get().into(),
        }
    }

    /// What its file holds.
    fn look(&self) -> Option<Look> {
        let file = self.file()?;
        if !file.is_missing_or_regular() {
            return Some(Err(format!("{}: is no file", file.variable())));
        }
        let value = match self {
            Self::Secret(_) => Secret::read(file),
            Self::Log(..) => LogFilter::read(file).map(SecretString::from),
        };
        Some(value.map_err(|error| error.to_string()))
    }

    fn replace(&self, variable: &'static str, value: SecretString) {
        match self {
            Self::Secret(secret) => {
                secret.replace(value);
                tracing::info!(variable, "{variable}: its changed secret is in use");
            }
            Self::Log(filter, in_force) => {
                let (before, after) = (filter.get(), expose(&value).to_owned());
                let tell = || tracing::info!(variable, before, after, "log filter changed from {before} to {after}");
                // Whichever of the two lets it through: it is the one line that tells why others come or stay away.
                let is_told = tracing::enabled!(tracing::Level::INFO);
                if is_told {
                    tell();
                }
                in_force.replace(&after);
                filter.replace(after.clone());
                if !is_told {
                    tell();
                }
            }
        }
    }
}

impl Watched {
    fn new(kept: Kept) -> Option<Self> {
        let file = kept.file().filter(|file| file.is_regular())?;
        let (variable, in_force) = (file.variable(), kept.in_force());
        Some(Self { variable, judged: Ok(in_force.clone()), last_seen: Ok(in_force), kept })
    }

    /// Judges what was seen if it is a change, and one that is over; what came of it.
    fn take(&mut self, seen: Look, asked: bool) -> Option<&'static str> {
        let is_over = asked || is_same(&seen, &self.last_seen);
        self.last_seen.clone_from(&seen);
        if is_same(&seen, &self.judged) || !is_over {
            return None;
        }
        self.judged.clone_from(&seen);
        let variable = self.variable;
        match seen {
            Ok(value) => {
                self.kept.replace(variable, value);
                Some("ok")
            }
            Err(error) => {
                let what = if matches!(self.kept, Kept::Secret(_)) { "secret" } else { "log filter" };
                tracing::error!(variable, "{error}; the {what} in use stays");
                Some("failed")
            }
        }
    }
}

fn is_same(one: &Look, other: &Look) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => expose(one) == expose(other),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    /// The bridge secret out of a file that holds `first`.
    fn watched() -> (Watched, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "first\n").expect("written");
        let config = Config::parse(Options {
            runmesh_billing_base_url: Some("http://127.0.0.1:1".to_owned()),
            flowmesh_bridge_secret_file: file.path().to_str().map(str::to_owned),
            ..Options::default()
        });
        let secret = config.expect("valid").billing.expect("billing is on").secret;
        (Watched::new(Kept::Secret(secret)).expect("kept in a file"), file)
    }

    /// Looks at the file; what came of it, and what is then in force.
    fn after(watched: &mut Watched, asked: bool) -> (Option<&'static str>, String) {
        let seen = watched.kept.look().expect("kept in a file");
        (watched.take(seen, asked), expose(&watched.kept.in_force()).to_owned())
    }

    #[test]
    fn a_change_is_taken_when_two_looks_saw_the_same_and_at_once_when_asked() {
        let (mut watched, file) = watched();
        assert_eq!(after(&mut watched, true), (None, "first".to_owned()));
        std::fs::write(file.path(), "").expect("written");
        assert_eq!(after(&mut watched, false), (None, "first".to_owned()), "it may be under way");
        std::fs::write(file.path(), "second\n").expect("written");
        assert_eq!(after(&mut watched, false), (None, "first".to_owned()));
        assert_eq!(after(&mut watched, false), (Some("ok"), "second".to_owned()));
        assert_eq!(after(&mut watched, false), (None, "second".to_owned()));
        std::fs::write(file.path(), "third").expect("written");
        assert_eq!(after(&mut watched, true), (Some("ok"), "third".to_owned()));
    }

    #[test]
    fn each_bad_change_is_told_once_and_the_secret_in_use_stays() {
        let (mut watched, file) = watched();
        let path = file.path().to_owned();
        let told = |watched: &mut Watched| {
            let outcomes = [(); 3].map(|()| after(watched, true));
            assert!(outcomes.iter().all(|(_, in_force)| in_force == "first"), "{outcomes:?}");
            assert_eq!(outcomes.map(|(outcome, _)| outcome), [Some("failed"), None, None]);
            watched.judged.clone().expect_err("unusable")
        };
        std::fs::write(&path, " \n").expect("written");
        let mut causes = vec![told(&mut watched)];
        std::fs::write(&path, "hunter 2").expect("written");
        causes.push(told(&mut watched));
        std::fs::remove_file(&path).expect("removed");
        causes.push(told(&mut watched));
        std::fs::create_dir(&path).expect("made");
        causes.push(told(&mut watched));
        std::fs::remove_dir(&path).expect("removed");
        for cause in causes {
            assert!(cause.starts_with("FLOWMESH_BRIDGE_SECRET_FILE: ") && !cause.contains("hunter"), "{cause}");
        }
        std::fs::write(&path, "second").expect("written");
        assert_eq!(after(&mut watched, true), (Some("ok"), "second".to_owned()));
    }
}
