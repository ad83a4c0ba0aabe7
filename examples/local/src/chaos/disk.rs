//! A small file system that can be filled.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Room for the ledger of a round several times over.
const SIZE: &str = "size=24m";

/// A tmpfs of its own, unmounted when dropped.
pub(super) struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Mounts one at `dir`; only root may.
    pub fn mount(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(dir).output();
        let mounted = mounted.context("cannot run mount")?;
        if !mounted.status.success() {
            bail!("cannot mount: {}", String::from_utf8_lossy(&mounted.stderr).trim_end());
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Fills it to the last byte.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = OpenOptions::new().create(true).append(true).open(self.ballast()).context("no ballast")?;
        for size in [64 * 1024, 4096, 1] {
            let chunk = vec![0; size];
            while ballast.write_all(&chunk).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    pub fn empty(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("cannot remove the ballast")
    }

    /// Copies what is on it beside it, before it goes.
    pub fn save(&self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        for file in std::fs::read_dir(&self.dir)? {
            let file = file?;
            if file.file_name() != "ballast" {
                std::fs::copy(file.path(), to.join(file.file_name()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}
