//! Secrets, and the files that they may be kept in.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::{ExposeSecret, SecretString};

use super::file::SettingFile;
use super::{Error, given, is_visible_ascii, wrong};

/// A secret that may be replaced while it is in use. All clones are the same one; what shows it hides the value.
#[derive(Debug, Clone)]
pub struct Secret {
    file: Option<SettingFile>,
    in_force: Arc<RwLock<SecretString>>,
}

impl Secret {
    fn new(value: SecretString, file: Option<SettingFile>) -> Self {
        Self { file, in_force: Arc::new(RwLock::new(value)) }
    }

    /// The secret that its file holds.
    ///
    /// # Errors
    /// One line that names the variable, when that is no secret.
    pub fn read(file: &SettingFile) -> Result<SecretString, Error> {
        usable(file.variable(), file.text()?)
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
    pub fn file(&self) -> Option<&SettingFile> {
        self.file.as_ref()
    }
}

impl From<&str> for Secret {
    /// One that was given as it is.
    fn from(value: &str) -> Self {
        Self::new(SecretString::from(value), None)
    }
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
            let file = SettingFile::new(file_variable, path);
            Ok(Some(Secret::new(Secret::read(&file)?, Some(file))))
        }
    }
}

/// The value of a secret, for the one place that sends it.
#[must_use]
pub fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}
