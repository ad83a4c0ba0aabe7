//! Files that hold the value of one setting, and may change while Tollgate runs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Error, given, wrong};

/// More than any value has; what is larger was named by mistake.
const LARGEST_FILE: u64 = 64 * 1024;

/// A file that holds a setting's value.
#[derive(Debug, Clone)]
pub struct SettingFile {
    variable: &'static str,
    path: PathBuf,
}

impl SettingFile {
    pub(super) fn new(variable: &'static str, path: String) -> Self {
        Self { variable, path: PathBuf::from(path) }
    }

    /// The variable that names it.
    #[must_use]
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Whether it can be looked at again: what comes out of a pipe comes once.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| file.is_file())
    }

    /// Whether reading it ends: a pipe, which it may have become, would wait for its writer.
    #[must_use]
    pub fn is_missing_or_regular(&self) -> bool {
        std::fs::metadata(&self.path).map_or(true, |file| file.is_file())
    }

    /// What it holds, without the spaces around it.
    ///
    /// # Errors
    /// One line that names the variable, when that is nothing, or cannot be read.
    pub fn text(&self) -> Result<String, Error> {
        let Self { variable, path } = self;
        let text = read(path).map_err(|error| wrong(variable, format!("cannot read {}: {error}", path.display())))?;
        given(Some(text)).ok_or_else(|| wrong(variable, format!("{} is empty", path.display())))
    }
}

/// Reads a file, up to a bound.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}
