//! A child process whose lines are kept.

use std::{
    collections::VecDeque,
    fmt,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Gets every line that a process prints, as it comes.
pub type Output = mpsc::UnboundedSender<String>;

/// More lines than any test prints; past it the oldest go.
const KEPT_LINES: usize = 200_000;
/// How many lines an error shows.
const SHOWN_LINES: usize = 8;
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A running or ended child process. Killed when dropped.
pub struct Process {
    name: String,
    pid: Pid,
    lines: Arc<Mutex<VecDeque<String>>>,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// Whether its process id may already be somebody else's.
    reaped: Arc<AtomicBool>,
    supervisor: JoinHandle<()>,
}

impl Process {
    /// Starts `command` with both outputs captured. `name` is how errors speak of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, output: Option<Output>) -> Result<Self> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {name} ({program})"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.with_context(|| format!("{name} has no process id"))?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let readers = [
            child.stdout.take().map(|out| tokio::spawn(read(out, lines.clone(), output.clone()))),
            child.stderr.take().map(|err| tokio::spawn(read(err, lines.clone(), output))),
        ];
        let (end, ended) = watch::channel(None);
        let reaped = Arc::new(AtomicBool::new(false));
        let readers = readers.into_iter().flatten().collect();
        let supervisor = tokio::spawn(supervise(child, readers, reaped.clone(), end));
        Ok(Self { name: name.to_owned(), pid, lines, ended, reaped, supervisor })
    }

    /// How errors speak of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is also that of its group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Every line it has printed so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Its last lines, indented, below a heading; for errors.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return format!("{} has printed nothing", self.name);
        }
        let mut text = format!("the last lines of {}:", self.name);
        for line in lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)) {
            text.push_str("\n  ");
            text.push_str(line);
        }
        text
    }

    /// `error` with the last lines below it.
    pub(super) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}; {}", self.last_lines())
    }

    /// How it ended; `None` while it runs. All its lines are there by then.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When nobody can tell how it ended.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status).ok_or_else(|| anyhow!("{} is not watched any more", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it is not gone in time.
    pub async fn kill_hard(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        let ended = tokio::time::timeout(KILL_LIMIT, self.wait()).await;
        ended.map_err(|_| anyhow!("{} is still there {KILL_LIMIT:?} after SIGKILL", self.name))?
    }

    /// SIGTERM, and SIGKILL when it has not ended after `patience`.
    ///
    /// # Errors
    /// When even that does not end it.
    pub async fn terminate(&self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(patience, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => self.kill_hard().await,
        }
    }

    /// SIGSTOP: it hangs until [`Self::thaw`].
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.reaped.load(Ordering::Acquire) {
            return Ok(());
        }
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot send {signal:?} to {}", self.name)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        self.supervisor.abort();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("pid", &self.pid)
            .field("exited", &self.exited())
            .finish_non_exhaustive()
    }
}

async fn supervise(
    mut child: Child,
    readers: Vec<JoinHandle<()>>,
    reaped: Arc<AtomicBool>,
    end: watch::Sender<Option<ExitStatus>>,
) {
    let Ok(status) = child.wait().await else { return };
    reaped.store(true, Ordering::Release);
    for mut reader in readers {
        // A grandchild may hold the pipe open.
        if tokio::time::timeout(Duration::from_secs(1), &mut reader).await.is_err() {
            reader.abort();
        }
    }
    end.send_replace(Some(status));
}

async fn read(stream: impl AsyncRead + Unpin, lines: Arc<Mutex<VecDeque<String>>>, output: Option<Output>) {
    let mut chunks = BufReader::new(stream).split(b'\n');
    // An error here is the end of the pipe in another guise.
    while let Ok(Some(chunk)) = chunks.next_segment().await {
        let line = String::from_utf8_lossy(&chunk).trim_end_matches('\r').to_owned();
        if let Some(output) = &output {
            // Who has stopped listening does not want it.
            let _ = output.send(line.clone());
        }
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("the shell", command, None).unwrap()
    }

    #[tokio::test]
    async fn lines_of_both_outputs_are_there_when_it_has_ended() {
        let process = shell("echo one; echo two >&2; printf three; exit 4");
        assert_eq!(process.wait().await.unwrap().code(), Some(4));
        let mut lines = process.lines();
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
        assert!(process.last_lines().starts_with("the last lines of the shell:\n  "));
    }

    #[tokio::test]
    async fn who_ignores_sigterm_is_killed_after_the_patience_and_others_are_not() {
        let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
        let stubborn = shell(script);
        super::super::wait_for("the trap", Duration::from_secs(5), async || stubborn.lines().first().cloned())
            .await
            .unwrap();
        let status = stubborn.terminate(Duration::from_millis(100)).await.unwrap();
        assert_eq!(status.signal(), Some(9));
        let obedient = shell("exec sleep 30");
        assert_eq!(obedient.exited(), None);
        assert_eq!(obedient.terminate(Duration::from_secs(5)).await.unwrap().signal(), Some(15));
        assert_eq!(obedient.kill_hard().await.unwrap().signal(), Some(15), "it had ended before");
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_named() {
        let error = Process::start("Envoy", Command::new("/no/such/envoy"), None).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot start Envoy (/no/such/envoy): "), "{error:#}");
    }
}
