//! What is logged: the filter, and the file that it may be kept in.

use std::sync::{Arc, PoisonError, RwLock};

use tracing_subscriber::filter::Targets;

use super::file::SettingFile;
use super::{Error, given, wrong};

const VARIABLE: &str = "TOLLGATE_LOG";
const FILE_VARIABLE: &str = "TOLLGATE_LOG_FILE";

/// A log filter that may be replaced while Tollgate runs. All clones are the same one.
#[derive(Debug, Clone)]
pub struct LogFilter {
    file: Option<SettingFile>,
    in_force: Arc<RwLock<String>>,
}

impl LogFilter {
    fn new(filter: String, file: Option<SettingFile>) -> Self {
        Self { file, in_force: Arc::new(RwLock::new(filter)) }
    }

    /// Given as it is or by a file, but not both.
    pub(super) fn parse(value: Option<String>, file: Option<String>) -> Result<Self, Error> {
        match (given(value), given(file)) {
            (Some(_), Some(_)) => Err(wrong(VARIABLE, format!("is set, and so is {FILE_VARIABLE}: which one?"))),
            (Some(filter), None) => Ok(Self::new(usable(VARIABLE, filter)?, None)),
            (None, None) => Ok(Self::new("info".to_owned(), None)),
            (None, Some(path)) => {
                let file = SettingFile::new(FILE_VARIABLE, path);
                Ok(Self::new(Self::read(&file)?, Some(file)))
            }
        }
    }

    /// The filter that its file holds.
    ///
    /// # Errors
    /// One line that names the variable, when that is no filter.
    pub fn read(file: &SettingFile) -> Result<String, Error> {
        usable(file.variable(), file.text()?)
    }

    /// What is in force now.
    #[must_use]
    pub fn get(&self) -> String {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what is in force from now on.
    pub fn replace(&self, filter: String) {
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = filter;
    }

    /// Where it is kept, when that is a file.
    #[must_use]
    pub fn file(&self) -> Option<&SettingFile> {
        self.file.as_ref()
    }
}

fn usable(variable: &'static str, filter: String) -> Result<String, Error> {
    let no_filter = |why: String| wrong(variable, format!("{:?} is not a log filter: {why}", shortened(&filter)));
    // Each part would be taken for a target of that name, and nothing would be logged.
    if filter.contains(char::is_whitespace) {
        return Err(no_filter("it holds spaces or lines".to_owned()));
    }
    filter.parse::<Targets>().map_err(|error| no_filter(error.to_string()))?;
    Ok(filter)
}

/// A file that was named by mistake may be long.
fn shortened(filter: &str) -> String {
    let mut short: String = filter.chars().take(80).collect();
    if short.len() < filter.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_given_as_it_is_or_by_a_file_and_never_by_both() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let path = || file.path().to_str().map(str::to_owned);
        std::fs::write(file.path(), "warn,tollgate::authz=debug\n").expect("written");
        let filter = LogFilter::parse(None, path()).expect("valid");
        assert_eq!(filter.get(), "warn,tollgate::authz=debug");
        assert!(filter.file().is_some());
        assert_eq!(LogFilter::parse(None, Some(" ".to_owned())).expect("unset").get(), "info");
        let error = LogFilter::parse(Some("info".to_owned()), path()).expect_err("both").to_string();
        assert_eq!(error, "TOLLGATE_LOG: is set, and so is TOLLGATE_LOG_FILE: which one?");
    }

    #[test]
    fn a_file_without_a_filter_is_an_error_of_one_line_that_names_its_variable() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        for text in ["", " \n", "tollgate=loud", "info\ndebug", "info, tollgate=debug", &"a=b".repeat(1000)] {
            std::fs::write(file.path(), text).expect("written");
            let error = LogFilter::parse(None, file.path().to_str().map(str::to_owned)).expect_err(text).to_string();
            assert!(error.starts_with("TOLLGATE_LOG_FILE: ") && !error.contains('\n'), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        std::fs::remove_file(file.path()).expect("removed");
        assert!(LogFilter::parse(None, file.path().to_str().map(str::to_owned)).is_err());
    }
}
