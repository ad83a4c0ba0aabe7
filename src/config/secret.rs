//! Secrets, and the files that they may be kept in.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use secrecy::{ExposeSecret, SecretString};

use super::{Error, given, is_visible_ascii, wrong};

/// More than fits into a header; what is larger was named by mistake.
const LARGEST_FILE: u64 = 64 * 1024;

/// A secret that may be replaced while it is in use. All clones are the same one; what shows it hides the value.
#[derive(Debug, Clone)]
pub struct Secret {
    file: Option<SecretFile>,
    in_force: Arc<RwLock<SecretString>>,
}

/// A file that holds a secret.
#[derive(Debug, Clone)]
pub struct SecretFile {
    variable: &'static str,
    path: PathBuf,
}

impl Secret {
    fn new(value: SecretString, file: Option<SecretFile>) -> Self {
        Self { file, in_force: Arc::new(RwLock::new(value)) }
    }

    /// What is in force now: to be asked for at each use.
    #[must_use]
    pub fn get(&self) -> SecretString {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whoever asks from now on gets this one.
    pub fn replace(&self, value: SecretString) {
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Where it is kept, when that is a file.
    #[must_use]
    pub fn file(&self) -> Option<&SecretFile> {
        self.file.as_ref()
    }
}

impl From<&str> for Secret {
    /// One that was given as it is.
    fn from(value: &str) -> Self {
        Self::new(SecretString::from(value), None)
    }
}

impl SecretFile {
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

    /// What it holds.
    ///
    /// # Errors
    /// One line that names the variable, when that is no secret.
    pub fn read(&self) -> Result<SecretString, Error> {
        let Self { variable, path } = self;
        let text = read(path).map_err(|error| wrong(variable, format!("cannot read {}: {error}", path.display())))?;
        match given(Some(text)) {
            Some(text) => usable(variable, text),
            None => Err(wrong(variable, format!("{} is empty", path.display()))),
        }
    }
}

/// Reads a file, up to a bound.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// It becomes a header value; anything else would fail at the first call instead of at start.
fn usable(variable: &'static str, text: String) -> Result<SecretString, Error> {
    if is_visible_ascii(&text) {
        Ok(SecretString::from(text))
    } else {
        Err(wrong(variable, "holds spaces or characters that cannot be sent in a header"))
    }
}

/// A secret that is given as it is or by a file, but not both.
pub(super) fn secret(
    variable: &'static str,
    file_variable: &'static str,
    value: Option<String>,
    file: Option<String>,
) -> Result<Option<Secret>, Error> {
    match (given(value), given(file)) {
        (Some(_), Some(_)) => Err(wrong(variable, format!("is set, and so is {file_variable}: which one?"))),
        (None, None) => Ok(None),
        (Some(value), None) => Ok(Some(Secret::new(usable(variable, value)?, None))),
        (None, Some(path)) => {
            let file = SecretFile { variable: file_variable, path: PathBuf::from(path) };
            Ok(Some(Secret::new(file.read()?, Some(file))))
        }
    }
}

/// The value of a secret, for the one place that sends it.
#[must_use]
pub fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}
